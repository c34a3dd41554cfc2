"""What all tests share: how a missing service is dealt with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

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
