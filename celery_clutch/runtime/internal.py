"""The internal Celery tasks, and what catches the ends of jobs that do not pass through `task`.

They are registered with every app of a process that imports celery_clutch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from celery import Task, shared_task, signals
from celery.exceptions import (
    ChordError,
    Ignore,
    NotRegistered,
    Reject,
    TaskRevokedError,
    WorkerLostError,
)
from celery.states import IGNORED, REJECTED
from celery.worker.control import inspect_command

from ..compile import canvas, compat, record
from ..compile.header import NAME, Header
from ..errors import ConfigurationError, CorruptRecord, StoreUnavailable
from ..extend.plugins import runtime
from ..model.status import State
from ..stores.base import Verdict
from . import advance, journal, workers
from .attempt import FRESH, Attempt, lost, put_off, too_late, why_dropped
from .handlers import describe
from .task import ATTEMPT, ClutchTask

logger = logging.getLogger(__name__)


COLLECTS = 1_000_000
"""The turn of what collects a value: later than any attempt of the job itself."""


class InternalTask(Task):
    """What the internal tasks have in common: they go on trying while the store is away."""

    abstract = True
    autoretry_for = (StoreUnavailable,)
    max_retries = 60
    retry_backoff = 2
    retry_backoff_max = 60
    acks_late = True
    typing = False

    def header(self) -> Header:
        """The header of this request. Internal tasks in a run always have one."""
        header = Header.of(self.request)
        assert header is not None, f"{self.name} was sent without a {NAME} header"
        return header

    @property
    def awaited(self) -> bool:
        """Whether anything follows this task, in a chain or a chord, or is linked to it."""
        request = self.request
        return bool(request.chord or request.chain or request.callbacks)


@shared_task(name=canvas.ADVANCE, base=InternalTask, bind=True)
def advance_page(self: InternalTask, page: str, rest: bool = False) -> None:
    """Send a page; with *rest* what is left of the run from that page on."""
    header = self.header()
    store = runtime(self.app).store
    peeked = store.patiently(store.peek, header.run)
    if peeked is None or _is_over(peeked, header):
        why = why_dropped(header, peeked)
        journal.dropped(header, why)
        raise Ignore(why)
    outbox = advance.outbox_of(self.app, header.origin)
    try:
        if rest:
            outbox.rest(page)
        else:
            outbox.expanded(page)
    except advance.UNREADABLE as exc:
        advance.unreadable(self.app, header.origin, f"page {page}", exc)
        raise
    outbox.send()


@shared_task(name=canvas.COLLECT, base=InternalTask, bind=True)
def collect(
    self: InternalTask, value: Any = None, changes: Mapping[str, str | None] | None = None
) -> Any:
    """Record what the task before returned: one that is not a ClutchTask, or a replacement."""
    attempt = Attempt(self.app, self.header(), self.request, self.name, COLLECTS)
    begun = attempt.begin()
    if begun.verdict is Verdict.DROP and not _is_kept(attempt):
        raise Ignore(attempt.dropped())
    if begun.verdict is Verdict.BUSY:
        why = f"{begun.owner} has the job; this message is a copy"
        journal.dropped(attempt.header, why)
        raise Ignore(why)
    if begun.verdict is Verdict.DONE:
        attempt.copied()
        if not attempt.repeat():
            put_off(self, attempt.header, FRESH)
        self.request.chain = None
        return attempt.recorded() if attempt.header.keep else None
    try:
        data = attempt.encode(value)
    except Exception as exc:
        attempt.fail(exc, final=True)
        raise
    attempt.complete(record.Held(data, changes=record.changes_from_json(changes or {})))
    self.request.chain = None
    # For the links of the job itself, whose place this task has taken, or for whoever has its id.
    return value if self.request.callbacks else attempt.kept(data)


def _is_kept(attempt: Attempt) -> bool:
    """Whether a value that nobody waits for any longer is recorded.

    It is as with any job that was running when its run was cancelled or resumed.
    """
    header, store = attempt.header, attempt.store
    peeked = store.patiently(store.peek, header.run)
    return peeked is not None and _is_over(peeked, header)


def _is_over(peeked: tuple[State, int], header: Header) -> bool:
    """Whether nobody waits any longer for what a message of *header* does, in a run that is in this
    state and generation."""
    state, generation = peeked
    return state in (State.CANCELLED, State.SUCCEEDED) or generation != header.generation


@shared_task(name=canvas.ON_ERROR, base=InternalTask)
def on_error(
    request: Any, exc: Any = None, traceback: Any = None, job: dict[str, Any] | None = None
) -> None:
    """Record what ended a job where its own code could not: a lost worker, a hard time limit.

    Celery calls errbacks inline with a request, in the child or in the worker's main process, and
    publishes them with a task id where they are not registered. Up to 5.5 one that raises is run
    three times and overwrites the stored result, so this one does not.
    """
    try:
        own = compat.current_task()  # Celery calls it as a task, so this is on_error itself
        header = Header.from_dict(job) if job else Header.of(request)
        if header is None:  # the body of a chord whose header has failed; that is recorded there
            return
        attempt: Attempt | None = getattr(request, ATTEMPT, None)
        if attempt is not None and attempt.dead:
            return  # recorded, and what follows is sent: not twice
        _record(own.app, header, request, exc, traceback)
    except Exception:
        logger.exception("the failure of a job could not be recorded")


def _record(app: Any, header: Header, request: Any, exc: Any, traceback: Any) -> None:
    if isinstance(exc, ChordError) and "Callback error" not in str(exc):
        return  # a header task has failed, and has recorded that itself
    if not isinstance(exc, BaseException):
        exc = RuntimeError(str(exc) if exc else f"task {request} failed")
    store = runtime(app).store
    if store.patiently(store.finished, header.run, [header.at]):
        return  # what failed is Celery's own work behind a job that has its result
    task = getattr(request, "task", "") or ""
    number = int(getattr(request, "retries", 0) or 0) + 1
    # What stands in the place of a job has no header, and no lease that could run out.
    leased = isinstance(app.tasks.get(task), ClutchTask) and Header.of(request) is not None
    if leased and isinstance(exc, Reject):
        return  # recorded where it was raised; since 5.7 Celery calls errbacks as well
    if leased and isinstance(exc, WorkerLostError):
        _give_back(app, header, number)
        return
    failure = describe(exc, header.at, task, request, traceback or "")
    failure = replace(failure, attempt=number, final=True)
    advance.fail(app, header, failure, os.urandom(8).hex())


def _give_back(app: Any, header: Header, number: int) -> None:
    """The process that ran a job is gone: another gets it, once its lease has run out."""
    own = runtime(app)
    own.store.patiently(own.store.remind, header.run, {header.due: time.time()})
    outbox = advance.outbox_of(app, header.origin)
    outbox.job(header.page, header.at, number - 1)
    outbox.send()


@signals.task_revoked.connect(weak=False)
def _on_revoked(sender: Any = None, request: Any = None, **info: Any) -> None:
    """Revoked and expired jobs have no errback."""
    expired = info.get("expired")
    exc: Exception = TaskRevokedError("expired" if expired else "revoked")
    try:
        header = Header.of(request)
    except CorruptRecord:
        return
    if expired and header and header.expires and time.time() > header.expires:
        exc = too_late(header)
    _record_signal(sender.app, request, exc)


@signals.task_unknown.connect(weak=False)
def _on_unknown(sender: Any = None, message: Any = None, name: Any = None, **info: Any) -> None:
    """Unknown tasks have no errback, and no request."""
    data = (getattr(message, "headers", None) or {}).get(NAME)
    if data:
        request = _Unknown(str(name), str(info.get("id", "")), data)
        _record_signal(sender.app, request, NotRegistered(str(name)))


@signals.task_retry.connect(weak=False)
def _on_retry(
    sender: Any = None, request: Any = None, reason: Any = None, einfo: Any = None, **_: Any
) -> None:
    """The first failed attempt of a task that is not a ClutchTask."""
    if sender is None or isinstance(sender, (ClutchTask, InternalTask)):
        return
    cause = getattr(reason, "exc", None) or reason
    traceback = getattr(einfo, "traceback", None)
    _record_signal(sender.app, request, cause, final=False, traceback=traceback)


@signals.task_postrun.connect(weak=False)
def _on_postrun(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    """A task that is not a ClutchTask and ends without an outcome, which has no errback."""
    if state not in (IGNORED, REJECTED) or isinstance(task, (ClutchTask, InternalTask)):
        return
    if isinstance(retval, Reject):
        if retval.requeue and task.acks_late:
            return  # it comes again
        how = "raised Reject"
    elif compat.is_replacement(retval):
        return
    else:
        how = "raised Ignore"
    try:
        header = Header.of(task.request)
        if header is not None:
            attempt = Attempt(task.app, header, task.request, task.name)
            attempt.fail(lost(attempt, how, retval), final=True)
    except Exception:
        logger.exception("the failure of a job could not be recorded")


@signals.worker_ready.connect(weak=False)
def _on_worker_ready(sender: Any = None, **_: Any) -> None:
    """Say at start what is wrong with the store."""
    try:
        for finding in runtime(sender.app).store.check():
            logger.warning("%s", finding)
    except ConfigurationError:
        pass  # an app without clutches; engage says what is missing
    except Exception:
        logger.exception("the result store could not be checked")


@inspect_command(name=workers.HELLO)
def _hello(state: Any, **_: Any) -> dict[str, Any]:
    """What this worker is: its store, queues, tasks, versions, processes and clock."""
    return workers.answer(state)


class _Unknown:
    def __init__(self, task: str, id: str, data: dict[str, Any]) -> None:
        self.task, self.id, self.retries = task, id, 0
        self.headers = {NAME: data}


def _record_signal(
    app: Any, request: Any, exc: Any, *, final: bool = True, traceback: Any = None
) -> None:
    try:
        header = Header.of(request)
        if header is None:
            return
        attempt = Attempt(app, header, request, getattr(request, "task", "") or "")
        attempt.fail(exc, final=final, traceback=traceback or "")
    except Exception:
        logger.exception("the failure of a job could not be recorded")
