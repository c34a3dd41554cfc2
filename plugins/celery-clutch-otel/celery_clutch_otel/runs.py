"""The span of a run: agreed upon when the run is engaged, made when it ends.

A run ends in another process than the one that engaged it, and its jobs are exported before. So
the ids of its span are chosen beforehand, and travel with the run; whoever sees the run end makes
the span that has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import ModuleType

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PARENT = "clutch-parent"
"""Travels with a run whose span is still to be made: the id of the span around it, or ""."""

_IDS = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class RunSpan:
    """The span of one generation of a run, before there is one.

    Attributes:
        own: its ids, and whether it is sampled.
        parent: the span around it; None for the first of a trace.
        to_make: it is made when the run ends; else it was made when the run was engaged.
    """

    own: SpanContext
    parent: SpanContext | None
    to_make: bool

    def around(self, jobs: Context) -> Context:
        """*jobs* with this as the current span."""
        return trace.set_span_in_context(NonRecordingSpan(self.own), jobs)

    def surroundings(self) -> Context:
        """What the span itself is to be started in."""
        if self.parent is None:
            return Context()
        return trace.set_span_in_context(NonRecordingSpan(self.parent), Context())


def agree(tracer: Tracer, name: str) -> dict[str, str]:
    """What is to travel with a run that is engaged here and now; *name* is that of its span."""
    carrier: dict[str, str] = {}
    around = trace.get_current_span().get_span_context()
    if sdk := _sdk(tracer):
        own = sdk.allot(tracer, name, around)
        carrier[PARENT] = f"{around.span_id:016x}" if around.is_valid else ""
    else:  # who knows how another implementation makes its ids: the span ends at once
        made = tracer.start_span(name)
        made.end()
        own = made.get_span_context()
    context = trace.set_span_in_context(NonRecordingSpan(own))
    propagate.inject(carrier, context)  # what the application wants to travel: baggage, for one
    _IDS.inject(carrier, context)
    return carrier


def find(tracer: Tracer, run: str, generation: int, carrier: Mapping[str, str]) -> RunSpan:
    """The span of a generation of *run*, by what travels with the run.

    A generation after the first has a span of its own, inside that of the first.
    """
    first = _first(tracer, run, carrier)
    if not generation or not first.to_make:
        return first
    own = _beside(first.own, _hash(f"{first.own.span_id:016x}/{generation}", 8))
    return RunSpan(own, first.own, to_make=True)


def maker(tracer: Tracer, span: RunSpan) -> Tracer | None:
    """A tracer whose next span is *span*; None where that cannot, or need not, be made."""
    sdk = _sdk(tracer)
    wanted = span.to_make and span.own.trace_flags.sampled
    made: Tracer | None = sdk.maker(tracer, span.own) if sdk and wanted else None
    return made


def _first(tracer: Tracer, run: str, carrier: Mapping[str, str]) -> RunSpan:
    own = trace.get_current_span(_IDS.extract(carrier, Context())).get_span_context()
    if not own.is_valid:
        return RunSpan(_derived(tracer, run), None, to_make=True)
    above = carrier.get(PARENT)
    return RunSpan(own, _beside(own, int(above, 16)) if above else None, above is not None)


def _derived(tracer: Tracer, run: str) -> SpanContext:
    """The ids for a run that was engaged without OpenTelemetry: all workers come to the same."""
    sdk = _sdk(tracer)
    trace_id = _hash(run, 16)
    sampled = sdk.sampled(tracer, "clutch", trace_id) if sdk else True
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return SpanContext(trace_id, _hash(f"{run}/0", 8), is_remote=True, trace_flags=flags)


def _beside(own: SpanContext, span_id: int) -> SpanContext:
    return SpanContext(own.trace_id, span_id, True, own.trace_flags, own.trace_state)


def _hash(text: str, size: int) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:size], "big")


def _sdk(tracer: Tracer) -> ModuleType | None:
    """The module that knows the SDK, if that is where *tracer* is from."""
    try:
        from opentelemetry.sdk.trace import Tracer as SDKTracer

        from . import sdk
    except ImportError:
        return None
    return sdk if isinstance(tracer, SDKTracer) else None
