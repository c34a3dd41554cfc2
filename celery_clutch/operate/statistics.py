"""What many runs, or many failures, have in common. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..handle.tree import duration
from ..model.status import Failure, State
from ..stores.base import Summary

ENOUGH = 20_000
"""Jobs after which no more are looked at."""
EXAMPLES = 3
"""Addresses that are named of a group of failures."""

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(slots=True)
class Group:
    """Failures that are alike.

    Attributes:
        task: of the jobs.
        example: one of them.
        count: how many there are; ``dead`` of them are final.
        addresses: of the first few.
    """

    task: str
    example: Failure
    count: int = 0
    dead: int = 0
    addresses: list[str] = field(default_factory=list)

    @property
    def more(self) -> bool:
        """Whether there are more than are named."""
        return self.count > len(self.addresses)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        exception, message = self.example.exception, self.example.message
        said = {"task": self.task, "exception": exception, "message": message}
        counts = {"count": self.count, "dead": self.dead}
        return {**said, **counts, "addresses": self.addresses}


def alike(failures: Iterable[Failure]) -> list[Group]:
    """*failures* by task, exception and message, numbers aside; the largest group first."""
    groups: dict[tuple[str, str, str], Group] = {}
    for failure in failures:
        key = failure.task, failure.exception, _NUMBERS.sub("#", failure.message)
        group = groups.setdefault(key, Group(failure.task, failure))
        group.count += 1
        group.dead += failure.final
        if len(group.addresses) < EXAMPLES:
            group.addresses.append(failure.address)
    return sorted(groups.values(), key=lambda group: -group.count)


@dataclass(frozen=True, slots=True)
class Overview:
    """How runs are doing.

    Attributes:
        states: how many runs are in each state.
        jobs, done, failing, dead: of all of them.
        ended: runs that have ended within the last hour; ``hour`` is how many of their jobs are
            done.
        oldest: the run that is running for longest, and ``waited`` its age in seconds.
        quiet: seconds since the last event of the run that is quiet for longest.
    """

    states: dict[str, int]
    jobs: int
    done: int
    failing: int
    dead: int
    ended: int
    hour: int
    oldest: str | None
    waited: float
    quietest: str | None
    quiet: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.states.items())
        found = [f"runs  {states or 'none'}"]
        trouble = f", {self.failing:,} failing, {self.dead:,} dead"
        found.append(f"jobs  {self.done:,} of {self.jobs:,}{trouble}")
        found.append(f"in the last hour {self.ended:,} runs have ended, {self.hour:,} jobs done")
        if self.oldest:
            found.append(f"running for longest: {self.oldest}, for {duration(self.waited)}")
        if self.quietest:
            found.append(f"quiet for longest: {self.quietest}, for {duration(self.quiet)}")
        return found


def overview(runs: Sequence[Summary], now: float) -> Overview:
    """What *runs* have in common at the time *now*."""
    states = Counter(run.state.value for run in runs)
    ended = [run for run in runs if run.ended_at is not None and now - run.ended_at <= 3600]
    running = [run for run in runs if run.state is State.RUNNING]
    oldest = min(running, key=lambda run: run.created_at, default=None)
    quietest = min(running, key=lambda run: run.updated_at, default=None)
    return Overview(
        states=dict(sorted(states.items())),
        jobs=sum(run.jobs for run in runs),
        done=sum(run.done for run in runs),
        failing=sum(run.failing for run in runs),
        dead=sum(run.dead for run in runs),
        ended=len(ended),
        hour=sum(run.done for run in ended),
        oldest=oldest.run if oldest else None,
        waited=max(now - oldest.created_at, 0.0) if oldest else 0.0,
        quietest=quietest.run if quietest else None,
        quiet=max(now - quietest.updated_at, 0.0) if quietest else 0.0,
    )


class Tasks:
    """How long jobs take, by task."""

    def __init__(self) -> None:
        self.jobs = 0
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, executions: Iterable[tuple[str, float]]) -> None:
        """Take in jobs: the task of each, and how many seconds it took."""
        for task, seconds in executions:
            self.jobs += 1
            self._seconds[task].append(seconds)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The percentiles by task, in seconds."""
        found = {}
        for task, seconds in sorted(self._seconds.items()):
            seconds.sort()
            p50, p95 = percentile(seconds, 0.5), percentile(seconds, 0.95)
            found[task] = {"jobs": len(seconds), "p50": p50, "p95": p95, "most": seconds[-1]}
        return found

    def rows(self) -> list[list[str]]:
        """The same for people, the task that takes longest first."""
        tasks = sorted(self.to_dict().items(), key=lambda item: -item[1]["p95"])
        return [
            [
                task,
                f"{found['jobs']:,}",
                *(duration(found[name]) for name in ("p50", "p95", "most")),
            ]
            for task, found in tasks
        ]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that *share* of *ordered* values do not exceed; they are sorted, and not none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
