"""PostgreSQL behind a PgBouncer in transaction mode: each transaction may have another session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery_clutch.model.status import State
from celery_clutch.stores.base import Claim, Completion, ResultStore, StoreOptions
from celery_clutch.testing import StoreContract
from databases import missing, open_store, plain, until
from sqlalchemy import URL, make_url

from celery_clutch_sqlalchemy.postgresql import PostgreSQLStore

SESSIONS = 3
"""How many sessions PgBouncer has with the server; the tests have more connections to it."""


@pytest.fixture(scope="module")
def pooled(
    migrated: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database with the tables, through a PgBouncer of its own."""
    program = shutil.which("pgbouncer")
    if program is None:
        missing("PgBouncer", "there is no program pgbouncer; apt-get install pgbouncer")
    url = make_url(migrated("postgresql"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path_factory.mktemp("pgbouncer") / "pgbouncer.ini"
    config.write_text(_configuration(url, port))
    # It does not run as root.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *user, str(config)], stderr=subprocess.PIPE)
    try:
        until(lambda: _listens(port, process), "PgBouncer to listen")
        pooler = url.set(host="127.0.0.1", port=port)
        yield pooler.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(30)


def _configuration(url: URL, port: int) -> str:
    server = f"host={url.host or '127.0.0.1'} port={url.port or 5432} user={url.username}"
    if url.password:
        server += f" password={url.password}"
    return f"""
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SESSIONS}
max_client_conn = 200
"""


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read().decode()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class TestContract(StoreContract):
    """The contract, through PgBouncer."""

    examples = 10

    @pytest.fixture(autouse=True)
    def _database(self, pooled: str) -> None:
        self.url = pooled

    def make_store(self, options: StoreOptions) -> ResultStore:
        return open_store(self.url, options)


def test_migrating_through_it(pooled: str) -> None:
    """The other tests have the tables from the server itself."""
    with plain(pooled, isolation_level="AUTOCOMMIT") as admin:
        name = f"{make_url(pooled).database}_pooled"
        admin.exec_driver_sql(f"CREATE DATABASE {name}")
        store = open_store(make_url(pooled).set(database=name).render_as_string(False))
        try:
            assert "created" in store.migrate()[0]
            assert (store.migrate(), store.check()) == ([], [])
        finally:
            store.close()
            admin.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_more_connections_than_sessions(pooled: str) -> None:
    store = open_store(pooled, StoreOptions(f"pooled-{time.time_ns()}"))
    store.create("r", b"", {}, 200)

    def work(number: int) -> int:
        at = str(number)
        assert store.checkpoint("r", at, b"held", 0)
        assert store.begin(Claim("r", at, 0, owner="me", limit=5)).held == b"held"
        return store.complete(Completion("r", at, 0, b"")).remaining

    with ThreadPoolExecutor(12) as pool:
        assert sorted(pool.map(work, range(200))) == list(range(200))
    store.close()


def test_nothing_is_left_in_the_sessions(pooled: str) -> None:
    store = open_store(pooled, StoreOptions(f"clean-{time.time_ns()}"))
    store.create("r", b"", {}, 40)
    for number in range(20):
        store.checkpoint("r", str(number), b"held", 0)
        store.complete(Completion("r", str(number), 0, b""))
    assert store.wait("r", 0.2) is State.RUNNING
    queries = {
        "SELECT count(*) FROM pg_prepared_statements": 0,
        "SELECT count(*) FROM pg_listening_channels()": 0,
        "SHOW lock_timeout": "0",
        "SHOW synchronous_commit": "on",
    }
    for query, expected in queries.items():
        with ThreadPoolExecutor(SESSIONS) as pool:
            found = pool.map(lambda _: _scalar(pooled, query), range(SESSIONS))
        assert set(found) == {expected}, query
    store.close()


def _scalar(url: str, query: str) -> object:
    with plain(url, isolation_level="AUTOCOMMIT") as connection:
        return connection.exec_driver_sql(query).scalar()


def test_who_waits_polls(pooled: str) -> None:
    store = open_store(pooled, StoreOptions(f"wait-{time.time_ns()}"))
    assert isinstance(store, PostgreSQLStore)
    assert store._listens
    store.create("r", b"", {}, 1)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(store.wait, "r", 60)
        until(lambda: not store._listens, "it to see that listening is of no use")
        started = time.monotonic()
        store.complete(Completion("r", "0", 0, b""))
        assert waits.result(60) is State.SUCCEEDED
        assert time.monotonic() - started < 5, "sooner than a listener looks by itself"
    store.close()
