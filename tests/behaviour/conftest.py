"""Each test here is written once and runs on every engine: eager mode, an embedded worker, real workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration import fixtures
from integration.lab import Runs

from . import engines

ENGINES = [
    "eager",
    "embedded",
    pytest.param("workers", marks=pytest.mark.integration),
]


def pytest_configure(config: pytest.Config) -> None:
    fixtures.register(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        no_eager = metafunc.definition.get_closest_marker("not_eager")
        metafunc.parametrize(
            "engine", ENGINES[1:] if no_eager else ENGINES, indirect=True, scope="module"
        )


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """One of the engines."""
    if request.param == "workers":
        yield request.getfixturevalue("_prefork")
        return
    start = {"eager": engines.eager, "embedded": engines.in_threads}[request.param]
    with start() as runs:
        yield runs


@pytest.fixture
def lab(engine: Runs) -> Runs:
    """The engine, its app current."""
    engine.app.set_current()
    return engine
