"""Runs, in words. Pure."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from ..model.status import Failure, Status
from ..stores.base import Summary


def headline(status: Status) -> str:
    """A run in one line."""
    parts = [f"{status.name or ''} {status.id}".strip(), state(status), progress(status)]
    if status.generation:
        parts.append(f"resumed {status.generation} times" if status.generation > 1 else "resumed")
    if status.ended_at:
        start, end = map(datetime.fromisoformat, (status.created_at, status.ended_at))
        parts.append(f"took {duration((end - start).total_seconds())}")
    return "  ".join(parts)


def told(failure: Failure, most: int | None = None) -> str:
    """A failure in one line, with at most so many characters of its message."""
    message = failure.message.strip().partition("\n")[0]
    if most is not None and len(message) > most:
        message = f"{message[:most]}..."
    return f"{failure.exception}: {message}"


def brief(run: Summary) -> str:
    """``"5/7, 1 failing"``, for tables."""
    return ", ".join([f"{run.done:,}/{run.jobs:,}", *_trouble(run)])


def state(status: Status) -> str:
    """``"FAILED (draining: 3 running)"``, or the state alone."""
    if not status.draining:
        return status.state
    return f"{status.state} (draining: {status.draining:,} running)"


def progress(run: Status | Summary) -> str:
    """``"5 of 7 jobs, 1 failing"``."""
    total = run.total if isinstance(run, Status) else run.jobs
    return ", ".join([f"{run.done:,} of {total:,} jobs", *_trouble(run)])


def _trouble(run: Status | Summary) -> list[str]:
    """What else there is to say of the jobs."""
    kinds = ("failing", "dead", "tolerated", "skipped")
    return [f"{n:,} {kind}" for kind in kinds if (n := getattr(run, kind, 0))]


def duration(seconds: float) -> str:
    """*seconds* for people: two units at most."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, seconds = divmod(round(seconds), size)
        parts += [f"{amount} {unit}"] if amount or parts else []
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def age(seconds: float) -> str:
    """*seconds* in one unit."""
    return " ".join(duration(seconds).split()[:2])


class Pace:
    """How fast something is done, over the last *window* seconds."""

    def __init__(self, window: float = 30.0) -> None:
        self.window = window
        self.seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """At *now*, by some clock in seconds, *done* are done."""
        self.seen.append((now, done))
        while len(self.seen) > 2 and self.seen[1][0] <= now - self.window:
            self.seen.popleft()

    def rate(self) -> float:
        """How many a second."""
        (start, before), (end, after) = self.seen[0], self.seen[-1]
        return max(after - before, 0) / (end - start) if end > start else 0.0

    def left(self, total: int) -> float | None:
        """Seconds until all of *total* are done; None as long as nobody can tell."""
        rate = self.rate()
        return (total - self.seen[-1][1]) / rate if rate else None
