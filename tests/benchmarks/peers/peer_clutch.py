"""celery-clutch; the broker is said by ``PEERS_BROKER``, the store by ``PEERS_STORE``."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from driver import LONG, URL, WIDE, tell
from kombu import Queue

import celery_clutch
from celery_clutch import ClutchTask, parallel

app = Celery("clutch", broker=os.environ.get("PEERS_BROKER", URL), backend=URL)
app.conf.task_default_queue = os.environ["PEERS_QUEUE"]
app.conf.task_queues = [Queue(app.conf.task_default_queue, expires=3600)]
app.conf.clutch_store = os.environ.get("PEERS_STORE", URL)


@app.task(base=ClutchTask)
def job(*_: Any) -> None:
    """A no-op."""


@app.task(base=ClutchTask, bind=True)
def end(self: ClutchTask, key: str) -> None:
    len(self.previous_results)  # as canvas is handed them
    tell(key)


def fan(key: str) -> None:
    celery_clutch.series(parallel(job.s(i) for i in range(WIDE)), end.s(key)).engage()


def series(key: str) -> None:
    celery_clutch.series([*(job.s(i) for i in range(LONG)), end.s(key)]).engage()


def small(key: str) -> None:
    celery_clutch.series(job.s(), parallel(job.s(i) for i in range(3)), end.s(key)).engage()


SHAPES = {"fan": fan, "series": series, "small": small}
