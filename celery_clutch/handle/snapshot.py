"""What is known of a run, read from the store and asked of workers, for `why`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery

from ..compile import canvas, pages, record
from ..compile.pages import is_direct
from ..errors import RunNotFound
from ..extend.plugins import runtime
from ..model import plan
from ..model.status import State
from ..model.workers import Workers
from ..runtime import workers
from ..stores.base import Missing, Record, ResultStore
from . import tree, why
from .why import Pending, Snapshot

SWEEP = "celery_clutch.sweep"


def take(
    app: Celery, run: str, asked: Workers | None = None, *, most: float = math.inf
) -> Snapshot:
    """What is known of *run*, and of those nested in it.

    Args:
        app: the Celery app.
        run: its id.
        asked: what workers have answered.
        most: the plan of a run of more jobs is not read.

    Raises:
        RunNotFound: there is no such run.
    """
    store = runtime(app).store
    found = store.read(run)
    if found is None:
        raise RunNotFound(f"there is no run {run!r} in {store!r}")
    return _take(app, found, store.owners(), asked, most)


def draining(store: ResultStore, run: str, state: State) -> int:
    """How many jobs still run of a run that is in this *state*; 0 if it has not failed, and was not
    cancelled."""
    if state not in (State.FAILED, State.CANCELLED):
        return 0
    leases = store.leases(run).values()
    if not leases:
        return 0
    owners = store.owners()
    return sum(owners.get(lease.owner, 0.0) > 0 for lease in leases)


def remaining(app: Celery, run: str) -> dict[tuple[str, str], str]:
    """What is left of *run*: the address of the first job of each task and queue."""
    store = runtime(app).store
    found, root = store.read(run), _plan(store, run)
    if found is None or root is None:
        return {}
    left = why.remaining(tree.of(store, root, found))
    addresses: dict[tuple[str, str], str] = {}
    for each in left:
        addresses.setdefault((each.job.task, queue_of(app, each)), each.address)
    return addresses


def queue_of(app: Celery, pending: Pending) -> str:
    """The queue that the message of a job goes to, as far as its options and routes say it."""
    job = pending.job
    options = dict(job.options)
    if pending.queue:
        options["queue"] = pending.queue
    return routed(app, job.task, options, job.args, job.kwargs)


def routed(app: Celery, task: str, options: Any = None, args: Any = (), kwargs: Any = None) -> str:
    """The queue of a message with these *options*; "" where routes name none, or fail."""
    try:
        route = app.amqp.router.route(dict(options or {}), task, args, kwargs or {})
    except Exception:  # somebody's router, or a queue that may not be made
        return ""
    queue = route.get("queue")
    return str(getattr(queue, "name", queue or ""))


def queues_of(app: Celery) -> set[str]:
    """The queues that *app* sends to, as far as its routes say."""
    routes = {queue for name in app.tasks if (queue := routed(app, name))}
    return {app.conf.task_default_queue, *routes}


def schedules_sweep(app: Celery) -> bool:
    """Whether the sweep is in the app's ``beat_schedule``, or in that of django-celery-beat."""
    entries = dict(app.conf.beat_schedule or {}).values()
    if any(_task_of(entry) == SWEEP for entry in entries):
        return True
    # Imported if it is among Django's INSTALLED_APPS, and not otherwise.
    models = sys.modules.get("django_celery_beat.models")
    if models is None:
        return False
    try:
        return bool(models.PeriodicTask.objects.filter(task=SWEEP, enabled=True).exists())
    except Exception:  # its database is away, or has no tables: nobody can know
        return False


def _task_of(entry: Any) -> str:
    return str(entry.get("task") if isinstance(entry, dict) else getattr(entry, "task", ""))


def _take(app: Celery, found: Record, owners: Any, asked: Workers | None, most: float) -> Snapshot:
    by = runtime(app)
    store, run = by.store, found.run
    root, drawn, pending = None, None, list[Pending]()
    if found.jobs <= most:
        root = _plan(store, run)
    if root is not None:
        drawn = tree.of(store, root, found)
        pending = why.pending(drawn, found.created_at)
    queues = {each.address: queue_of(app, each) for each in pending}
    if asked is not None:
        wanted = sorted({queue for queue in queues.values() if queue} - asked.lengths.keys())
        asked = _with_lengths(app, asked, wanted)
    return Snapshot(
        record=found,
        now=time.time(),
        grace=by.settings.grace,
        lease=by.settings.lease,
        tree=drawn,
        leases=store.leases(run),
        owners=owners,
        pending=pending,
        queues=queues,
        internal=_internal(app, store, found, pending),
        ours=queues_of(app) if asked else (),
        sweeps=schedules_sweep(app),
        nested=_nested(app, found, owners, asked, most),
        workers=asked,
        store=workers.described(app),
    )


def _nested(app: Celery, found: Record, owners: Any, asked: Workers | None, most: float) -> Any:
    store = runtime(app).store
    inside: dict[str, dict[str, Snapshot | None]] = {}
    for address, runs in record.held_runs(found).items():
        if len(inside) == why.LISTED:
            break
        inside[address] = {}
        for run in runs[: why.LISTED]:
            inner = store.read(run)
            inside[address][run] = _take(app, inner, owners, asked, most) if inner else None
    return inside


def _internal(
    app: Celery, store: ResultStore, found: Record, pending: Sequence[Pending]
) -> list[str]:
    """The queue of what sends the first messages, where a worker has to do that."""
    if not pending:
        return []
    data = store.page(found.run, pages.ROOT)
    if data is Missing or (is_direct(pages.loads(data)) and not found.generation):
        return []
    queue = record.Meta.loads(found.meta).scope("").queue
    return [queue or routed(app, canvas.ADVANCE)]


def _plan(store: ResultStore, run: str) -> plan.Series | None:
    data = store.page(run, canvas.PLAN)
    if data is Missing:
        return None
    root = plan.loads(pages.decompress(data))
    return root if isinstance(root, plan.Series) else None


def _with_lengths(app: Celery, asked: Workers, queues: Sequence[str]) -> Workers:
    known = {**asked.lengths, **workers.lengths(app, queues)}
    return Workers(asked.all, asked.timeout, asked.asked, asked.heard, known)
