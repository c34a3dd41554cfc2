"""Export from every process of a worker that forks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor


class EachProcess(SpanProcessor):
    """A span processor that is made anew in each process, when the first span ends there.

    Exporters and the threads behind them do not survive a fork. A worker's main process forks
    again and again, whenever a process of its pool has ended, and has spans of its own to tell: of
    jobs whose process was killed. With this around its processor one provider, set before the
    first fork, is right in all of them::

        provider.add_span_processor(EachProcess(lambda: BatchSpanProcessor(OTLPSpanExporter())))

    Args:
        make: makes the processor of a process. Its ``on_start`` is told of nothing.
    """

    def __init__(self, make: Callable[[], SpanProcessor]) -> None:
        self._make = make
        self._own: SpanProcessor | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: only what has ended is exported."""

    def on_end(self, span: ReadableSpan) -> None:
        """Hand *span* to the processor of this process."""
        with self._lock:
            own = self._own = self._own or self._make()
        own.on_end(span)

    def shutdown(self) -> None:
        """Shut down what there is in this process."""
        if self._own is not None:
            self._own.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Have the processor of this process export what it holds."""
        return self._own is None or self._own.force_flush(timeout_millis)

    def _forget(self) -> None:
        self._own = None
        self._lock = threading.Lock()  # another thread may have held the old one
