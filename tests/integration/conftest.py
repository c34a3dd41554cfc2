"""These tests run real workers; `fixtures` starts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import fixtures
from .fixtures import MakeLab as MakeLab


def pytest_configure(config: pytest.Config) -> None:
    fixtures.register(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)
