"""What the page of a task shows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle.tree import Node
from celery_clutch.operate import statistics
from celery_clutch.stores.base import Summary

from . import counted, listing
from .buckets import Series, Task

RECENT = 20
"""Runs that are shown."""


@dataclass(frozen=True, slots=True)
class Recent:
    """A run that has jobs of the task.

    Attributes:
        run: itself.
        states: how many of these jobs are in each state.
        longest: the seconds that the longest of them took; None if none has ended.
    """

    run: Summary
    states: dict[str, int]
    longest: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """How the jobs of a task are doing.

    Attributes:
        name: of the task.
        span: of the charts: ``hour`` or ``day``.
        kept: whether the store keeps the counts.
        counts: what was counted.
        jobs, durations: over time.
        groups: failures that are alike, of jobs without a result in recent runs.
        recent: the newest runs that have jobs of the task.
        looked: how many runs were looked at for these.
        now: in seconds since the epoch.
    """

    name: str
    span: str
    kept: bool
    counts: Task
    jobs: Series
    durations: Series
    groups: list[statistics.Group]
    recent: list[Recent]
    looked: int
    now: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        recent = [
            {**listing.summary(each.run), "states": each.states, "longest": each.longest}
            for each in self.recent
        ]
        return {
            "task": self.name,
            "span": self.span,
            "kept": self.kept,
            **self.counts.to_dict(),
            "jobs": self.jobs.to_dict(),
            "durations": self.durations.to_dict(),
            "groups": [group.to_dict() for group in self.groups],
            "recent": recent,
        }


def look(app: Celery, name: str, span: str) -> Page:
    """How the jobs of the task *name* are doing."""
    newest = counted.newest(runtime(app).store, 10 * counted.SAMPLE)
    found, kept = counted.of(app, span, newest)
    runs: dict[str, tuple[Summary, list[Node]]] = {}
    for run, node in counted.sampled(app, newest):
        if node.task == name:
            runs.setdefault(run.run, (run, []))[1].append(node)
    failures = [node.failure for _, nodes in runs.values() for node in nodes if node.failure]
    return Page(
        name=name,
        span=span,
        kept=kept,
        counts=found.tasks().get(name, Task()),
        jobs=found.jobs(name),
        durations=found.durations(name),
        groups=statistics.alike(failures),
        recent=[_recent(run, nodes) for run, nodes in runs.values()][:RECENT],
        looked=min(len(newest), counted.SAMPLE),
        now=time.time(),
    )


def _recent(run: Summary, nodes: list[Node]) -> Recent:
    states: dict[str, int] = {}
    for node in nodes:
        states[node.state] = states.get(node.state, 0) + 1
    known = [seconds for node in nodes if (seconds := node.timing()[2]) is not None]
    return Recent(run, states, max(known, default=None))
