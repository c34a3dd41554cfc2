"""What is counted for charts: names of counts, periods of time, and what they say. Pure.

Everything is counted twice: by the minute, for the last hour, and by the quarter of an hour, for
the last day. So there are never more than some two hundred buckets.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

OTHERS = "(others)"
"""Stands for tasks beyond the first `TASKS` of a process and bucket."""
TASKS = 100
RATIO = 1.15
"""Between two neighbours of a histogram: a percentile is off by some 7 % at most."""
SHORTEST = 0.001
"""Seconds that the shortest time in a histogram stands for."""


class Period(NamedTuple):
    """Buckets of one length.

    Attributes:
        seconds: of a bucket.
        shown: how many of them are.
    """

    seconds: int
    shown: int

    @property
    def kept(self) -> float:
        """Seconds for which a bucket is kept."""
        return float(self.seconds * (self.shown + 2))

    def bucket(self, timestamp: float) -> str:
        """The name of the bucket that *timestamp* is in."""
        return f"{self.seconds}.{int(timestamp // self.seconds)}"

    def starts(self, now: float) -> list[int]:
        """When each of the buckets that are shown *now* begins, in seconds since the epoch."""
        last = int(now // self.seconds)
        return [number * self.seconds for number in range(last - self.shown + 1, last + 1)]


PERIODS = {"hour": Period(60, 60), "day": Period(900, 96)}


def run_name(what: str) -> str:
    """The count of runs that were ``engaged``, or have come to a state."""
    return f"run {what}"


def job_name(what: str, task: str) -> str:
    """The count of jobs of *task* that are ``done``, ``failing`` (an attempt) or ``dead``."""
    return f"job {what} {_short(task)}"


def time_name(seconds: float, task: str) -> str:
    """The count of jobs of *task* that took about so many *seconds*."""
    return f"time {round(math.log(max(seconds, SHORTEST), RATIO))} {_short(task)}"


@dataclass(slots=True)
class Task:
    """What was counted of a task.

    Attributes:
        done, failing, dead: jobs, and attempts.
        times: how many jobs took about ``RATIO ** number`` seconds, by number.
    """

    done: int = 0
    failing: int = 0
    dead: int = 0
    times: Counter[int] = field(default_factory=Counter)

    def percentile(self, share: float) -> float | None:
        """The seconds that *share* of the jobs do not exceed; None where no time is known."""
        total = self.times.total()
        if not total:
            return None
        left = share * total
        for number in sorted(self.times):
            left -= self.times[number]
            if left <= 0:
                return float(RATIO**number)
        return float(RATIO ** max(self.times))

    @property
    def failures(self) -> int:
        """Attempts that have failed."""
        return self.failing + self.dead

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data, times in seconds."""
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        counts = {"done": self.done, "failing": self.failing, "dead": self.dead}
        return {**counts, **{name: self.percentile(share) for name, share in shares.items()}}


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers over time.

    Attributes:
        times: when each bucket begins, in seconds since the epoch.
        seconds: of a bucket.
        lines: the numbers by what they are of; None where nothing is known.
    """

    times: list[int]
    seconds: int
    lines: dict[str, list[float | None]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Counted:
    """The counts of a period, oldest bucket first."""

    times: list[int]
    seconds: int
    buckets: Sequence[Mapping[str, int]]

    def __bool__(self) -> bool:
        return any(self.buckets)

    def runs(self) -> Series:
        """Runs that were engaged, and that have ended."""
        names = {"engaged": "engaged", "succeeded": "SUCCEEDED", "failed": "FAILED"}
        return self._series({line: run_name(what) for line, what in names.items()})

    def jobs(self, task: str | None = None) -> Series:
        """Jobs that are done, and attempts that have failed; of one *task*, or all."""
        lines: dict[str, list[float | None]] = {"done": [], "failed": []}
        for bucket in self.buckets:
            done = failed = 0
            for what, name, count in _jobs(bucket):
                if task is None or name == task:
                    done += count if what == "done" else 0
                    failed += count if what in ("failing", "dead") else 0
            lines["done"].append(done)
            lines["failed"].append(failed)
        return Series(self.times, self.seconds, lines)

    def durations(self, task: str) -> Series:
        """How long jobs of *task* took."""
        lines: dict[str, list[float | None]] = {"p50": [], "p95": []}
        for bucket in self.buckets:
            found = tasks([bucket]).get(task, Task())
            lines["p50"].append(found.percentile(0.5))
            lines["p95"].append(found.percentile(0.95))
        return Series(self.times, self.seconds, lines)

    def tasks(self) -> dict[str, Task]:
        """What was counted of each task."""
        return tasks(self.buckets)

    def total(self, what: str) -> int:
        """How many runs were ``engaged``, or have come to a state."""
        return sum(bucket.get(run_name(what), 0) for bucket in self.buckets)

    def _series(self, names: Mapping[str, str]) -> Series:
        lines: dict[str, list[float | None]] = {
            line: [bucket.get(name, 0) for bucket in self.buckets] for line, name in names.items()
        }
        return Series(self.times, self.seconds, lines)


def tasks(buckets: Iterable[Mapping[str, int]]) -> dict[str, Task]:
    """What *buckets* have counted of each task."""
    found: dict[str, Task] = defaultdict(Task)
    for bucket in buckets:
        for what, name, count in _jobs(bucket):
            if what in ("done", "failing", "dead"):
                setattr(found[name], what, getattr(found[name], what) + count)
            else:
                found[name].times[int(what)] += count
    return dict(found)


def _jobs(bucket: Mapping[str, int]) -> Iterable[tuple[str, str, int]]:
    """What, of which task, and how many: of a time what is its number in the histogram."""
    for name, count in bucket.items():
        kind, _, rest = name.partition(" ")
        what, _, task = rest.partition(" ")
        if kind in ("job", "time"):
            yield what, task, count


def _short(task: str) -> str:
    return task if len(task) <= 200 else f"{task[:199]}…"
