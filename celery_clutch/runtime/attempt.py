"""Attempt: one execution of a job, and what it tells the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from types import TracebackType
from typing import Any

from celery import Celery

from ..compile import canvas, record, values
from ..compile.header import NAME, Header
from ..errors import BuildError, ClutchExpired, JobLost, NotAList, StoreUnavailable
from ..extend.plugins import runtime
from ..model import absent, codec
from ..model.data import Data
from ..model.events import JobFinished, JobStarted
from ..model.names import Names, Results
from ..model.plan import Node
from ..model.shape import Shape
from ..model.status import State, isoformat
from ..stores.base import Begun, Claim, Completed, Growth, Missing, ResultStore, Verdict
from . import advance, growth, journal, leases
from .handlers import describe
from .outbox import begins_at

FRESH = 5.0
"""Seconds for which what is due is left to the execution that has made it due."""


class Attempt:
    """One execution of a job: its place in the run, and what it tells the store."""

    def __init__(
        self, app: Celery, header: Header, request: Any, task: str, turn: int | None = None
    ) -> None:
        self.app = app
        self.turn = header.turn(request) if turn is None else turn
        self.header = header
        self.request = request
        self.task = header.task or task
        self.function: Callable[..., Any] = _no_function  # what the job runs
        self.runtime = runtime(app)
        self.token = os.urandom(8).hex()
        self.nested: list[canvas.Prepared] = []
        self.composed: dict[int, Sized] = {}  # clutches to nest that are not engaged
        self.replaced = False
        self.added: list[Node] = []  # branches for the parallel around
        self.growth: Growth | None = None
        self.dead = False  # a final failure is recorded
        self.retried = False  # a failure is recorded that another attempt follows
        self.away: StoreUnavailable | None = None  # raised by the store while the job was running
        self.ended_by: BaseException | None = None  # recorded as what the job died of
        self.previous: list[Any] | None = None
        self.started = time.time()
        self._clock = time.perf_counter()
        self._data: Data | None = None
        self._results: Results | None = None

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
        try:
            return self.store.patiently(self.store.data, self.header.run) or {}
        except StoreUnavailable as exc:
            self.away = exc
            raise

    @property
    def results(self) -> Results:
        """The values of named steps."""
        if self._results is None:
            self._results = Results(self._load_names, self._read, self.header.at)
        return self._results

    def _load_names(self) -> Names:
        try:
            return canvas.load_names(self.store, self.header.run)
        except StoreUnavailable as exc:
            self.away = exc
            raise

    def _resolved(self, of: Shape) -> Shape:
        return values.Decisions(self.store, self.header.run).resolve(of)

    def _read(self, of: Shape) -> Any:
        try:
            (value,) = values.read(self.store, self.header.run, [self._resolved(of)], existed=True)
        except StoreUnavailable as exc:
            self.away = exc
            raise
        return value

    def outcome(self, value: Any, *, stops: bool = False) -> record.Held:
        """What the job has returned, and what it has changed; *stops*: the run ends with it.

        Raises:
            NonJSONResult, NonJSONData, ResultTooLarge: it cannot be stored.
        """
        if self.added:
            if self.nested or self.replaced:
                raise BuildError(
                    "a job that nests clutches, or is replaced, cannot add branches: what it adds "
                    "is there when it has completed"
                )
            self.growth = growth.grow(self.app, self.header, self.added)
        return record.Held(
            b"" if self.replaced else self.encode(value, stops=stops),
            changes=self._data.changes() if self._data is not None else {},
            info=record.execution_info(
                self.number, self.started, time.perf_counter() - self._clock, leases.HOST
            ),
        )

    def add_branches(self, steps: tuple[Any, ...]) -> None:
        """Keep branches for the parallel around the job; see `growth.Branches`."""
        nodes = growth.compose(steps, self.app)
        self.added += [node for node in nodes if node.size]

    def begin(self) -> Begun:
        """Ask the store whether to run; a job whose owner has died is free."""
        owner = leases.ensure(self.runtime)
        begun = self._begin(owner, "")
        if begun.verdict is Verdict.BUSY and not leases.is_alive(self.runtime, begun.owner):
            begun = self._begin(owner, begun.owner)
        return begun

    def _begin(self, owner: str, lapsed: str) -> Begun:
        header, turn = self.header, self.turn
        receipts = header.receipts
        if turn and header.due not in receipts:
            receipts = (*receipts, header.due)
        claim = Claim(
            run=header.run,
            address=header.at,
            generation=header.generation,
            owner=owner,
            limit=self.runtime.settings.max_starts,
            turn=turn,
            page=header.page,
            receipts=tuple(receipts),
            lapsed=lapsed,
            unless=header.unless,
        )
        return self.store.patiently(self.store.begin, claim)

    def copied(self) -> None:
        """The job has its result from a message before this one; logged."""
        journal.dropped(self.header, "the job has its result; this message is a copy")

    def dropped(self) -> str:
        """Why the store says to drop the message; logged, too."""
        header = self.header
        try:
            why = why_dropped(header, self.store.patiently(self.store.peek, header.run))
        except StoreUnavailable:
            why = "the run was cancelled, resumed or forgotten, or this message is a copy"
        journal.dropped(header, why)
        return why

    def release(self) -> None:
        """Let go of a job that ends without an outcome."""
        header = self.header
        self.store.patiently(self.store.release, header.run, header.at, leases.owner(), self.turn)

    def encode(self, value: Any, *, stops: bool = False) -> bytes:
        """What the job has returned, as JSON; nothing follows if it *stops* the run.

        Raises:
            NonJSONResult, ResultTooLarge: it cannot be stored.
            NotAList, NoSuchChoice: what follows cannot be made of it.
        """
        header = self.header
        data = codec.encode_result(value, header.at, self.runtime.settings.max_result_bytes)
        if stops:
            return data
        if header.gives and not isinstance(value, (list, tuple)):
            kind = type(value).__name__
            raise NotAList(
                f"job {header.at} has returned {kind}, and a map follows: it takes a list"
            )
        if header.choices is not None:
            advance.chosen(header, value)
        return data

    def kept(self, data: bytes) -> Any:
        """What Celery is handed of the value *data*: itself where it is kept, else None."""
        return codec.decode_result(data) if self.header.keep else None

    def recorded(self) -> Any:
        """The result that the job has in the store, if it is there still."""
        header = self.header
        (data,) = self.store.patiently(self.store.values, header.run, [header.at])
        return None if data is Missing else absent.decode(data)

    def stop(self, outcome: record.Held) -> Completed:
        """Record *outcome*, and end the run with it."""
        header = replace(self.header, barriers=(), choices=None, next="")
        done = advance.completion(header, outcome.value, outcome.changes, outcome.info, self.token)
        event = self._finished_event(outcome)
        return advance.complete(self.runtime, header, replace(done, stop=outcome.value), event)

    def _finished_event(self, outcome: record.Held) -> Callable[[], JobFinished]:
        task_id = str(getattr(self.request, "id", "") or "")
        return advance.finished_event(self.header, self.task, task_id, outcome.info)

    def complete(self, outcome: record.Held) -> Completed:
        """Record *outcome*, and send what follows."""
        header = self.header
        chain: Sequence[Any] = getattr(self.request, "chain", None) or ()
        begins = begins_at(chain[-1].get("options") or {}) if chain else None
        done = advance.completion(
            header, outcome.value, outcome.changes, outcome.info, self.token, begins
        )
        if self.growth is not None:
            done = replace(done, growth=self.growth)
        return advance.complete(self.runtime, header, done, self._finished_event(outcome), chain)

    def repeat(self) -> bool:
        """The job has its result, from a message before this one: send what has been due for long.

        Returns False if something is due that the execution before may be about to send.
        """
        header = self.header
        done = advance.completion(header, b"", {}, b"", self.token)
        answer = self.store.patiently(self.store.complete, done)
        if not answer.due:
            return True
        found = self.store.patiently(self.store.read, header.run)
        known = found.due if found else {}
        due = [key for key in answer.due if key in known]  # the rest was sent in between
        recent = time.time() - FRESH
        if any(known[key].since > recent for key in due):
            return False
        origin = replace(header.origin, generation=answer.generation)
        advance.follow(self.app, origin, due, answer.pages)
        return True

    def started_event(self) -> JobStarted:
        header, task_id = self.header, str(getattr(self.request, "id", "") or "")
        where = header.run, header.generation, header.at, self.task, task_id, self.number
        return JobStarted(*where, self.started, header.context)

    def fail(
        self,
        exc: BaseException,
        *,
        final: bool,
        traceback: TracebackType | str | None = None,
        number: int | None = None,
        retry_at: float | None = None,
    ) -> None:
        """Record a failed attempt, and send what follows; *retry_at* says when the next is due."""
        failure = describe(exc, self.header.at, self.task, self.request, traceback)
        failure = replace(failure, attempt=number or self.number, final=final)
        advance.fail(self.app, self.header, failure, self.token, retry_at=retry_at)
        self.dead = self.dead or final

    def previous_results(self) -> list[Any]:
        """The previous results, read once."""
        if self.previous is None:
            try:
                self.previous = values.previous_values(self.store, self.header)
            except StoreUnavailable as exc:
                self.away = exc
                raise
        return self.previous


def _no_function(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("this attempt looks at a job, and does not run it")


def why_dropped(header: Header, peeked: tuple[State, int] | None) -> str:
    """Why a message does nothing in a run that is in this state and generation."""
    if peeked is None:
        return "the run is gone: it was forgotten, or has expired"
    state, generation = peeked
    if state is State.SUCCEEDED:
        return "the run has ended without the job"
    if state is State.CANCELLED:
        return "the run was cancelled"
    if generation != header.generation:
        return f"the run was resumed; this message is of generation {header.generation}"
    if header.unless:
        return "the job is not needed: enough other branches have succeeded; or it is a copy"
    return "this attempt of the job, or a later one, has ended; this message is a copy"


def put_off(task: Any, header: Header, countdown: float) -> None:
    """Send the message of the running *task* again, for later."""
    headers = {**(task.request.headers or {}), NAME: header.to_dict()}
    task.signature_from_request(
        task.request, retries=task.request.retries, countdown=countdown, headers=headers
    ).apply_async()


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
