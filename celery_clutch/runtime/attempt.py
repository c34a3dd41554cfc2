"""Attempt: one execution of a job, and what it tells the store."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from types import TracebackType
from typing import Any

import orjson
from celery import Celery

from .. import signals
from ..compile import canvas, publish, record
from ..compile.header import Header
from ..errors import ClutchExpired, JobLost
from ..extend import observers
from ..extend.plugins import runtime
from ..model import codec
from ..model.data import Data
from ..model.events import JobFinished, JobStarted
from ..model.status import State, isoformat
from ..stores.base import Begun, Completed, ResultStore
from .handlers import announce, describe, fail, finished, report, settled


class Attempt:
    """One execution of a job: its place in the run, and what it tells the store."""

    def __init__(self, app: Celery, header: Header, request: Any, task: str) -> None:
        self.app = app
        self.header = header
        self.request = request
        self.task = header.task or task
        self.runtime = runtime(app)
        self.token = os.urandom(8).hex()
        self.nested: list[canvas.Prepared] = []
        self.replaced = False
        self.previous: list[Any] | None = None
        self.started = time.time()
        self._clock = time.perf_counter()
        self._data: Data | None = None

    @property
    def store(self) -> ResultStore:
        return self.runtime.store

    @property
    def number(self) -> int:
        """The attempt, counted from 1."""
        return int(getattr(self.request, "retries", 0) or 0) + 1

    @property
    def data(self) -> Data:
        """The data of the run, read once."""
        if self._data is None:
            self._data = Data(self._load_data, self.runtime.settings.max_result_bytes)
        return self._data

    def _load_data(self) -> dict[str, bytes]:
        return self.store.patiently(self.store.data, self.header.run) or {}

    def outcome(self, value: Any) -> record.Held:
        """What the job has returned, and what it has changed.

        Raises:
            NonJSONResult, NonJSONData, ResultTooLarge: it cannot be stored.
        """
        return record.Held(
            b"" if self.replaced else self.encode(value),
            changes=self._data.changes() if self._data is not None else {},
            info=record.execution_info(
                self.number, self.started, time.perf_counter() - self._clock
            ),
        )

    def begin(self) -> Begun:
        header = self.header
        limit = self.runtime.settings.max_starts
        return self.store.patiently(
            self.store.begin, header.run, header.at, header.slot, header.generation, limit
        )

    def encode(self, value: Any) -> bytes:
        return codec.encode_result(value, self.header.at, self.runtime.settings.max_result_bytes)

    def complete(self, outcome: record.Held) -> Completed:
        """Record *outcome*, and send the handlers that are due."""
        header = self.header
        done = self.store.patiently(
            self.store.complete,
            header.run,
            header.at,
            header.slot,
            outcome.value,
            generation=header.generation,
            token=self.token,
            job=not header.close,
            settles=header.settled_by_completion(
                alone=observers.heard(self.runtime, signals.clutch_step_settled)
            ),
            joins=header.joins(),
            changes=outcome.changes,
            info=outcome.info,
        )
        if done.fresh and not header.close:
            observers.emit(
                self.runtime, signals.clutch_job_finished, lambda: self.finished(outcome)
            )
        if done.settled:
            settled(self.app, header, done.settled, failed=bool(done.report))
        if done.report:
            report(self.app, header.run, done.report)
        if done.succeeded:
            announce(self.app, header.run, "on_success", "")
            finished(self.app, header.run)
        if done.joined and header.join:
            publish.go_past(self.app, self.request, header.run, header.join)
        return done

    def where(self) -> tuple[str, int, str, str, str, int]:
        """The job and its attempt, as events tell them."""
        header, task_id = self.header, str(getattr(self.request, "id", "") or "")
        return header.run, header.generation, header.at, self.task, task_id, self.number

    def started_event(self) -> JobStarted:
        return JobStarted(*self.where(), self.started, self.header.context)

    def finished(self, outcome: record.Held) -> JobFinished:
        info = orjson.loads(outcome.info) if outcome.info else {}
        run, generation, address, task, task_id, number = self.where()
        return JobFinished(
            run,
            generation,
            address,
            task,
            task_id,
            attempt=info.get("attempt", number),
            at=time.time(),
            seconds=info.get("seconds", 0.0),
            context=self.header.context,
        )

    def join(self) -> None:
        """The job has its result, from a message before this one: be counted in its barrier."""
        if self.header.join:
            self.complete(record.Held())

    def fail(
        self,
        exc: BaseException,
        *,
        final: bool,
        traceback: TracebackType | str | None = None,
        number: int | None = None,
    ) -> None:
        """Record a failed attempt, and send the handlers that are due."""
        failure = describe(exc, self.header.at, self.task, self.request, traceback)
        failure = replace(failure, attempt=number or self.number, final=final)
        fail(self.app, self.header, failure, self.token)

    def previous_results(self) -> list[Any]:
        """The previous results, read once."""
        if self.previous is None:
            self.previous = canvas.previous_values(self.store, self.header)
        return self.previous


def complete_held(attempt: Attempt, held: record.Held) -> None:
    """Complete a job with what it was holding, and with what nested runs changed of its data.

    Raises:
        MissingResult: a nested run that shares the data is gone.
    """
    changes = dict(held.changes)
    for run in held.shared:
        changes.update(canvas.shared_changes(attempt.store, run))
    info = record.with_nested(held.info, held.runs)
    attempt.complete(replace(held, changes=changes, info=info))


def nested_succeeded(store: ResultStore, held: record.Held) -> bool:
    """Whether every run that the job waits for has succeeded."""
    peeked = map(store.peek, held.runs)
    return all(each is not None and each[0] is State.SUCCEEDED for each in peeked)


def too_late(header: Header) -> ClutchExpired:
    """What a job fails with that has not started by its clutch's deadline."""
    return ClutchExpired(
        f"job {header.at} had not started by {isoformat(header.expires)}, the deadline of its "
        "clutch (expires)"
    )


def lost(attempt: Attempt, what: str, exc: BaseException) -> JobLost:
    """What a job fails with that ended without an outcome."""
    error = JobLost(f"job {attempt.header.at} {what}, so it has no result: {exc}")
    return error.with_traceback(exc.__traceback__)
