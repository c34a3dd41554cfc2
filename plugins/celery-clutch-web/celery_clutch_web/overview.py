"""What the overview shows."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery_clutch import State
from celery_clutch.extend.plugins import runtime
from celery_clutch.model.workers import Workers as Answers
from celery_clutch.model.workers import place
from celery_clutch.runtime import workers
from celery_clutch.stores.base import Summary

from . import counted, listing
from .buckets import Series, Task

LONGEST = 8
"""Runs that wait longest."""
PATIENCE = 0.3
"""Seconds that are looked for them at a time."""
TASKS = 30
"""Tasks that are shown."""


@dataclass(frozen=True, slots=True)
class Page:
    """How runs are doing.

    Attributes:
        span: of the charts: ``hour`` or ``day``.
        states: how many of the newest runs are in each state.
        looked: how many runs that were; ``all`` of them, if there are no more.
        kept: whether the store keeps the counts.
        runs, jobs: over time.
        tasks: what was counted of each task, the one that takes longest first.
        longest: runs that run, the one without an event for longest first.
        now: in seconds since the epoch.
    """

    span: str
    states: dict[str, int]
    looked: int
    all: bool
    kept: bool
    runs: Series
    jobs: Series
    tasks: list[tuple[str, Task]]
    longest: list[Summary]
    now: float

    @property
    def slowest(self) -> float:
        """The highest 95th percentile, in seconds."""
        return max((task.percentile(0.95) or 0.0 for _, task in self.tasks), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return {
            "span": self.span,
            "states": self.states,
            "looked": self.looked,
            "kept": self.kept,
            "runs": self.runs.to_dict(),
            "jobs": self.jobs.to_dict(),
            "tasks": {name: task.to_dict() for name, task in self.tasks},
            "longest": [listing.summary(run) for run in self.longest],
        }


@dataclass(frozen=True, slots=True)
class Process:
    """A worker process, as the store knows it: the owner of leases.

    Attributes:
        host, number: where it is.
        left: seconds for which it is said to live; below 0 it seems to have died.
    """

    host: str
    number: str
    left: float


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers, and the processes that hold leases.

    Attributes:
        answers: of the workers.
        trouble: why they could not be asked, or "".
        processes: as the store knows them.
    """

    answers: Answers | None
    trouble: str
    processes: list[Process]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        found = []
        for worker in self.answers or ():
            said = {"name": worker.name, "queues": sorted(worker.queues), "store": worker.store}
            jobs = {"jobs": sorted(worker.jobs), "versions": dict(worker.versions)}
            same = {"renewed": worker.renewed, "same_store": worker.same_store}
            found.append({**said, **jobs, **same, "trouble": worker.trouble})
        left = [
            {"host": each.host, "process": each.number, "seconds_left": each.left}
            for each in self.processes
        ]
        return {"workers": found, "processes": left, "trouble": self.trouble or None}


class Longest:
    """Finds the runs that are running without an event for longest.

    These are among the oldest, and stores list the newest first: a look goes on where the one
    before has stopped, for `PATIENCE` seconds.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._cursor = ""
        self._before: dict[str, Summary] = {}
        self._found: dict[str, Summary] = {}

    def look(self) -> list[Summary]:
        """Those that are known by now, the one without an event for longest first."""
        store = runtime(self._app).store
        deadline = time.monotonic() + PATIENCE
        while True:
            runs, self._cursor = store.unfinished(self._cursor)
            self._found.update((run.run, run) for run in runs if run.state is State.RUNNING)
            self._found = {run.run: run for run in _quiet(self._found, 4 * LONGEST)}
            if not self._cursor:
                self._before, self._found = self._found, {}
                break
            if time.monotonic() > deadline:
                break
        known = _quiet({**self._before, **self._found}, 2 * LONGEST)
        now = {run.run: found for run in known if (found := listing.one(store, run.run))}
        running = {id: run for id, run in now.items() if run.state is State.RUNNING}
        return _quiet(running, LONGEST)


def _quiet(runs: dict[str, Summary], count: int) -> list[Summary]:
    """The *count* of *runs* that have had no event for longest."""
    return sorted(runs.values(), key=lambda run: run.updated_at)[:count]


def look(app: Celery, span: str, longest: Longest) -> Page:
    """How the runs of *app* are doing."""
    store, now = runtime(app).store, time.time()
    newest = counted.newest(store)
    states = Counter(run.state.value for run in newest)
    found, kept = counted.of(app, span, newest)
    tasks = sorted(found.tasks().items(), key=_duration, reverse=True)
    return Page(
        span=span,
        states={state.value: states[state.value] for state in State},
        looked=len(newest),
        all=len(newest) < counted.RUNS,
        kept=kept,
        runs=found.runs(),
        jobs=found.jobs(),
        tasks=tasks[:TASKS],
        longest=longest.look(),
        now=now,
    )


def ask_workers(app: Celery, timeout: float = 1.0) -> Workers:
    """The workers of *app*, which have *timeout* seconds to answer."""
    answers, trouble = None, ""
    try:
        answers = workers.ask(app, timeout)
    except Exception as exc:  # the broker is away; what the store knows is shown all the same
        trouble = str(exc) or repr(exc)
    processes = [
        Process(*place(owner), left) for owner, left in sorted(runtime(app).store.owners().items())
    ]
    return Workers(answers, trouble, processes)


def _duration(item: tuple[str, Task]) -> float:
    return item[1].percentile(0.95) or 0.0
