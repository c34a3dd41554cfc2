"""Creating and upgrading the tables."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery_clutch.errors import ConfigurationError
from celery_clutch.model.status import State
from celery_clutch.stores.base import Barrier, Begun, Claim, Completion, Settles, Verdict
from databases import open_store, plain
from sqlalchemy import inspect

from celery_clutch_sqlalchemy import migrate

HERE = Path(__file__).parent


def version(url: str) -> str | None:
    with plain(url) as connection:
        return migrate.revision(connection)


def test_from_nothing(empty: str) -> None:
    store = open_store(empty)
    (sentence,) = store.migrate()
    assert "created" in sentence
    assert store.migrate() == [], "there is nothing left to do"
    assert version(empty) == migrate.newest()
    store.create("r", b"meta", {"0": b"page"}, 1)
    assert store.complete(Completion("r", "0", 0, b"value", "t")).succeeded
    store.close()


def test_nothing_but_our_own_tables(empty: str) -> None:
    with plain(empty, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('theirs')")
    store = open_store(empty)
    store.migrate()
    store.close()
    with plain(empty) as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
        assert list(found) == ["theirs"], "an application's own migrations are left alone"
        names = set(inspect(connection).get_table_names())
    assert all(name.startswith("clutch_") for name in names - {"alembic_version"})


def test_from_the_previous_version_with_runs_in_it(empty: str) -> None:
    store = open_store(empty)
    with plain(empty, isolation_level="AUTOCOMMIT") as connection:
        migrate.upgrade(connection, "0001")
        octets = {"postgresql": "BYTEA", "mysql": "BINARY", "sqlite": "BLOB"}
        meta, value, page = (
            f"CAST('{text}' AS {octets[connection.dialect.name]})"
            for text in ("meta", "value", "page")
        )
        run = f"1, 'clutch', 'old', {meta}, 'name', '[\"tag\"]', '[]', 2, 1, 'RUNNING', 3, 0, 0, ''"
        columns = (
            "id, prefix, run, meta, name, tags, ends, jobs, remaining, state, generation, failing,"
            " dead, ender, created_at, updated_at, expires_at"
        )
        connection.exec_driver_sql(
            f"INSERT INTO clutch_runs ({columns}) VALUES ({run}, 1.5, 2.5, 99999999999.5)"
        )
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT setval('clutch_runs_id_seq', 1)")
        connection.exec_driver_sql(f"INSERT INTO clutch_rows VALUES (1, 'result', '0', {value})")
        connection.exec_driver_sql(f"INSERT INTO clutch_rows VALUES (1, 'page', 'plan', {page})")

    (warning,) = store.check()
    assert "revision 0001" in warning
    assert "clutch migrate" in warning
    (sentence,) = store.migrate()
    assert "upgraded from revision 0001" in sentence
    assert store.check() == []
    record = store.read("old")
    assert record is not None
    assert (record.meta, record.state, record.generation) == (b"meta", State.RUNNING, 3)
    assert (record.created_at, record.remaining, record.done) == (1.5, 1, 1)
    assert store.page("old", "plan") == b"page"
    assert store.begin(Claim("old", "0", 3, owner="me", limit=5)) == Begun(Verdict.DONE)
    assert store.begin(Claim("old", "1", 3, owner="me", limit=5)) == Begun(Verdict.RUN)
    barrier = Barrier("end", 1, then="page plan")
    done = store.complete(Completion("old", "1", 3, b"new", "t", Settles("1", "1", 1), (barrier,)))
    assert (done.succeeded, done.settled, done.pages) == (True, ("1",), {"plan": b"page"})
    assert store.values("old", ["0", "1"]) == [b"value", b"new"]
    assert [(each.name, each.tags) for each in store.scan()[0]] == [("name", ("tag",))]
    store.close()


def test_a_newer_schema_is_refused(empty: str) -> None:
    store = open_store(empty)
    store.migrate()
    with plain(empty, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("UPDATE clutch_alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match=r"9999.*upgrade it"):
        store.migrate()
    assert version(empty) == "9999", "and left as it is"
    (warning,) = store.check()
    assert "9999" in warning
    store.close()


def test_many_migrate_at_once(empty: str) -> None:
    program = (
        "import sys; from databases import open_store; print(open_store(sys.argv[1]).migrate())"
    )
    command = [sys.executable, "-c", program, empty]
    processes = [
        subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) for _ in "abc"
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3
    assert sum("created" in output for output in outputs) == 1, "one does it, the others wait"
    assert version(empty) == migrate.newest()


def test_many_threads_migrate_at_once(empty: str) -> None:
    stores = [open_store(empty) for _ in "abcd"]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda store: store.migrate(), stores))
    assert sum(map(bool, done)) == 1
    for store in stores:
        store.close()
