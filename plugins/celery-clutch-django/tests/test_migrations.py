"""The migrations: from nothing, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery_clutch_django.plugin import open_store
from django.core.management import call_command
from django.db import connections

from celery_clutch import State

APP = "celery_clutch_django"


@pytest.fixture(params=["empty", "postgres_empty"])
def empty(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database without tables, and without them again after the test."""
    alias = str(request.param)
    request.getfixturevalue("_postgres" if alias.startswith("postgres") else "_sqlite")
    yield alias
    migrate(alias, "zero")
    connections[alias].close()


def migrate(alias: str, *target: str) -> None:
    call_command("migrate", APP, *target, database=alias, verbosity=0)


def left(alias: str) -> set[str]:
    """What of this app is in the database."""
    names = connections[alias].introspection.table_names()
    return {name for name in names if name.startswith(APP)}


def test_models_and_migrations_agree() -> None:
    call_command("makemigrations", APP, check=True, dry_run=True, verbosity=0)


def test_there_and_back(empty: str) -> None:
    assert left(empty) == set()
    migrate(empty)
    assert {f"{APP}_{each}" for each in ("run", "row", "owner", "bucket")} <= left(empty)
    migrate(empty, "zero")
    assert left(empty) == set()


def test_the_store_can_apply_them(empty: str) -> None:
    store = open_store(f"django://{empty}")
    assert store.migrate() == [f"applied migration 0001_initial to the database {empty!r}"]
    assert store.migrate() == []
    store.create("r", b"", {}, 1)
    assert store.peek("r") == (State.RUNNING, 0)
