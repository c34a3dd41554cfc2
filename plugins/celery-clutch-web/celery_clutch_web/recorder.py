"""Counts what happens to runs, for charts: the plugin that celery-clutch finds.

It listens in every process that engages or works: an event is a few additions in memory. A thread
writes what has come together to the store every few seconds, and ends when nothing happens.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, defaultdict
from typing import Any

from celery import signals as celery_signals
from celery_clutch import ResultStore, signals
from celery_clutch.errors import ClutchError
from celery_clutch.extend.plugins import runtime
from celery_clutch.model.events import Engaged, Finished, JobFailed, JobFinished
from celery_clutch.stores.buckets import Buckets

from .buckets import OTHERS, PERIODS, TASKS, job_name, run_name, time_name

logger = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two writes."""
MOST = 20_000
"""Counts that are kept in memory while the store is away; then they are let go."""


class Recorder:
    """What was counted for a store and is not written yet."""

    def __init__(self, store: Buckets) -> None:
        self._store = weakref.ref(store)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._tasks: dict[str, set[str]] = defaultdict(set)
        self._thread: threading.Thread | None = None

    def add_run(self, at: float, what: str) -> None:
        """A run was ``engaged``, or has come to a state."""
        self._add(at, lambda bucket: [run_name(what)])

    def add_job(self, at: float, what: str, task: str, seconds: float = 0.0) -> None:
        """A job is ``done``, an attempt ``failing``, or a job ``dead``."""

        def names(bucket: str) -> list[str]:
            shown = self._known(bucket, task)
            found = [job_name(what, shown)]
            return [*found, time_name(seconds, shown)] if seconds > 0 else found

        self._add(at, names)

    def flush(self) -> bool:
        """Write what was counted; whether there was something.

        What cannot be written is kept for the next time.
        """
        with self._lock:
            counts, self._counts = self._counts, defaultdict(Counter)
            self._tasks.clear()
        store = self._store()
        if not counts or store is None:
            return False
        for name, period in PERIODS.items():
            mine = {bucket: each for (kind, bucket), each in counts.items() if kind == name}
            try:
                if mine:
                    store.add_counts(mine, period.kept)
            except ClutchError as exc:
                logger.debug("counts are not written yet: %s", exc)
                self._keep(name, mine)
        return True

    def _known(self, bucket: str, task: str) -> str:
        """The name that *task* is counted by in *bucket*."""
        known = self._tasks[bucket]
        if task in known or len(known) < TASKS:
            known.add(task)
            return task
        return OTHERS

    def _add(self, at: float, names: Any) -> None:
        with self._lock:
            for name, period in PERIODS.items():
                bucket = period.bucket(at)
                counts = self._counts[name, bucket]
                for each in names(bucket):  # Counter.update takes three times as long
                    counts[each] += 1
            # One that is about to end has written everything before.
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write, name="celery-clutch-web-counts", daemon=True
                )
                self._thread.start()

    def _keep(self, name: str, counts: dict[str, Counter[str]]) -> None:
        with self._lock:
            if sum(map(len, self._counts.values())) < MOST:
                for bucket, more in counts.items():
                    self._counts[name, bucket].update(more)

    def _write(self) -> None:
        while True:
            time.sleep(EVERY)
            try:
                wrote = self.flush()
            except Exception:
                logger.exception("counts could not be written")
                wrote = False
            with self._lock:
                if not wrote and not self._counts:
                    self._thread = None
                    return


_recorders: weakref.WeakKeyDictionary[ResultStore, Recorder] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def recorder(app: Any) -> Recorder | None:
    """What counts for the store of *app*; None if that keeps no counts."""
    store = runtime(app).store
    if not isinstance(store, Buckets):
        return None
    found = _recorders.get(store)
    if found is None:
        with _making:
            found = _recorders.setdefault(store, Recorder(store))
    return found


def flush() -> None:
    """Write all that was counted in this process."""
    for each in list(_recorders.values()):
        try:
            each.flush()
        except Exception:
            logger.exception("counts could not be written")


@signals.clutch_engaged.connect
def _engaged(sender: Any, event: Engaged, **_: Any) -> None:
    if (found := recorder(sender)) is not None:
        found.add_run(event.at, "engaged")


@signals.clutch_finished.connect
def _finished(sender: Any, event: Finished, **_: Any) -> None:
    if (found := recorder(sender)) is not None:
        found.add_run(event.ended_at, event.state.value)


@signals.clutch_job_finished.connect
def _job_finished(sender: Any, event: JobFinished, **_: Any) -> None:
    if (found := recorder(sender)) is not None:
        found.add_job(event.at, "done", event.task, event.seconds)


@signals.clutch_job_failed.connect
def _job_failed(sender: Any, event: JobFailed, **_: Any) -> None:
    if (found := recorder(sender)) is not None:
        found.add_job(event.at, "dead" if event.failure.final else "failing", event.task)


@celery_signals.worker_shutdown.connect
@celery_signals.worker_process_shutdown.connect
def _leaving(**_: Any) -> None:
    flush()  # a process of the pool leaves without asking Python's exit handlers


def _after_fork() -> None:
    # Threads do not survive, locks may be held by nobody, and the counts are the parent's to write.
    global _recorders, _making
    _recorders, _making = weakref.WeakKeyDictionary(), threading.Lock()


atexit.register(flush)
os.register_at_fork(after_in_child=_after_fork)
