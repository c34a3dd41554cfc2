"""The engines that need no server: eager mode and an embedded worker, as real workers are in `Lab`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import bootsteps
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
        self.consumer: Any = None
        engine = self

        class Remember(bootsteps.StartStopStep):  # type: ignore[misc]
            """Celery's way to get at the consumer of a worker."""

            def start(self, parent: Any) -> None:
                engine.consumer = parent

        self.app.steps["consumer"].add(Remember)

    def settle(self) -> None:
        before: list[int] = []

        def quiet() -> bool:
            nonlocal before
            now = [*self.left(), sum(state.total_count.values()), *self.left()]
            same, before = now == before, now
            return same and not any(self.left())

        until(quiet, "for the embedded worker to have nothing to do")

    def left(self) -> list[int]:
        """How many messages are queued, how many put off or at hand, and how many jobs run."""
        queued = sum(queue.qsize() for queue in list(Channel.queues.values()))
        delivered = self.consumer.task_consumer.channel.qos
        at_hand = len(delivered._delivered) - len(delivered._dirty)
        return [queued, at_hand, len(state.reserved_requests)]


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
