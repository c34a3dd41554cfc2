"""Runs are started, and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from .. import signals
from ..compile import canvas, direct, pages, publish, record
from ..compile.canvas import Prepared
from ..errors import AlreadyEngaged, StoreUnavailable
from ..extend import observers
from ..extend.plugins import Runtime, runtime
from ..model.status import State
from ..stores.rows import ROOT
from . import advance, eager, journal
from .outbox import Outbox, begins_at


def engage(prepared: Prepared, options: Mapping[str, Any], *, named: bool = False) -> None:
    """Store a run and send its first messages; *options* are for those.

    When they cannot be sent the run is deleted again, so that nothing is left of it.

    Args:
        prepared: the run.
        options: Celery's.
        named: its id was given by the caller, who may call again when the answer was lost: a run
            of this id of which nothing was sent yet is started, if it is of the same plan.

    Raises:
        AlreadyEngaged: a run with this id exists.
    """
    app = prepared.app
    own = runtime(app)
    since = begins_at(options)
    message = None if named else _only_message(own, prepared, options)
    try:
        prepared.create(time.time() if since is None else since, message)
    except AlreadyEngaged:
        if not (named and _is_unsent(prepared)):
            raise
    if prepared.meta.jobs and not message and not app.conf.task_always_eager:
        try:
            _send(prepared, options, named=named)
        except BaseException:
            own.store.delete(prepared.run)
            raise
    journal.engaged(prepared.run, prepared.meta)
    observers.emit(own, signals.clutch_engaged, prepared.engaged)
    if prepared.meta.jobs and app.conf.task_always_eager:
        _run_now(_first_page(prepared))


def _first_page(prepared: Prepared) -> Outbox:
    """What a run starts with, to be sent."""
    outbox = advance.outbox_of(prepared.app, prepared.origin, grown=False)
    outbox.page(pages.ROOT, prepared.encoded[pages.ROOT])
    return outbox


def _only_message(
    own: Runtime, prepared: Prepared, options: Mapping[str, Any]
) -> tuple[str, bytes] | None:
    """The message that a run starts with, if that is one, and the store can send it."""
    if not prepared.meta.jobs or not direct.of(own).possible:
        return None
    if not pages.is_direct(prepared.first) or len(prepared.first) > 1:
        return None
    outbox = _first_page(prepared)
    if len(outbox.chains) > 1 or outbox.is_to_confirm:
        return None
    try:
        return publish.made(own, outbox.chains[0], options)
    except direct.UNSENT:
        return None


def _run_now(outbox: Outbox) -> None:
    """Run all of it here (``task_always_eager``)."""
    outbox.confirm()
    eager.run(outbox.app, outbox.chains, now=True)


def _send(prepared: Prepared, options: Mapping[str, Any], *, named: bool) -> None:
    """Send the first page where that is small, else what expands it in a worker."""
    app, store = prepared.app, runtime(prepared.app).store
    if pages.is_direct(prepared.first):
        outbox = _first_page(prepared)
    else:
        outbox = advance.outbox_of(app, prepared.origin, grown=False)
        queue = prepared.meta.scope("").queue
        outbox.chains.append([outbox.compiler.advance(pages.ROOT, queue)])
    publish.send(app, outbox.chains, options)
    try:
        if named or not pages.is_direct(prepared.first):
            store.published(prepared.run, [ROOT])
        else:
            outbox.confirm()
    except StoreUnavailable:
        pass  # it stays due, and is sent once more


def _is_unsent(prepared: Prepared) -> bool:
    """Whether the run of this id is the same, and nothing of it was sent as far as is known."""
    store = runtime(prepared.app).store
    found = store.read(prepared.run)
    if found is None or ROOT not in found.due or found.generation:
        return False
    theirs, ours = record.Meta.loads(found.meta), prepared.meta
    same = theirs.jobs == ours.jobs and theirs.name == ours.name
    plan = store.page(prepared.run, canvas.PLAN)
    return same and plan == prepared.encoded[canvas.PLAN]


def resume(app: Celery, run: str, *, retry_tolerated: bool = False) -> bool:
    """Run again what has no result; whether there was anything to resume.

    *retry_tolerated* is as for `ResultStore.transition`.
    """
    reopened = advance.reopen(app, run, retry_tolerated=retry_tolerated)
    if reopened is None:
        return False
    found, meta = reopened
    if found.state is State.SUCCEEDED:
        return True
    origin = meta.origin(run, found.generation)
    outbox = advance.outbox_of(app, origin)
    if app.conf.task_always_eager:
        try:
            outbox.rest(pages.ROOT)
        except advance.UNREADABLE as exc:
            advance.unreadable(app, origin, ROOT, exc)
            return True
        _run_now(outbox)
        return True
    signature = outbox.compiler.advance(pages.ROOT, meta.scope("").queue, rest=True)
    publish.send(app, [[signature]])
    return True
