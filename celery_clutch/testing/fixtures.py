"""The pytest plugin: one fixture, for the tests of programs that use celery-clutch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from celery import Celery


@pytest.fixture
def clutch_embedded() -> Iterator[Callable[..., Celery]]:
    """Run a Celery app in the test's process until the test ends, with no server.

    ::

        def test_publishing(clutch_embedded):
            clutch_embedded(app)
            assert compose().engage().get(timeout=10) == ["published"]

    It takes what `celery_clutch.testing.embedded` takes, and returns the app.
    """
    # Loaded here, so that pytest does not load Celery's worker for tests that never ask for it.
    from .embedded import embedded

    with ExitStack() as stack:

        def start(app: Celery, *, pool: str = "threads", concurrency: int = 4) -> Celery:
            return stack.enter_context(embedded(app, pool=pool, concurrency=concurrency))

        yield start
