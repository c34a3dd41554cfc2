"""A Celery app whose tasks are sent and never run: what becomes of them the tests decide."""

from __future__ import annotations

from celery import Celery

from celery_clutch import Sequence

app = Celery(
    "shop",
    broker="memory://",
    backend="cache+memory://",
    task_cls="celery_clutch:ClutchTask",
    set_as_current=False,
)


@app.task
def fetch(photo: str) -> str:
    return photo


@app.task
def resize(width: int) -> int:
    return width


@app.task
def publish() -> None: ...


class Gallery(Sequence):
    steps = [fetch.s("sunset.png"), publish]


not_an_app = "something else"
