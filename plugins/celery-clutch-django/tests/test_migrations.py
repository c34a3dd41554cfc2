"""The migrations: from nothing, from each earlier one with runs in it, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery_clutch_django.plugin import open_store
from celery_clutch_django.store import DjangoStore
from django.core.management import call_command
from django.db import connections

from celery_clutch import State
from celery_clutch.stores.base import Execution, StoreOptions

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
    connection = connections[alias]
    with connection.cursor() as cursor:
        names = set(connection.introspection.table_names(cursor))
        if connection.vendor == "postgresql":
            cursor.execute("SELECT proname FROM pg_proc")
            names |= {name for (name,) in cursor.fetchall()}
    return {name for name in names if name.startswith(APP)}


def test_models_and_migrations_agree() -> None:
    call_command("makemigrations", APP, check=True, dry_run=True, verbosity=0)


def test_there_and_back(empty: str) -> None:
    assert left(empty) == set()
    migrate(empty)
    assert len(left(empty)) > 7
    migrate(empty, "zero")
    assert left(empty) == set()


def test_the_store_can_apply_them(empty: str) -> None:
    store = open_store(f"django://{empty}")
    first, second = store.migrate()
    assert first == f"applied migration 0001_initial to the database {empty!r}"
    assert second == f"applied migration 0002_functions to the database {empty!r}"
    assert store.migrate() == []
    store.create("r", b"", {}, 1)
    assert store.peek("r") == (State.RUNNING, 0)


def test_runs_go_on_after_an_upgrade(empty: str) -> None:
    migrate(empty, "0001")
    old: Any = DjangoStore(f"django://{empty}", StoreOptions("upgrade"), alias=empty)
    old.create("r", b"meta", {"0": b"page"}, 3, jobs=3, name="n", tags=["t"], data={"k": b"1"})
    old.create("other", b"", {}, 1)
    old.begin("r", "0", "0", 0, 5)
    old.complete("r", "0", "0", b"value", generation=0, token="one", info=b"{}")
    old.fail("r", "1", "1", b"failed", attempt=1, final=True, generation=0, token="two")
    old.hold("r", "2", b"held")
    before = old.read("r"), old.scan(), old.executions("r"), old.data("r")
    migrate(empty)
    new = open_store(f"django://{empty}", StoreOptions("upgrade"))
    assert (new.read("r"), new.scan(), new.executions("r"), new.data("r")) == before
    assert new.executions("r") == {"0": Execution(info=b"{}")}
    assert (new.page("r", "0"), new.values("r", ["0"])) == (b"page", [b"value"])
    assert new.transition("r", [State.FAILED], State.RUNNING, 0)
    for address in ("1", "2"):
        assert new.begin("r", address, address, 1, 5).verdict.name == "RUN"
        done = new.complete("r", address, address, b"1", generation=1, token=address)
    assert (done.remaining, done.succeeded) == (0, True)
    assert new.delete("other")
