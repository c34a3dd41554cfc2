"""A Celery app run in this process, with no server: a real worker on a broker in memory."""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, _state, signals
from celery.backends.cache import CacheBackend, DummyClient
from celery.exceptions import WorkerShutdown
from celery.utils.functional import LRUCache
from celery.worker import WorkController, state
from kombu import pools
from kombu.transport import memory, virtual

from ..compile.compat import App
from ..errors import ClutchError, ConfigurationError
from ..extend.plugins import forget_runtime

logger = logging.getLogger(__name__)

STOP_AFTER = 10.0
"""Seconds that jobs which are running when the block ends are given to finish."""

_POLL = 0.01
_TICK = 0.02

_POOLS = ("threads", "solo")
_ENVIRONMENT = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)


class WorkerThread(threading.Thread):
    """Runs a worker until it is *over*.

    Celery's own flags that stop a worker are those of the whole process, and it looks at them only
    every two seconds.
    """

    def __init__(self, worker: WorkController) -> None:
        super().__init__(target=worker.start, name="celery-clutch-embedded", daemon=True)
        self.over = threading.Event()


class Channel(memory.Channel):
    """kombu's memory channel with queues of its own."""

    queues: dict[str, Any] = {}
    events: defaultdict[str, set[Any]] = defaultdict(set)


class Transport(memory.Transport):
    """kombu's memory transport with queues of its own, and an end for the worker that uses it."""

    Channel = Channel
    global_state = virtual.BrokerState()

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        thread = threading.current_thread()
        if isinstance(thread, WorkerThread):
            if thread.over.is_set():
                raise WorkerShutdown(0)
            # Up to 5.6 it acknowledges what is done, and so makes room for more, between calls.
            timeout = None if timeout is None else min(timeout, _POLL)
        super().drain_events(connection, timeout)


class Results(CacheBackend):
    """Celery's memory cache backend with results of its own.

    Celery's are shared by everything in the process, and after 5,000 of them the oldest go; a wide
    parallel step would lose parts of its chord.
    """

    kept = LRUCache(limit=None)

    @property
    def client(self) -> Any:
        client = DummyClient()
        client.cache = self.kept
        return client

    def get_many(self, task_ids: Any, timeout: Any = None, interval: float = 0.5, **kw: Any) -> Any:
        # Up to 5.6 it sleeps for the interval also when it has found everything.
        return super().get_many(task_ids, timeout, min(interval, 0.01), **kw)


_SETTINGS: dict[str, Any] = {
    "broker_url": "memory://localhost",
    "broker_read_url": None,
    "broker_write_url": None,
    "broker_transport": f"{__name__}:{Transport.__qualname__}",
    "broker_transport_options": {"polling_interval": _POLL},
    "broker_use_ssl": False,
    "broker_failover_strategy": None,
    "broker_connection_retry_on_startup": True,
    "result_backend": f"{__name__}:{Results.__qualname__}+memory://",
    "cache_backend_options": {},
    "clutch_store": "memory://",
    "worker_state_db": None,
    "worker_timer_precision": _TICK,
}

_one = threading.Lock()


@contextmanager
def embedded(app: App, *, pool: str = "threads", concurrency: int = 4) -> Iterator[App]:
    """Run *app* in this process for as long as the block lasts, with no server.

    Broker, result backend and result store are in memory and empty at the start. A real worker in
    threads consumes every queue that something is sent to, and also runs tasks that are
    defined inside the block. At the end the worker finishes the jobs that are running (for
    at most `STOP_AFTER` seconds), what is still queued is dropped, and the app is as it was before.

    What differs from a worker of its own: threads know no time limits and cannot be killed, and
    logging is left as it is, so that what the worker logs goes where your own configuration
    sends it.

    Args:
        app: the Celery app.
        pool: ``"threads"``, or ``"solo"`` to run one job at a time.
        concurrency: how many threads run jobs.

    Raises:
        ConfigurationError: ``task_always_eager`` is set, the pool cannot run here, or an embedded
            worker runs in this process already (Celery has one set of worker flags, and one
            default app, for each process).
        ClutchError: at the end, when a job is still running after `STOP_AFTER` seconds.
    """
    if app.conf.get("task_always_eager"):
        raise ConfigurationError(
            "task_always_eager is set, so that jobs run where they are engaged and an embedded "
            "worker would never see one: unset it, or leave embedded() out"
        )
    if pool not in _POOLS:
        raise ConfigurationError(
            f"an embedded worker cannot use the pool {pool!r}: the broker is in the memory of this "
            f"process. Use one of {', '.join(_POOLS)}."
        )
    if not _one.acquire(blocking=False):
        raise ConfigurationError(
            "an embedded worker runs in this process already, and Celery can have but one. Leave "
            "its block before starting another."
        )
    try:
        with _in_memory(app), _as_default(app), _worker(app, pool, concurrency):
            yield app
    finally:
        _one.release()


@contextmanager
def _in_memory(app: Celery) -> Iterator[None]:
    """Broker, backend and store of *app* in memory, and everything as it was afterwards."""
    app.finalize()
    conf, changes = app.conf, dict(app.conf.changes)
    environment = {name: os.environ.pop(name) for name in _ENVIRONMENT if name in os.environ}
    names = ("_pool", "_local", "_backend_cache")
    attributes = {name: getattr(app, name) for name in names}
    producers = app.amqp._producer_pool
    traces = {name: task.__trace__ for name, task in app.tasks.items()}
    try:
        forget_runtime(app)
        conf.update(_SETTINGS)
        _forget_connections(app)
        app._local, app._backend_cache = threading.local(), None
        yield
    finally:
        _close_pools(app)
        forget_runtime(app)
        for task in app.tasks.values():  # tracers keep the backend they were made with
            task.__trace__ = traces.get(task.name)
        conf.changes.clear()
        conf.changes.update(changes)
        os.environ.update(environment)
        for name, value in attributes.items():
            setattr(app, name, value)
        app.amqp._producer_pool = producers
        _empty()


def _forget_connections(app: Celery) -> None:
    app._pool = app.amqp._producer_pool = None
    _empty()


def _empty() -> None:
    Channel.queues.clear()
    Channel.events.clear()
    Transport.global_state.clear()
    Results.kept.clear()


def _close_pools(app: Celery) -> None:
    connection = app.connection_for_write()
    for group in (pools.producers, pools.connections):
        group[connection].force_close_all()  # get and pop of kombu's dicts do not know its keys
        del group[connection]


@contextmanager
def _as_default(app: Celery) -> Iterator[None]:
    # The threads of a pool run what they are given on the default app.
    default, current = _state.default_app, _state._tls.current_app
    blocks = _state.task_join_will_block()
    app.set_default()
    app.set_current()
    try:
        yield
    finally:
        _state._set_task_join_will_block(blocks)
        _state.set_default_app(default)
        _state._set_current_app(current)


@contextmanager
def _worker(app: Celery, pool: str, concurrency: int) -> Iterator[None]:
    ready = threading.Event()
    _ = app.amqp.producer_pool  # made here, not by several threads at once
    worker = WorkController(
        app=app,
        hostname="embedded@localhost",
        pool=pool,
        concurrency=concurrency,
        ready_callback=lambda consumer: ready.set(),
        without_heartbeat=True,
        without_mingle=True,
        without_gossip=True,
    )
    thread = WorkerThread(worker)
    thread.start()
    while not ready.wait(0.02):
        if not thread.is_alive():
            raise ClutchError("the embedded worker did not start; its log says why")
    # The pool has said that waiting blocks, which is true of its own threads only.
    _state._set_task_join_will_block(False)
    # An idle timer looks up once a second, and keeps its worker from stopping until then.
    worker.timer.call_repeatedly(_TICK, int)
    serve = _Serve(app, worker.consumer)
    signals.before_task_publish.connect(serve, weak=False)
    try:
        yield
    except BaseException:
        if stuck := _stop(thread):
            logger.warning("%s", stuck)  # the exception of the block is the one to see
        raise
    else:
        if stuck := _stop(thread):
            raise ClutchError(stuck)
    finally:
        worker.clutch_renewal.end()
        signals.before_task_publish.disconnect(serve)


def _stop(thread: WorkerThread) -> str:
    """Stop the worker in *thread*, and say what keeps it from stopping."""
    running = sorted({request.name for request in state.active_requests})
    thread.over.set()
    thread.join(STOP_AFTER)
    state.reset_state()
    if not thread.is_alive():
        return ""
    names = ", ".join(running) or "something"
    return f"still running {STOP_AFTER:g} seconds after the end of an embedded block: {names}"


class _Serve:
    """Lets the worker consume the queues, and know the tasks, that turn up after its start."""

    def __init__(self, app: Celery, consumer: Any) -> None:
        self.app = app
        self.consumer = consumer

    def __call__(self, sender: Any = None, declare: Any = None, **_: Any) -> None:
        if sender in self.app.tasks and sender not in self.consumer.strategies:
            self.consumer.update_strategies()
        for queue in declare or ():
            self.consumer.call_soon(self._consume, queue)

    def _consume(self, queue: Any) -> None:
        consumer = self.consumer.task_consumer
        if not consumer.consuming_from(queue.name):
            consumer.add_queue(queue)
            consumer.consume()
