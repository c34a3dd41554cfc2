"""Databases for the tests: each session makes its own, and drops them.

``CLUTCH_TEST_POSTGRESQL`` (``postgresql://postgres@127.0.0.1/postgres``) and ``CLUTCH_TEST_MARIADB``
(``mariadb://root@127.0.0.1/test``) say where the servers are; the user has to be allowed to make
databases.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery_clutch.stores.base import StoreOptions
from databases import KINDS, database, open_store

from celery_clutch_sqlalchemy.store import SQLAlchemyStore


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Call it with the kind of a database for the URL of one that has the tables."""
    made: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in made:
            url = stack.enter_context(database(kind, tmp_path_factory.mktemp(kind)))
            store = open_store(url)
            store.migrate()
            store.close()
            made[kind] = url
        return made[kind]

    with ExitStack() as stack:
        yield make


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of a database."""
    return str(request.param)


@pytest.fixture
def url(kind: str, migrated: Callable[[str], str]) -> str:
    """The URL of a database that has the tables; other tests use it, too."""
    return migrated(kind)


@pytest.fixture
def empty(kind: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a new and empty database."""
    with database(kind, tmp_path) as made:
        yield made


@pytest.fixture
def store(url: str) -> Iterator[SQLAlchemyStore]:
    """A store with a prefix of its own."""
    made = open_store(url, StoreOptions(f"test-{uuid.uuid4().hex[:12]}"))
    yield made
    made.close()
