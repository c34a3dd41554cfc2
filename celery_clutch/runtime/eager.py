"""``task_always_eager``: the same engine over a local queue instead of a broker."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import orjson
from celery import Celery, states
from celery.canvas import Signature
from celery.exceptions import NotRegistered, Retry

from ..compile import canvas
from ..compile.header import NAME, Header
from ..extend.plugins import runtime

_queue: ContextVar[list[list[Signature]] | None] = ContextVar("celery_clutch_queue", default=None)


def run(app: Celery, chains: Sequence[list[Signature]], *, now: bool = False) -> None:
    """Run *chains* and what follows from them, branch by branch; return when nothing is left.

    Within a job, what follows waits until the job has returned, unless it is to be *now*. With
    ``task_eager_propagates`` the error that ends a job is raised, once it is recorded.
    """
    queue = _queue.get()
    if queue is not None and not now:
        queue.extend(reversed(chains))
        return
    todo = list(reversed(chains))
    token = _queue.set(todo)
    try:
        while todo:
            _run(app, todo.pop())
    finally:
        _queue.reset(token)


def _run(app: Celery, tasks: list[Signature]) -> None:
    task, *rest = tasks
    collect = rest[0] if rest and rest[0]["task"] == canvas.COLLECT else None
    try:
        result = _apply(task, plain=collect is not None)
    except NotRegistered as exc:
        _record(app, task, exc)
        return
    except Exception as exc:  # thrown by a retry that Celery has applied itself
        if collect is not None:
            _record(app, task, exc)
        raise
    if collect is not None and result.successful():
        result = collect.apply((result.result,), throw=False)
    if app.conf.task_eager_propagates and result.failed():
        raise result.result


def _record(app: Celery, task: Signature, exc: Exception) -> None:
    """Tell our errback of a failure that Celery has not told it."""
    header = Header.from_dict(task.options["headers"][NAME])
    found = runtime(app).store.read(header.run)
    known = found.failures.get(header.at) if found else None
    attempts = orjson.loads(known)["attempt"] if known else 0
    request = SimpleNamespace(task=task.task, id="", retries=attempts)
    app.tasks[canvas.ON_ERROR](request, exc, None, job=header.to_dict())


def _apply(task: Signature, plain: bool) -> Any:
    """Apply *task* with its retries, and again where a broker would bring its message back.

    Celery throws what asks for a retry where errors propagate.
    """
    while True:
        try:
            result = task.apply(throw=False)
        except Retry as exc:
            task = exc.sig
            continue
        if plain or not _requeued(task, result):
            return result


def _requeued(task: Signature, result: Any) -> bool:
    """Whether the job has put itself back: `clutch_max_starts` says how often it may."""
    rejected = result.state == states.REJECTED
    return rejected and bool(task.type.acks_late and result.result.requeue)
