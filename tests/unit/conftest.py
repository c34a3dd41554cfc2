"""Apps that need no server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, settings

from celery_clutch import ClutchTask
from celery_clutch.extend.plugins import forget_runtime

settings.register_profile(
    "unit",
    max_examples=int(os.environ.get("CLUTCH_EXAMPLES", "30")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")


class App(Celery):
    """Keeps its tasks to itself: Celery shares those of an app with every app made later, and the
    first of a name wins."""

    def task(self, *args: Any, **options: Any) -> Any:
        return super().task(*args, **{"shared": False, **options})


def make_app(*, backend: str | None = "cache+memory://", **conf: Any) -> Celery:
    """An app in this process: memory broker, memory backend, memory store.

    Memory brokers of one process share their queues, so each app has one of its own.
    """
    app = App(
        "unit", broker="memory://", backend=backend, task_cls=ClutchTask, set_as_current=False
    )
    app.conf.update(clutch_store="memory://", task_default_queue=f"unit-{uuid.uuid4()}", **conf)
    return app


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app whose messages nobody consumes."""
    app = make_app()
    yield app
    forget_runtime(app)


@pytest.fixture
def eager() -> Iterator[Celery]:
    """An app that runs its tasks at once, errors kept in the results."""
    app = make_app(task_always_eager=True, task_eager_propagates=False)
    yield app
    forget_runtime(app)
