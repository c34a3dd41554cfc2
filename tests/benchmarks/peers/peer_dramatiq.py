"""dramatiq with dramatiq-workflow, which hands no results on."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits.backends import RedisBackend
from dramatiq_workflow import Chain, Group, Workflow, WorkflowMiddleware
from driver import LONG, URL, WIDE, tell

broker = RedisBroker(url=URL, namespace="peers-dramatiq")
broker.add_middleware(WorkflowMiddleware(RedisBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor
def job(number: int) -> None:
    """A no-op."""


@dramatiq.actor
def end(key: str) -> None:
    tell(key)


def jobs(count: int) -> list[dramatiq.Message]:
    return [job.message(i) for i in range(count)]


def fan(key: str) -> None:
    Workflow(Chain(Group(*jobs(WIDE)), end.message(key))).run()


def series(key: str) -> None:
    Workflow(Chain(*jobs(LONG), end.message(key))).run()


def small(key: str) -> None:
    Workflow(Chain(job.message(0), Group(*jobs(3)), end.message(key))).run()


SHAPES = {"fan": fan, "series": series, "small": small}
