"""The internal Celery tasks, and what catches the ends of jobs that do not pass through `task`.

They are registered with every app of a process that imports celery_clutch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from celery import Task, shared_task, signals
from celery.canvas import Signature
from celery.exceptions import (
    ChordError,
    Ignore,
    NotRegistered,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.worker.control import inspect_command

from ..compile import canvas, compat, pages, publish
from ..compile.header import NAME, Header, Lane
from ..compile.pages import Item
from ..compile.record import Held
from ..errors import (
    ConfigurationError,
    CorruptRecord,
    MissingResult,
    NestedClutchFailed,
    StoreUnavailable,
)
from ..extend.plugins import runtime
from ..model import codec
from ..model.status import State
from ..stores.base import Begun, Verdict
from .attempt import Attempt, complete_held, too_late
from .handlers import announce, describe, fail
from .task import ClutchTask

logger = logging.getLogger(__name__)


class InternalTask(Task):
    """What the internal tasks have in common: they go on trying while the store is away."""

    abstract = True
    autoretry_for = (StoreUnavailable,)
    max_retries = 60
    retry_backoff = 2
    retry_backoff_max = 60
    acks_late = True
    typing = False

    def attempt(self) -> Attempt:
        """The attempt of this request. Internal tasks in a run always have a header."""
        header = Header.of(self.request)
        assert header is not None, f"{self.name} was sent without a {NAME} header"
        return Attempt(self.app, header, self.request, self.name)

    @property
    def awaited(self) -> bool:
        """Whether anything follows this task, in a chain or a chord, or is linked to it."""
        request = self.request
        return bool(request.chord or request.chain or request.callbacks)

    def give_way(self, other: Signature) -> Any:
        """Put *other* in this task's place; where nothing waits for it that is to send it."""
        if not self.awaited:
            return publish.send(self.app, other)
        canvas.drop_own_errbacks(self.request)
        return publish.replace(self, other)


def _undone(attempt: Attempt, items: Sequence[Item]) -> Sequence[Item]:
    """*items* without what has a result already, which only in a resumed run can be."""
    if not attempt.header.generation:
        return items
    slots = list(pages.slots(items))
    store = attempt.store
    return pages.without(items, store.patiently(store.finished, attempt.header.run, slots))


def _begin(attempt: Attempt) -> Begun | None:
    """What the store says; None when it is done already.

    Raises:
        Ignore: the message is of an older generation, or its run was cancelled.
    """
    begun = attempt.begin()
    if begun.verdict is Verdict.DROP:
        raise Ignore(f"run {attempt.header.run} was cancelled, resumed or forgotten")
    if begun.verdict is Verdict.DONE:
        attempt.join()
        return None
    return begun


@shared_task(name=canvas.EXPAND, base=InternalTask, bind=True)
def expand(self: InternalTask, page: str) -> Any:
    """Compile a page and put it in this task's place."""
    attempt = self.attempt()
    header, store = attempt.header, attempt.store
    peeked = store.patiently(store.peek, header.run)
    if peeked is None or peeked[0] is State.CANCELLED or peeked[1] != header.generation:
        raise Ignore(f"run {header.run} was cancelled, resumed or forgotten")
    items = _undone(attempt, canvas.load_page(store, header.run, page))
    compiled = canvas.Compiler(self.app, header).page(items, counted=bool(self.request.chord))
    return None if compiled is None else self.give_way(compiled)


@shared_task(name=canvas.LANE, base=InternalTask, bind=True)
def lane(self: InternalTask) -> Any:
    """Put the next branch of a narrow parallel, and this lane behind it, in this task's place."""
    attempt = self.attempt()
    header, store = attempt.header, attempt.store
    own = header.lane
    assert own is not None
    number = store.patiently(
        store.take, header.run, own["at"], str(own["lane"]), own["number"], header.generation
    )
    if number < 0:
        raise Ignore(f"run {header.run} was cancelled, resumed or forgotten, or the lane went on")
    if number >= own["width"]:
        return None
    (chunk,) = canvas.load_page(store, header.run, pages.lane_page(own["at"], number))
    assert isinstance(chunk, pages.ParallelItem)
    here = Lane(**{**own, "number": number})
    compiler = canvas.Compiler(self.app, replace(header, lane=here))
    branch = compiler.page(_undone(attempt, chunk.branches[number % pages.LANE]))
    following = compiler.lane(here, bool(self.request.chord))
    return self.give_way(publish.followed(branch, [following]) if branch else following)


@shared_task(name=canvas.CLOSE, base=InternalTask, bind=True)
def close(self: InternalTask, scope: str | None = None) -> None:
    """Gather the results of a parallel, or tell of the end of a subtree, or just end a chord."""
    if Header.of(self.request) is None:
        return
    attempt = self.attempt()
    if not _begin(attempt):
        publish.follow(self)
        return
    data = b"null"
    if attempt.header.previous:
        slots, _ = pages.expand_slots(attempt.header.previous)
        values = canvas.read_raw(attempt.store, attempt.header.run, slots)
        data = b"[" + b",".join(values) + b"]"
    done = attempt.complete(Held(data))
    if scope is not None and done.fresh:
        announce(self.app, attempt.header.run, "on_success", scope)
    publish.follow(self)


@shared_task(name=canvas.COLLECT, base=InternalTask, bind=True)
def collect(self: InternalTask, value: Any = None) -> Any:
    """Stash what the task before returned: one that is not a ClutchTask, or a replacement."""
    attempt = self.attempt()
    begun = _begin(attempt)
    if begun is None:
        return publish.follow(self)
    try:
        data = attempt.encode(value)
    except Exception as exc:
        attempt.fail(exc, final=True)
        raise
    held = Held() if begun.held is None else Held.loads(begun.held)
    attempt.complete(Held(data, changes=held.changes))
    publish.follow(self)
    return value if self.request.callbacks else None  # for the links of the job itself


@shared_task(name=canvas.SETTLE, base=InternalTask, bind=True)
def settle(self: InternalTask, *_: Any) -> Any:
    """Complete a job with the value it was holding: the clutches nested in it have succeeded."""
    attempt = self.attempt()
    begun = _begin(attempt)
    if begun is None:
        return publish.follow(self)
    try:
        if begun.held is None:
            raise NestedClutchFailed(f"the value of job {attempt.header.at} is no longer held")
        held = Held.loads(begun.held)
        complete_held(attempt, held)
    except (NestedClutchFailed, MissingResult, CorruptRecord) as exc:
        attempt.fail(exc, final=True)
        raise
    publish.follow(self)
    return codec.decode_result(held.value) if self.request.callbacks else None


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
        _record(own.app, header, request, exc, traceback)
    except Exception:
        logger.exception("the failure of a job could not be recorded")


def _record(app: Any, header: Header, request: Any, exc: Any, traceback: Any) -> None:
    if isinstance(exc, ChordError) and "Callback error" not in str(exc):
        return  # a header task has failed, and has recorded that itself
    if not isinstance(exc, BaseException):
        exc = RuntimeError(str(exc) if exc else f"task {request} failed")
    task = getattr(request, "task", "") or ""
    failure = describe(exc, header.at, task, request, traceback or "")
    number = int(getattr(request, "retries", 0) or 0) + 1
    lost = isinstance(exc, (WorkerLostError, TimeLimitExceeded))
    store = runtime(app).store
    if not lost and store.patiently(store.finished, header.run, [header.slot]):
        # The job has its result, so what failed is Celery's own work behind it: sending what
        # follows.
        header = header.elsewhere(header.at, f"{header.at}>")
    failure = replace(failure, attempt=number, final=True)
    fail(app, header, failure, os.urandom(8).hex())


@signals.task_revoked.connect(weak=False)
def _on_revoked(sender: Any = None, request: Any = None, **info: Any) -> None:
    """Revoked and expired jobs have no errback."""
    expired = info.get("expired")
    exc: Exception = TaskRevokedError("expired" if expired else "revoked")
    header = Header.of(request)
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


@inspect_command(name="clutch_hello")
def _hello(state: Any, **_: Any) -> dict[str, Any]:
    """The time here and our version, for ``celery clutch doctor``."""
    try:
        own = version("celery-clutch")
    except PackageNotFoundError:  # run from a checkout
        own = ""
    return {"time": time.time(), "version": own}


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
