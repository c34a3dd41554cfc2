"""Plain Celery canvas; the broker is said by ``PEERS_BROKER``."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain, chord
from driver import LONG, URL, WIDE, tell
from kombu import Queue

app = Celery("canvas", broker=os.environ.get("PEERS_BROKER", URL), backend=URL)
app.conf.task_default_queue = os.environ["PEERS_QUEUE"]
app.conf.task_queues = [Queue(app.conf.task_default_queue, expires=3600)]


@app.task
def job(*_: Any) -> None:
    """A no-op."""


@app.task
def end(results: Any, key: str) -> None:
    tell(key)


def fan(key: str) -> None:
    chord([job.si(i) for i in range(WIDE)], end.s(key)).apply_async()


def series(key: str) -> None:
    chain(*[job.si(i) for i in range(LONG)], end.s(key)).apply_async()


def small(key: str) -> None:
    chain(job.s(), chord([job.si(i) for i in range(3)], end.s(key))).apply_async()


SHAPES = {"fan": fan, "series": series, "small": small}
