"""Who is told: the handlers of a clutch, and observers.

Handlers and observers harm nothing: whatever goes wrong with them is logged. Only a broker that is
away is an error to the caller, so that a handler stays due.
"""

from __future__ import annotations

import logging
import time
import traceback as traceback_module
from types import TracebackType
from typing import Any

from celery import Celery, Task

from .. import signals
from ..compile import compat, publish, record
from ..compile.header import Header
from ..extend import observers
from ..extend.plugins import runtime
from ..model.events import Finished, JobFailed, StepSettled
from ..model.status import Failure, State, isoformat, name_of
from ..stores.base import ENDED, Record
from . import journal

logger = logging.getLogger(__name__)

_OF_CLUTCH_TASKS = ("previous_results", "iter_previous_results", "results", "data")


def send(
    app: Celery, found: Record, meta: record.Meta, handler: str, address: str, step: str | None
) -> None:
    """Send *handler* (``on_failure``...) of the scope in force at *address*, if it has one."""
    scope = meta.scope(address)
    wanted = getattr(scope, handler)
    if wanted is None:
        return
    try:
        signature = app.signature(dict(wanted))
        if scope.queue:
            signature.set(queue=scope.queue)
        where = address if step is None else step
        name = {"run": found.run, "gen": found.generation, "at": where, "page": ""}
        # The same for each time it is sent, so that a copy can be recognised.
        signature.options.setdefault("task_id", publish.task_id(name, handler))
        store = runtime(app).store
        skipped, tolerated = record.counted(store, found, meta)
        status = record.status(
            found, store.failures(found.run), step=step, skipped=skipped, tolerated=tolerated
        )
        publish.apply(app, signature, (status.to_dict(),))
    except Exception as exc:
        if isinstance(exc, compat.BROKER_ERRORS) and not app.conf.task_always_eager:
            raise
        logger.exception("%s of run %s could not be sent", handler, found.run)


def chord_failed(app: Celery, found: Record, meta: record.Meta, header: str) -> None:
    """Call the errbacks of the chord whose *header*, ``"<address>!"``, has failed.

    Celery links an errback of a chord to the chords in its header, too: it is called once.
    """
    address = header[:-1]
    body = meta.scope(address).errbacks
    failure = record.death_below(found, address)
    if body is None or failure is None:  # resumed meanwhile
        return
    module, _, name = failure.exception.rpartition(".")
    cause = {"exc_type": name, "exc_message": [failure.message], "exc_module": module or "builtins"}
    reason = f"Dependency {failure.task_id} raised {name}({failure.message!r})"
    try:
        callback = app.signature(dict(body))
        for scope in meta.between(address, failure.address):
            if scope.errbacks:
                _drop_errbacks(callback, _errbacks(app.signature(dict(scope.errbacks))))
        compat.chord_failed(app, callback, reason, cause)
    except Exception as exc:
        if isinstance(exc, compat.BROKER_ERRORS) and not app.conf.task_always_eager:
            raise
        logger.exception("errbacks of a chord in run %s could not be called", found.run)


def _errbacks(sig: Any) -> list[Any]:
    """The errbacks of *sig* and of the signatures in it."""
    found = list(sig.options.get("link_error") or ())
    for inner in compat.parts(sig):
        found.extend(_errbacks(inner))
    return found


def _drop_errbacks(sig: Any, called: list[Any]) -> None:
    errbacks = sig.options.get("link_error") or ()
    sig.options["link_error"] = [errback for errback in errbacks if errback not in called]
    for inner in compat.parts(sig):
        _drop_errbacks(inner, called)


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


def finished(app: Celery, run: str, state: State, why: str = "") -> None:
    """Log, and tell observers, that a run has ended."""
    journal.ended(run, state, why)

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
            found.jobs,
            found.done,
            found.created_at,
            found.ended_at or found.updated_at,
            meta.parent.to_status() if meta.parent else None,
            meta.context,
        )

    observers.emit(runtime(app), signals.clutch_finished, make)


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
    return Failure(
        address=address,
        task=task,
        task_id=str(getattr(request, "id", "") or ""),
        exception=name_of(type(exc)),
        message=_printable(_text(exc) + _hint(exc))[:1000],
        traceback=_printable(text)[-4000:],
        attempt=1,
        final=False,
        at=isoformat(time.time()),
    )


def _hint(exc: BaseException) -> str:
    """What helps a task that is not a ClutchTask, and takes itself for one."""
    wanted = isinstance(exc, AttributeError) and exc.name in _OF_CLUTCH_TASKS
    if wanted and isinstance(getattr(exc, "obj", None), Task):
        return (
            ': it is not a ClutchTask. Set task_cls="celery_clutch:ClutchTask" on the app, or '
            "base=ClutchTask on the task"
        )
    return ""


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # somebody's __str__
        return f"<{type(exc).__name__} whose str() fails>"


def _printable(text: str) -> str:
    # Lone surrogates have no JSON form.
    return text.encode("utf-8", "backslashreplace").decode()
