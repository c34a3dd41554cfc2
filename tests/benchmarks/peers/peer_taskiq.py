"""taskiq-pipelines: a parallel is a map over the list that the step before it returns.

So the wide shape has one task more, which returns the list. A waiting task polls for the results.
"""

from __future__ import annotations

import asyncio
from typing import Any

from driver import LONG, URL, WIDE, tell
from taskiq_pipelines import Pipeline, PipelineMiddleware
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

INTERVAL = 0.05  # seconds between two looks of the waiting task; the default is 0.5

broker = (
    ListQueueBroker(URL, queue_name="peers-taskiq")
    .with_result_backend(RedisAsyncResultBackend(URL))
    .with_middlewares(PipelineMiddleware())
)
loop: asyncio.AbstractEventLoop | None = None


@broker.task
async def job(*_: Any) -> None:
    """A no-op."""


@broker.task
async def items(count: int) -> list[int]:
    return list(range(count))


@broker.task
async def end(key: str) -> None:
    tell(key)


def send(pipeline: Any, *args: Any) -> None:
    """Send from one event loop, with the connections that it has."""
    global loop
    if loop is None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(broker.startup())
    loop.run_until_complete(pipeline.kiq(*args))


def fan(key: str, width: int = WIDE) -> None:
    pipeline = Pipeline(broker, items).map(job, check_interval=INTERVAL)
    send(pipeline.call_after(end, key=key), width)


def series(key: str) -> None:
    pipeline = Pipeline(broker, job)
    for _ in range(1, LONG):
        pipeline.call_after(job)
    send(pipeline.call_after(end, key=key))


def small(key: str) -> None:
    fan(key, 3)


SHAPES = {"fan": fan, "series": series, "small": small}
