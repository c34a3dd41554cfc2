"""When the jobs of a run waited, ran and were tried again. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from celery_clutch.compile import record
from celery_clutch.handle.tree import Node, Tree

MOST = 100
"""Jobs of which the timeline is drawn."""


class Span(NamedTuple):
    """A stretch of time.

    Attributes:
        kind: ``wait``, ``retry`` (earlier attempts, and the time between them), or the state of a
            job whose latest attempt it is.
        start, end: in seconds since the epoch.
    """

    kind: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Row:
    """A job, and what is known of when it did what."""

    address: str
    task: str
    state: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rows in definition order.

    Attributes:
        start, end: what is drawn, in seconds since the epoch.
        rows: `MOST` at most; ``left`` other jobs have begun, too.
    """

    start: float
    end: float
    rows: tuple[Row, ...]
    left: int

    def share(self, timestamp: float) -> float:
        """Where *timestamp* is, from 0.0 at the start to 100.0 at the end."""
        whole = self.end - self.start
        return min(max(100 * (timestamp - self.start) / whole, 0.0), 100.0) if whole > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return asdict(self)


def timeline(tree: Tree, now: float) -> Timeline:
    """The timeline of a run at the time *now*."""
    start = _time(tree.status.created_at)
    rows: list[Row] = []
    left = 0
    for row in _rows(tree.root, start, now):
        if len(rows) < MOST:
            rows.append(row)
        else:
            left += 1
    end = _time(tree.status.ended_at) if tree.status.ended_at else now
    ends = [span.end for row in rows for span in row.spans]
    return Timeline(start, max([end, *ends]), tuple(rows), left)


def _rows(root: Node, ready: float | None, now: float) -> Iterator[Row]:
    """A row for each job of *root* that has begun; what *root* has could begin when *ready*."""
    if root.kind == "job":
        if spans := _spans(root, ready, now):
            yield Row(root.address, root.task, root.state, spans)
        return
    for child in root.below:
        yield from _rows(child, ready, now)
        if root.kind == "series":
            ready = _ended(child)


def _spans(job: Node, ready: float | None, now: float) -> tuple[Span, ...]:
    attempt, started, seconds = job.timing()
    spans: list[Span] = []
    begun = started
    if job.failure is not None and started is None:
        return _failed(job, ready, now)
    if begun is None:
        return ()
    if ready is not None and begun > ready:
        spans.append(Span("wait" if (attempt or 1) == 1 else "retry", ready, begun))
    end = now if seconds is None else begun + seconds
    spans.append(Span(job.state if seconds is not None else "running", begun, max(end, begun)))
    return tuple(spans)


def _failed(job: Node, ready: float | None, now: float) -> tuple[Span, ...]:
    """A job whose latest attempt has failed: when that began is not kept."""
    assert job.failure is not None
    failed = _time(job.failure.at)
    begun = failed if ready is None else min(ready, failed)
    if job.failure.attempt == 1:
        spans = [Span(job.state, begun, failed)]
    else:
        spans = [Span("retry", begun, failed), Span(job.state, failed, failed)]
    if not job.failure.final:
        until = max(job.retry_at or now, now)
        spans.append(Span("retry", failed, max(until, failed)))
    return tuple(spans)


def _ended(node: Node) -> float | None:
    """When the last job of *node* ended; None as long as one has not, or where nobody knows."""
    if node.kind == "job":
        _, started, seconds = node.timing()
        if started is None or seconds is None or record.nested(node.execution.info):
            return None  # what comes behind a job has waited for the runs nested in it
        return started + seconds
    if node.kind == "series":
        return _ended(node.below[-1]) if node.below else None
    ends = [_ended(each) for each in node.below]
    known = [end for end in ends if end is not None]
    return max(known, default=None) if len(known) == len(ends) else None


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
