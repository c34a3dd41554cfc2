"""The app that the benchmarks run: the same tasks for raw canvas, for clutches and for the floor."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import redis
from celery import Celery, Task

from celery_clutch import Clutch, ClutchTask, parallel

URL = os.environ.get("CLUTCH_BENCH_REDIS", "redis://localhost:6379/14")

app = Celery("bench", broker=URL, backend=URL)


def tell(key: str) -> None:
    """Say that *key* has ended."""
    teller().rpush(key, 1)


@cache
def teller() -> redis.Redis:
    """A client that keeps its connection: to tell costs one round trip."""
    return redis.Redis.from_url(URL)


class Told:
    """Tells of its end when its result is stored, and not before."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        tell(args[-1])


class RawTold(Told, Task):
    """A plain Celery task that tells of its end."""


class JobTold(Told, ClutchTask):
    """A job that tells of its end."""


@app.task(base=Task)
def raw(*_: Any) -> None:
    """A no-op as a plain Celery task."""


@app.task(base=Task)
def raw_big(size: int) -> str:
    """A plain Celery task with a result of *size* bytes."""
    return "x" * size


@app.task(base=RawTold)
def raw_end(results: Any, key: str) -> int:
    """The last task of a raw canvas."""
    return len(results) if isinstance(results, list) else 1


@app.task(base=Task, ignore_result=True)
def floor(*_: Any) -> None:
    """A no-op that nobody waits for."""


@cache
def line() -> Any:
    """A connection to Redis, without what a client does around a command."""
    return redis.Redis.from_url(URL).connection_pool.get_connection()


@app.task(base=Task, ignore_result=True)
def floor_asks(*_: Any) -> None:
    """A no-op that asks Redis twice, for nothing: what two round trips cost by themselves."""
    for _ in range(2):
        line().send_packed_command([b"*1\r\n$4\r\nPING\r\n"])
        line().read_response()


@app.task(base=Task, ignore_result=True)
def floor_big(size: int) -> str:
    """A task of *size* bytes that nobody waits for."""
    return "x" * size


@app.task(base=Task, ignore_result=True)
def floor_end(key: str) -> None:
    """The marker behind the last of the floor's tasks."""
    tell(key)


@app.task(base=ClutchTask)
def job(*_: Any) -> None:
    """A no-op as a job."""


@app.task(base=ClutchTask)
def job_big(size: int) -> str:
    """A job with a result of *size* bytes."""
    return "x" * size


@app.task(base=JobTold, bind=True)
def job_end(self: ClutchTask, key: str) -> int:
    """The last job of a clutch: it reads the results before it, as raw canvas is handed them."""
    return len(self.previous_results)


@app.task(base=ClutchTask, bind=True)
def job_data(self: ClutchTask, number: int) -> None:
    """A job that changes the data of its run."""
    self.data[f"key{number}"] = "x" * 1000


@app.task(base=ClutchTask, bind=True)
def job_nests(self: ClutchTask) -> None:
    """A job that waits for a nested clutch of three."""
    clutch = Clutch(parent=self)
    clutch << parallel(job.s() for _ in range(3))
    clutch.engage()


@app.task(base=ClutchTask, bind=True, max_retries=1, default_retry_delay=0)
def job_fails(self: ClutchTask, key: str) -> None:
    """A job that fails, is tried again, and dies."""
    if self.request.retries:
        tell(key)
    self.retry(exc=ValueError("no"))
