"""What follows from the store's answers: handlers, observers, and the run around.

Handlers and observers harm nothing: whatever goes wrong with them is logged.
"""

from __future__ import annotations

import logging
import time
import traceback as traceback_module
from dataclasses import replace
from types import TracebackType
from typing import Any

import orjson
from celery import Celery

from .. import signals
from ..compile import canvas, publish, record
from ..compile.header import Header
from ..errors import NestedClutchFailed
from ..extend import observers
from ..extend.plugins import runtime
from ..model.events import Finished, JobFailed, StepSettled
from ..model.plan import Scope
from ..model.status import Failure, isoformat
from ..stores.base import ENDED, Record, Verdict

logger = logging.getLogger(__name__)


def fail(app: Celery, header: Header, failure: Failure, token: str, *, loud: bool = True) -> None:
    """Record *failure* for the job of *header*; a death goes up to the job that nested the run."""
    store = runtime(app).store
    done = store.patiently(
        store.fail,
        header.run,
        header.at,
        header.slot,
        orjson.dumps(failure.to_dict()),
        attempt=failure.attempt,
        final=failure.final,
        generation=header.generation,
        token=token,
        settles=header.settled_by_failure(loud=loud),
    )
    if done.recorded:
        observers.emit(runtime(app), signals.clutch_job_failed, lambda: failed(header, failure))
    for step in done.settled:
        settled(app, header, step, failed=True)
    for step in done.reports:
        report(app, header.run, step)
    if done.died:
        announce(app, header.run, "on_death", header.at)
        finished(app, header.run)
        _fail_parent(app, header.run, failure, token)
    if done.recorded and failure.final and header.lane:
        _go_on(app, header)


def _go_on(app: Celery, header: Header) -> None:
    """The branch that a lane ran is dead: let the lane take the next one.

    Nothing waits for the lane any more; like the other branches of a parallel, what is in it runs.
    """
    lane, store = header.lane, runtime(app).store
    while lane:
        here = replace(header, lane=lane["outer"])
        # Of several deaths in one branch the first lets the lane go on.
        mark = f"{lane['at']} lane {lane['lane']} after {lane['number']}"
        try:
            begun = store.patiently(store.begin, header.run, mark, mark, header.generation, 1)
            if begun.verdict is Verdict.RUN:
                publish.send(app, canvas.Compiler(app, here).lane(lane, counted=False))
        except Exception:
            logger.exception("a lane of %s in run %s stops here", lane["at"], header.run)
        lane = lane["outer"]


def failed(header: Header, failure: Failure) -> JobFailed:
    """*failure* as observers are told of it."""
    return JobFailed(
        header.run,
        header.generation,
        header.at,
        failure.task,
        failure.task_id,
        failure.attempt,
        time.time(),
        failure,
        header.context,
    )


def settled(app: Celery, header: Header, step: str, *, failed: bool) -> None:
    """Tell observers that a step has settled."""
    observers.emit(
        runtime(app),
        signals.clutch_step_settled,
        lambda: StepSettled(
            header.run, header.generation, step, failed, time.time(), header.context
        ),
    )


def finished(app: Celery, run: str) -> None:
    """Tell observers that a run has ended."""

    def make() -> Finished | None:
        found = runtime(app).store.read(run)
        if found is None or found.state not in ENDED:  # or somebody has resumed it already
            return None
        meta = record.Meta.loads(found.meta)
        return Finished(
            run,
            meta.name,
            meta.tags,
            found.state,
            found.generation,
            meta.jobs,
            found.done,
            found.created_at,
            found.ended_at or found.updated_at,
            meta.parent.to_status() if meta.parent else None,
            meta.context,
        )

    observers.emit(runtime(app), signals.clutch_finished, make)


def _fail_parent(app: Celery, run: str, failure: Failure, token: str) -> None:
    store = runtime(app).store
    found = store.patiently(store.read, run)
    parent = found and record.Meta.loads(found.meta).parent
    above = parent and store.patiently(store.peek, parent.header["run"])
    if not parent or not above:
        return
    header = record.parent_header(parent, above[1])
    name = f"{NestedClutchFailed.__module__}.{NestedClutchFailed.__qualname__}"
    message = f"job {failure.address} of the nested clutch {run}: {failure.message}"
    own = replace(
        failure,
        address=header.at,
        task=parent.task,
        task_id=parent.task_id,
        exception=name,
        message=message,
        attempt=parent.attempt,
        final=True,
    )
    fail(app, header, own, token, loud=not parent.quiet)


def describe(
    exc: BaseException,
    address: str,
    task: str,
    request: Any,
    traceback: TracebackType | str | None = None,
) -> Failure:
    """*exc* as a `Failure` of attempt 1, not final."""
    if isinstance(traceback, str):
        text = traceback
    else:
        tb = traceback or exc.__traceback__
        text = "".join(traceback_module.format_exception(type(exc), exc, tb))
    kind = type(exc)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return Failure(
        address=address,
        task=task,
        task_id=str(getattr(request, "id", "") or ""),
        exception=f"{module}{kind.__qualname__}",
        message=_printable(_text(exc))[:1000],
        traceback=_printable(text)[-4000:],
        attempt=1,
        final=False,
        at=isoformat(time.time()),
    )


def report(app: Celery, run: str, step: str) -> None:
    """Send ``on_failure`` about *step*."""
    _send(app, run, "on_failure", step, step)


def announce(app: Celery, run: str, handler: str, address: str) -> None:
    """Send ``on_success`` or ``on_death`` of the scope at *address*."""
    _send(app, run, handler, address, None)


def _send(app: Celery, run: str, handler: str, address: str, step: str | None) -> None:
    # A handler that cannot be sent must not harm the run: whatever goes wrong is logged.
    try:
        store = runtime(app).store
        found: Record | None = store.patiently(store.read, run)
        if found is None:
            return
        scope: Scope = record.Meta.loads(found.meta).scope(address)
        wanted = getattr(scope, handler)
        if wanted is None:
            return
        signature = app.signature(dict(wanted))
        if scope.queue:
            signature.set(queue=scope.queue)
        signature.apply_async((record.status(found, step=step).to_dict(),))
    except Exception:
        logger.exception("%s of run %s could not be sent", handler, run)


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # somebody's __str__
        return f"<{type(exc).__name__} whose str() fails>"


def _printable(text: str) -> str:
    # Lone surrogates have no JSON form.
    return text.encode("utf-8", "backslashreplace").decode()
