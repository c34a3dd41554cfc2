"""The engines that need no server: eager mode and an embedded worker, as real workers are in `Lab`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.worker import state
from integration import app as tasks
from integration.lab import Runs, until

from celery_clutch.extend.plugins import forget_runtime
from celery_clutch.testing import embedded
from celery_clutch.testing.embedded import Channel


class Eager(Runs):
    """Jobs run where they are engaged, so that nothing is ever left to do."""

    examples = 30

    def __init__(self) -> None:
        self.app = tasks.make_app(
            {
                "task_always_eager": True,
                "task_eager_propagates": False,
                "broker_url": "memory://",
                "result_backend": "cache+memory://",
                "clutch_store": "memory://",
            }
        )

    def settle(self) -> None:
        pass


class Embedded(Runs):
    """A real worker in threads of this process, on a broker in memory."""

    def __init__(self) -> None:
        self.app = tasks.make_app({})

    def settle(self) -> None:
        before: list[Any] = []

        def quiet() -> bool:
            nonlocal before
            queued = sum(queue.qsize() for queue in list(Channel.queues.values()))
            now = [queued, len(state.reserved_requests), sum(state.total_count.values())]
            same, before = now == before, now
            return same and not queued and not state.reserved_requests

        until(quiet, "for the embedded worker to have nothing to do")


@contextmanager
def eager() -> Iterator[Runs]:
    engine = Eager()
    with tasks.local_notebook():
        yield engine
    forget_runtime(engine.app)


@contextmanager
def in_threads() -> Iterator[Runs]:
    engine = Embedded()
    with tasks.local_notebook(), embedded(engine.app):
        yield engine
