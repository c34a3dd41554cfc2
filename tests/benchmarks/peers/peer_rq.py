"""RQ: jobs that depend on others. Its worker forks a process for each job."""

from __future__ import annotations

from driver import LONG, URL, WIDE, tell
from redis import Redis
from rq import Queue

queue = Queue("peers-rq", connection=Redis.from_url(URL))


def job(number: int) -> None:
    """A no-op."""


def end(key: str) -> None:
    tell(key)


def fan(key: str) -> None:
    jobs = queue.enqueue_many([Queue.prepare_data(job, (i,)) for i in range(WIDE)])
    queue.enqueue(end, key, depends_on=jobs)


def series(key: str) -> None:
    last = queue.enqueue(job, 0)
    for index in range(1, LONG):
        last = queue.enqueue(job, index, depends_on=last)
    queue.enqueue(end, key, depends_on=last)


def small(key: str) -> None:
    first = queue.enqueue(job, 0)
    middle = [queue.enqueue(job, index, depends_on=first) for index in range(3)]
    queue.enqueue(end, key, depends_on=middle)


SHAPES = {"fan": fan, "series": series, "small": small}
