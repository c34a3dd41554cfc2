"""What all tests share: how a missing service is dealt with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: runs real Celery workers and needs services")


@pytest.fixture(scope="session")
def missing() -> Callable[[str, object], NoReturn]:
    """Call it with the name of a service and why it cannot be used.

    It skips; where all services are meant to be there (``CI=true``), it fails.
    """

    def say(service: str, reason: object) -> NoReturn:
        message = f"{service} is missing: {reason}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return say


@pytest.fixture(scope="session")
def connect(missing: Callable[[str, object], NoReturn]) -> Callable[..., Any]:
    """Call it with the URL of a Redis database to get a client; `missing` where none answers."""
    import redis

    def connect(url: str, **options: Any) -> redis.Redis:
        client = redis.Redis.from_url(url, socket_connect_timeout=2, **options)
        problem: object = None
        try:
            client.ping()
        except redis.RedisError as exc:
            problem = exc
        if problem:
            missing(f"Redis at {url}", problem)
        return client

    return connect
