"""Huey: pipelines and chords. A task cannot be followed by a chord, so there is no small shape."""

from __future__ import annotations

from typing import Any

from driver import LONG, URL, WIDE, tell
from huey import RedisHuey
from huey.api import group

huey = RedisHuey("peers", url=URL)


@huey.task()
def job(*_: Any) -> None:
    """A no-op."""


@huey.task()
def end(key: str, *_: Any) -> None:
    tell(key)


def fan(key: str) -> None:
    huey.enqueue(group([job.s(i) for i in range(WIDE)]).then(end, key))


def series(key: str) -> None:
    first = job.s()
    for index in range(1, LONG):
        first.then(job, index)
    huey.enqueue(first.then(end, key))


SHAPES = {"fan": fan, "series": series}
