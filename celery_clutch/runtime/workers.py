"""What workers are asked, and what they answer.

Whether a worker has the same store as whoever asks is not told by URLs, which can name one database
in many ways: it has told its store the names of its processes, as owners of leases, and these are
in the store of whoever asks, or are not.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

from celery import Celery
from celery.worker import state as worker_state

from ..compile.header import NAME, is_ours
from ..errors import ClutchError
from ..extend.plugins import runtime
from ..model.workers import JOBS, Worker, Workers
from .leases import Renewal

HELLO = "clutch_hello"
"""The inspect command that workers answer."""


def answer(state: Any) -> dict[str, Any]:
    """What the worker of *state* (Celery's of control commands) says of itself.

    Nothing here waits for store or broker: the worker is busy with it.
    """
    consumer = state.consumer
    renewal: Renewal | None = getattr(consumer.controller, "clutch_renewal", None)
    task_consumer = getattr(consumer, "task_consumer", None)
    queues = getattr(task_consumer, "queues", ())
    said: dict[str, Any] = {
        "time": time.time(),
        "versions": {
            "celery-clutch": _version("celery-clutch"),
            "celery": _version("celery"),
            "kombu": _version("kombu"),
            "python": platform.python_version(),
        },
        "queues": sorted(queue.name for queue in queues),
        "tasks": sorted(state.app.tasks),
        "jobs": list(islice(_jobs(), JOBS)),
    }
    said["store"], said["trouble"] = _store(state.app)
    if renewal is not None:
        renewed = renewal.renewed
        said["owners"] = list(renewal.owners)
        said["renewed"] = None if renewed is None else time.monotonic() - renewed
        said["trouble"] = said["trouble"] or renewal.trouble
    return said


def ask(app: Celery, timeout: float, names: Collection[str] | None = None) -> Workers:
    """Ask the workers (those of these *names*), which have *timeout* seconds to answer.

    Raises:
        StoreUnavailable: the store cannot be asked which of them it knows.
        compat.BROKER_ERRORS: the broker is away.
    """
    asked = time.time()
    known = None if names is None else sorted(names)
    limit = None if known is None else len(known)
    replies = app.control.broadcast(
        HELLO, reply=True, destination=known, timeout=timeout, limit=limit
    )
    heard = time.time()
    said = dict(item for reply in replies or () for item in reply.items())
    strangers = {name for name, answers in said.items() if "versions" not in answers}
    owners = _owners(app)
    workers = [_worker(name, said[name], owners) for name in sorted(said) if name not in strangers]
    workers += _strangers(app, strangers, timeout)
    workers.sort(key=lambda worker: worker.name)
    return Workers(tuple(workers), timeout, asked, heard)


def lengths(app: Celery, queues: Iterable[str]) -> dict[str, int | None]:
    """How many messages lie in each queue; None where the broker does not say.

    A queue that is not there has none: Redis has no empty ones.
    """
    found: dict[str, int | None] = {}
    with app.connection_for_write() as connection:
        for queue in queues:
            try:
                with connection.channel() as channel:  # one that was refused something is closed
                    found[queue] = channel.queue_declare(queue, passive=True).message_count
            except connection.channel_errors:
                found[queue] = 0
            except Exception:
                found[queue] = None
    return found


def _jobs() -> Iterator[str]:
    """The jobs that this worker has messages of: prefetched, or running."""
    for request in list(worker_state.reserved_requests):
        data = (request.request_dict or {}).get(NAME)
        if is_ours(data):
            yield f"{data['run']} {data['at']}"


def _worker(name: str, said: Mapping[str, Any], owners: Collection[str] | None) -> Worker:
    own = tuple(said.get("owners", ()))
    renewed = said.get("renewed")
    same = None
    if renewed is not None and owners is not None:
        same = any(owner in owners for owner in own)
    return Worker(
        name=name,
        queues=frozenset(said["queues"]),
        tasks=frozenset(said["tasks"]),
        jobs=frozenset(said["jobs"]),
        versions=said["versions"],
        time=said["time"],
        store=said["store"],
        owners=own,
        renewed=renewed,
        trouble=said["trouble"],
        same_store=same,
    )


def _strangers(app: Celery, names: Collection[str], timeout: float) -> list[Worker]:
    """Workers that know nothing of clutches, as far as Celery itself tells of them."""
    if not names:
        return []
    inspect = app.control.inspect(sorted(names), timeout=timeout, limit=len(names))
    queues, tasks = inspect.active_queues() or {}, inspect.registered() or {}
    return [
        Worker(
            name,
            frozenset(queue["name"] for queue in queues.get(name) or ()),
            frozenset(task.partition(" ")[0] for task in tasks.get(name) or ()),
        )
        for name in names
    ]


def _owners(app: Celery) -> Collection[str] | None:
    try:
        return runtime(app).store.owners()
    except ClutchError:
        return None  # whoever asks says so


def _store(app: Celery) -> tuple[str, str]:
    """The store of *app* for people to read, and what is wrong with it."""
    try:
        return described(app), ""
    except ClutchError as exc:
        return "", str(exc)


def described(app: Celery) -> str:
    """The store of *app*, without credentials, and the prefix of its keys."""
    by = runtime(app)
    prefix = by.settings.key_prefix
    return f"{by.store!r}" if prefix == "clutch" else f"{by.store!r} with the prefix {prefix}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout
        return ""
