"""The numbers behind charts: those that the store keeps, or what the newest runs say instead."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

from celery import Celery
from celery_clutch import ClutchError, ResultStore
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle.tree import Node
from celery_clutch.operate import statistics
from celery_clutch.stores.base import Summary, listed
from celery_clutch.stores.buckets import Buckets

from .buckets import PERIODS, Counted, Period, job_name, run_name, time_name
from .run import drawn

RUNS = 1000
"""The newest runs that are looked at."""
SAMPLE = 30
"""Runs whose jobs are looked at."""


def newest(store: ResultStore, count: int = RUNS) -> list[Summary]:
    """The newest runs."""
    return list(islice(listed(store, min(count, 500)), count))


def read(store: ResultStore, period: Period, now: float) -> Counted | None:
    """What the store keeps of a period; None if it keeps nothing, or nobody has counted yet."""
    if not isinstance(store, Buckets):
        return None
    starts = period.starts(now)
    found = Counted(starts, period.seconds, store.read_counts([period.bucket(s) for s in starts]))
    return found or None


def reckoned(app: Celery, runs: Iterable[Summary], period: Period, now: float) -> Counted:
    """The same from what is known of *runs*, and of the jobs of the first of them."""
    starts = period.starts(now)
    counts: dict[int, Counter[str]] = defaultdict(Counter)

    def add(at: float | None, *names: str) -> None:
        if at is not None:
            counts[int(at // period.seconds) * period.seconds].update(names)

    several = list(runs)
    for run in several:
        add(run.created_at, run_name("engaged"))
        if run.ended_at is not None:
            add(run.ended_at, run_name(run.state.value))
    for _, node in sampled(app, several):
        _, started, seconds = node.timing()
        if node.state == "done" and started is not None and seconds is not None:
            done = job_name("done", node.task)
            add(started + seconds, done, time_name(seconds, node.task))
        elif node.failure is not None and started is not None:
            add(started, job_name(node.state, node.task))
    return Counted(starts, period.seconds, [counts.get(start, Counter()) for start in starts])


def sampled(app: Celery, runs: Iterable[Summary]) -> Iterator[tuple[Summary, Node]]:
    """The jobs of the first of *runs*, as many as can be looked at for a page."""
    jobs = 0
    for run in islice(runs, SAMPLE):
        if jobs + run.jobs > statistics.ENOUGH:
            continue
        jobs += run.jobs
        try:
            _, tree = drawn(app, run.run)
        except ClutchError:  # it has just gone
            continue
        for node in tree.walk():
            if node.kind == "job":
                yield run, node


def of(app: Celery, span: str, runs: Iterable[Summary]) -> tuple[Counted, bool]:
    """The counts of the ``hour`` or ``day``, and whether the store keeps them."""
    period, now = PERIODS[span], time.time()
    kept = read(runtime(app).store, period, now)
    return (kept, True) if kept is not None else (reckoned(app, runs, period, now), False)
