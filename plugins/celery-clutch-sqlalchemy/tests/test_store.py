"""What the stores do beyond the contract."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery_clutch.errors import (
    ConfigurationError,
    CorruptRecord,
    MissingExtra,
    StoreUnavailable,
    UnknownStore,
)
from celery_clutch.extend.plugins import Plugins, forget_runtime
from celery_clutch.extend.settings import Settings
from celery_clutch.model.status import State
from celery_clutch.stores.base import (
    Attempted,
    Barrier,
    Claim,
    Completed,
    Completion,
    Missing,
    ResultStore,
    Settles,
    StoreOptions,
    Verdict,
)
from databases import SERVERS, open_store, plain, statements, until
from sqlalchemy import Connection, make_url

from celery_clutch_sqlalchemy.store import SQLAlchemyStore

ON_SERVERS = pytest.mark.parametrize("kind", SERVERS, indirect=True)

Calls = dict[str, Callable[[], Any]]


def path(store: ResultStore) -> Calls:
    """The primitives on the path of a job, on a run that exists."""
    step, barriers = Settles("0", "0", 2), (Barrier("page", 1, then="page 0"),)
    done = Completion("r", "0", 0, b"value", "t", step, barriers, changes={"a": b"2", "b": None})
    failed = Attempted("r", "1", 0, b"failure", 1, True, "t", (step, Settles("1", "1", 1)))
    return {
        "begin": lambda: begin(store, "0", receipts=("page 1",)),
        "complete": lambda: store.complete(done),
        "fail": lambda: store.fail(failed),
    }


def writes(store: ResultStore) -> Calls:
    """The other primitives that write."""
    return {
        "create": lambda: store.create(
            "new", b"meta", {"0": b"page", "1": b"page"}, 1, data={"a": b"1"}, tags=["t"]
        ),
        "checkpoint": lambda: store.checkpoint("r", "2", b"held", 0),
        "report": lambda: store.report("r", "2", "child", b"outcome"),
        "release": lambda: store.release("r", "3", "me", 0),
        "skip": lambda: store.skip("r", "1", 2, 0),
        "remind": lambda: store.remind("r", {"page 0": 1.5}),
        "tried": lambda: store.tried("r", ["page 0"]),
        "published": lambda: store.published("r", ["page 0"]),
        "transition": lambda: store.transition("r", [State.FAILED], State.RUNNING, 0),
        "renew": lambda: store.renew(["me"], 10),
        "retire": lambda: store.retire(["me"]),
        "delete": lambda: store.delete("r"),
    }


def begin(store: ResultStore, at: str, **more: Any) -> Verdict:
    return store.begin(Claim("r", at, 0, owner="me", limit=5, **more)).verdict


def complete(store: ResultStore, at: str, **more: Any) -> Completed:
    return store.complete(Completion("r", at, 0, b"", "t", **more))


def reads(store: ResultStore) -> Calls:
    """The primitives that read."""
    return {
        "page": lambda: store.page("r", "0"),
        "values": lambda: store.values("r", ["0", "1"]),
        "finished": lambda: store.finished("r", ["0", "1"]),
        "data": lambda: store.data("r"),
        "read": lambda: store.read("r"),
        "peek": lambda: store.peek("r"),
        "scan": lambda: store.scan(),
        "unfinished": lambda: store.unfinished(),
        "counts": lambda: store.counts("r", ["page"]),
        "leases": lambda: store.leases("r"),
        "owners": lambda: store.owners(),
    }


# --- how it is opened --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://host/db", "PostgreSQLStore"),
        ("postgresql+psycopg://host/db", "PostgreSQLStore"),
        ("mysql://host/db", "MariaDBStore"),
        ("mysql+pymysql://host/db", "MariaDBStore"),
        ("mariadb://host/db", "MariaDBStore"),
        ("mariadb+pymysql://host/db", "MariaDBStore"),
        ("sqlite:///file.db", "SQLiteStore"),
        ("sqlite:////tmp/file.db?timeout=3", "SQLiteStore"),
    ],
)
def test_an_app_finds_its_store(url: str, kind: str) -> None:
    store = Plugins().open(Settings.of({"clutch_store": url, "clutch_ttl": 60}))
    assert type(store).__name__ == kind
    assert store.options.ttl == 60


def test_another_driver_is_unknown() -> None:
    with pytest.raises(UnknownStore, match="postgresql://"):
        Plugins().open(Settings.of({"clutch_store": "postgresql+psycopg2://host/db"}))


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://user:secret@host:port/db", "not the URL of a database"),
        ("postgresql://user:secret@host/db?pool_size=many", "not the URL of a database"),
        ("mariadb://user:secret@host", "which database"),
        ("postgresql://user:p@secret@host/db", "written as %40"),
        ("postgresql://user:p@ss/secret@host/db", "written as %40"),
        ("mariadb://user:p@ss?secret@host/db", "written as %40"),
        ("postgresql://user:p@ss#secret@host/db", "written as %40"),
        ("sqlite://", "which file"),
        ("sqlite:///:memory:", "which file"),
    ],
)
def test_a_url_that_makes_no_sense(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as error:
        open_store(url)
    told = f"{error.value!r} {error.value.__cause__!r}"
    assert "sec" not in told, "the password is nowhere shown"


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("postgresql://host/db", "psycopg", "postgresql"),
        ("mariadb://host/db", "pymysql", "mysql"),
    ],
)
def test_a_driver_that_is_not_installed(url: str, driver: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules[{driver!r}] = None; from databases import *; open_store({url!r})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert MissingExtra.__name__ in ran.stderr
    assert f"pip install 'celery-clutch-sqlalchemy[{extra}]'" in ran.stderr


def test_sqlite_files_are_in_wal_mode(migrated: Callable[[str], str]) -> None:
    with plain(migrated("sqlite")) as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


# --- what it costs -----------------------------------------------------------------------------


@ON_SERVERS
def test_reading_is_one_round_trip(store: SQLAlchemyStore) -> None:
    store.create("r", b"", {"0": b"page"}, 5, data={"a": b"0"})
    for name, call in reads(store).items():
        with statements() as sent:
            call()
        assert len(sent) == 1, f"{name} sends {sent}"


def test_a_job_takes_two_round_trips_in_postgresql(migrated: Callable[[str], str]) -> None:
    store = open_store(migrated("postgresql"), StoreOptions(f"trips-{time.time_ns()}"))
    store.create("r", b"", {"0": b"page"}, 5, data={"a": b"0"})
    for name, call in path(store).items():
        with statements() as sent:
            call()
        assert len(sent) == 1, f"{name} sends {sent}"
    store.close()


@ON_SERVERS
def test_what_has_not_changed_is_not_written(store: SQLAlchemyStore) -> None:
    store.create("r", b"", {}, 5)
    with statements() as sent:
        store.release("r", "0", "nobody", 0)
        store.tried("r", ["page 0"])
    assert not [each for each in sent if each.startswith(("INSERT", "UPDATE", "DELETE"))]


@pytest.mark.parametrize("last", [False, True])
def test_what_is_answered_is_on_the_disk(migrated: Callable[[str], str], last: bool) -> None:
    url = migrated("postgresql")
    store = open_store(url, StoreOptions(f"disk-{time.time_ns()}"))
    value = os.urandom(100_000)
    store.create("r", b"", {}, 1 if last else 9)
    calls: Calls = {
        "complete": lambda: store.complete(Completion("r", "0", 0, value)),
        "again": lambda: store.complete(Completion("r", "0", 0, value)),
        "fail": lambda: store.fail(Attempted("r", "0", 0, value, 1, False)),
    }
    written = {"complete": len(value), "again": 0, "fail": 0 if last else len(value)}
    with plain(url, isolation_level="AUTOCOMMIT") as observer:
        for name, call in calls.items():
            before = observer.exec_driver_sql("SELECT pg_current_wal_insert_lsn()").scalar()
            call()
            query = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), %s::pg_lsn)"
            flushed = observer.exec_driver_sql(query, (before,)).scalar()
            assert flushed is not None
            assert flushed > written[name], name
    store.close()


# --- names and large things --------------------------------------------------------------------


def test_names_are_compared_byte_by_byte(store: SQLAlchemyStore) -> None:
    names = ["a", "A", "a ", " a", "ä", "a\u0308", "\N{GRINNING FACE}", "x" * 200, "x" * 199 + "y"]
    for name in names:
        store.create(name, name.encode(), {name: name.encode()}, 2 * len(names))
    for name in names:
        for at in names:
            step, changes = Settles(at, at, 1), {at: at.encode()}
            done = store.complete(Completion(name, at, 0, at.encode(), "t", step, changes=changes))
            assert (done.fresh, done.settled) == (True, (at,))
            step = Settles(f"fail {at}", at, 1)
            failed = store.fail(Attempted(name, at, 0, b"", 1, False, "t", (step,)))
            assert failed.due == (f"failure fail {at}",)
        assert store.values(name, names) == [each.encode() for each in names]
        assert store.data(name) == {each: each.encode() for each in names}
        assert set(store.infos(name)) == set(names)
        assert (store.page(name, name), store.page(name, "other")) == (name.encode(), Missing)
    assert {summary.run for summary in store.scan()[0]} == set(names)
    for name in names:
        assert store.delete(name)


def test_scan_finds_exactly_what_is_asked_for(store: SQLAlchemyStore) -> None:
    tags = {"a": ["x", "y"], "b": [","], "c": ["X"], "d": ['"', "%"], "e": ["ü_", "x y"]}
    for run, labels in tags.items():
        store.create(run, b"", {}, 1, name=run.upper(), tags=labels)
    for tag in ("x", "X", ",", "%", '"', "ü_", "y", "_", ""):
        expected = [run for run, labels in reversed(tags.items()) if tag in labels]
        assert [each.run for each in store.scan(tag=tag)[0]] == expected
    assert [each.run for each in store.scan(name="A")[0]] == ["a"]
    assert store.scan(name="a")[0] == []


def test_the_longest_keys(store: SQLAlchemyStore) -> None:
    key = "\N{GRINNING FACE}" * 200
    store.create("r", b"", {}, 1, data={key: b"1"})
    complete(store, "0", changes={key: b"2", key[1:]: b"3"})
    assert store.data("r") == {key: b"2", key[1:]: b"3"}


def test_many_things_due(store: SQLAlchemyStore) -> None:
    due = {f"job {number}": float(number) for number in range(2500)}
    store.create("r", b"", {}, 1, due=due)
    store.published("r", [f"job {number}" for number in range(2400)])
    assert [each.due for each in store.scan()[0]] == [100]
    assert store.transition("r", [State.RUNNING], State.CANCELLED, 0)
    assert store.unfinished() == ([], "")


def test_pages_that_do_not_fit_into_one_message(store: SQLAlchemyStore) -> None:
    pages = {str(number): os.urandom(700_000) for number in range(30)}
    store.create("r", b"", pages, 1)
    assert store.page("r", "0") == pages["0"]
    assert store.page("r", "29") == pages["29"]
    assert store.delete("r")
    assert store.page("r", "29") is Missing


# --- what goes wrong ---------------------------------------------------------------------------


def test_without_tables(empty: str) -> None:
    store = open_store(empty)
    for name, call in (path(store) | writes(store) | reads(store)).items():
        with pytest.raises(ConfigurationError, match="celery -A proj clutch migrate"):
            call()
            pytest.fail(f"{name} without tables")
    (warning,) = store.check()
    assert "clutch migrate" in warning
    store.close()


BROKEN = {
    "state = 'LAZY'": {"read", "peek", "scan"},
    "tags = '{'": {"read", "scan"},
    "ends = '1'": {"read", "scan"},
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_record_that_cannot_be_read(store: SQLAlchemyStore, url: str, change: str) -> None:
    store.create("r", b"", {}, 1)
    with plain(url, isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(
            f"UPDATE clutch_runs SET {change} WHERE prefix = '{store.options.prefix}'"
        )
    for name in sorted(BROKEN[change]):
        with pytest.raises(CorruptRecord, match="'r'"):
            reads(store)[name]()
            pytest.fail(f"{name} with {change}")


def test_statements_of_a_job(store: SQLAlchemyStore, url: str) -> None:
    """One reads, whatever there is to read, and each that writes is needed; two are the
    transaction's own."""
    store.create("r", b"", {}, 9)
    barriers = Barrier("a", 9, "page 1"), Barrier("b", 9, "page 2")
    more = {"settles": Settles("s", "m", 9), "barriers": barriers, "changes": {"k": b"1"}}
    with statements() as sent:
        assert begin(store, "0") is Verdict.RUN
        begun = len(sent)
        assert complete(store, "0", **more).fresh
    one_call = url.startswith("postgresql")
    assert (begun, len(sent) - begun) == ((1, 1) if one_call else (4, 6)), sent


def test_rows_that_cannot_be_read(store: SQLAlchemyStore, url: str) -> None:
    store.create("r", b"", {}, 3, due={"page 0": 1.0})
    assert begin(store, "0") is Verdict.RUN
    store.fail(Attempted("r", "1", 0, b"", 1, False))
    with plain(url, isolation_level="AUTOCOMMIT") as connection:
        kind = {"postgresql": "BYTEA", "sqlite": "BLOB"}.get(connection.dialect.name, "BINARY")
        own = f"SELECT id FROM clutch_runs WHERE prefix = '{store.options.prefix}'"
        connection.exec_driver_sql(
            f"UPDATE clutch_rows SET value = CAST('odd' AS {kind}) WHERE run_id IN ({own})"
        )
    calls: Calls = {
        "begin": lambda: begin(store, "0"),
        "begin again": lambda: begin(store, "1"),
        "complete": lambda: complete(store, "1"),
        "fail": lambda: store.fail(Attempted("r", "1", 0, b"", 2, False)),
        "tried": lambda: store.tried("r", ["page 0"]),
        "read": lambda: store.read("r"),
        "leases": lambda: store.leases("r"),
    }
    for name, call in calls.items():
        with pytest.raises(CorruptRecord):
            call()
            pytest.fail(name)
    assert complete(store, "2").remaining == 2, "others go on"


def test_a_file_that_is_no_database(tmp_path: Any) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to look at " * 100)
    with pytest.raises(CorruptRecord):
        open_store(f"sqlite:///{file}").read("r")


@ON_SERVERS
def test_connections_that_were_lost(store: SQLAlchemyStore, url: str, kind: str) -> None:
    store.create("r", b"", {}, 50)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: begin(store, str(n)), range(8)))
    with plain(url, isolation_level="AUTOCOMMIT") as admin:
        if kind == "postgresql":
            admin.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            query = (
                "SELECT id FROM information_schema.processlist"
                " WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
            for (id,) in admin.exec_driver_sql(query).all():
                admin.exec_driver_sql(f"KILL {id}")
    with pytest.raises(StoreUnavailable):
        for _ in range(10):
            complete(store, "0")
    done = complete(store, "0")
    assert done.remaining == 49, "one error, and all connections are made again"
    answers = [begin(store, str(n)) for n in range(8)]
    assert answers == [Verdict.DONE] + [Verdict.BUSY] * 7


@ON_SERVERS
def test_a_deadlock_can_be_tried_again(store: SQLAlchemyStore, url: str, kind: str) -> None:
    store.create("r", b"", {}, 300, due={f"job {number}": 1.0 for number in range(300)})
    with plain(url) as other, ThreadPoolExecutor(1) as pool:
        if kind == "postgresql":
            other.exec_driver_sql("SET deadlock_timeout = '1h'")  # the store's is to be told
        own = f"SELECT id FROM clutch_runs WHERE prefix = '{store.options.prefix}'"
        id = other.exec_driver_sql(own).scalar()
        # Much work, so that MariaDB takes the store's for the cheaper one to give up.
        other.exec_driver_sql(f"UPDATE clutch_rows SET value = '1.5 0 ' WHERE run_id = {id}")
        call = pool.submit(begin, store, "7", receipts=("job 7",))
        with plain(url, isolation_level="AUTOCOMMIT") as observer:
            until(lambda: blocked(observer, kind), "the store to wait for the other")
        other.exec_driver_sql(f"{own} FOR UPDATE")
        with pytest.raises(StoreUnavailable, match=r"(?i)deadlock"):
            call.result(60)
        other.commit()
    assert store.leases("r") == {}, "nothing is half done"
    assert store.patiently(begin, store, "7") is Verdict.RUN


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_whatever_isolation_is_the_default(empty: str) -> None:
    level = "default_transaction_isolation TO 'repeatable read'"
    with plain(empty, isolation_level="AUTOCOMMIT") as admin:
        admin.exec_driver_sql(f"ALTER DATABASE {make_url(empty).database} SET {level}")
    store = open_store(empty)
    store.migrate()
    store.create("r", b"", {}, 64)

    def work(number: int) -> int:
        return int(store.patiently(complete, store, str(number)).remaining)

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(64))) == list(range(64))
        # Both see the run as it is before one of them has the job.
        store.create("s", b"", {}, 1)
        claims = [Claim("s", "0", 0, owner=owner, limit=5) for owner in ("me", "you")]
        with plain(empty, isolation_level="AUTOCOMMIT") as observer:
            with plain(empty) as other:
                other.exec_driver_sql("SELECT id FROM clutch_runs FOR UPDATE")
                found = [pool.submit(store.patiently, store.begin, claim) for claim in claims]
                until(lambda: waiting(observer) == 2, "both to wait")
        assert sorted(each.result().verdict.name for each in found) == ["BUSY", "RUN"]
    store.close()


def waiting(observer: Connection) -> int:
    """How many wait for a lock, in PostgreSQL."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(observer.exec_driver_sql(query).scalar() or 0)


def blocked(observer: Connection, kind: str) -> bool:
    """Whether somebody waits for a lock."""
    query = (
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        if kind == "mariadb"
        else "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(observer.exec_driver_sql(query).scalar())


@ON_SERVERS
def test_a_lock_that_is_never_released(url: str, kind: str) -> None:
    store = open_store(url, StoreOptions(f"locked-{time.time_ns()}"))
    store.lock_timeout = 1
    store.create("r", b"", {}, 1)
    with plain(url) as other:
        prefix = store.options.prefix
        other.exec_driver_sql(f"SELECT id FROM clutch_runs WHERE prefix = '{prefix}' FOR UPDATE")
        with pytest.raises(StoreUnavailable, match=r"(?i)lock"):
            begin(store, "0")
        with pytest.raises(StoreUnavailable, match=r"(?i)lock"):
            store.published("r", ["page 0"])
        assert store.peek("r") == (State.RUNNING, 0), "who reads does not wait"
    assert begin(store, "0") is Verdict.RUN
    store.close()


@ON_SERVERS
def test_the_rights_that_workers_need(store: SQLAlchemyStore, url: str, kind: str) -> None:
    guest, grants = f"guest_{time.time_ns()}", "SELECT, INSERT, UPDATE, DELETE"
    store.create("r", b"", {"0": b"page"}, 5, data={"a": b"0"})
    with plain(url, isolation_level="AUTOCOMMIT") as admin:
        if kind == "postgresql":
            admin.exec_driver_sql(f"CREATE ROLE {guest} LOGIN PASSWORD 'guest'")
            admin.exec_driver_sql(f"GRANT {grants} ON ALL TABLES IN SCHEMA public TO {guest}")
        else:
            name = make_url(url).database
            admin.exec_driver_sql(f"CREATE USER {guest}@'%%' IDENTIFIED BY 'guest'")
            admin.exec_driver_sql(f"GRANT {grants} ON {name}.* TO {guest}@'%%'")
        try:
            own = make_url(url).set(username=guest, password="guest")
            other = open_store(own.render_as_string(hide_password=False), store.options)
            assert other.check() == []
            for call in (path(other) | writes(other) | reads(other)).values():
                call()
            with pytest.raises((StoreUnavailable, ConfigurationError)):
                other._do(lambda connection: connection.exec_driver_sql("DROP TABLE clutch_runs"))
            other.close()
        finally:
            if kind == "postgresql":
                admin.exec_driver_sql(f"DROP OWNED BY {guest}")
            admin.exec_driver_sql(f"DROP {'ROLE' if kind == 'postgresql' else 'USER'} {guest}")


@ON_SERVERS
def test_a_call_that_is_cut_short(store: SQLAlchemyStore, url: str, kind: str) -> None:
    """As by a soft time limit: the connection it used is not used again."""
    store.create("r", b"value of r", {}, 2)

    class CutShort(Exception):
        pass

    def interrupted(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")
        raise CutShort

    with pytest.raises(CutShort):
        store._do(interrupted)
    first = store._do(lambda connection: backend(connection, kind))
    with pytest.raises(CutShort):
        store._do(interrupted)
    assert store._do(lambda connection: backend(connection, kind)) != first
    assert store.peek("r") == (State.RUNNING, 0)


def backend(connection: Connection, kind: str) -> int:
    function = {"postgresql": "pg_backend_pid()", "mariadb": "CONNECTION_ID()"}[kind]
    return int(connection.exec_driver_sql(f"SELECT {function}").scalar() or 0)


# --- waiting -----------------------------------------------------------------------------------


def test_postgresql_notifies_who_waits(migrated: Callable[[str], str]) -> None:
    store = open_store(migrated("postgresql"), StoreOptions(f"wait-{time.time_ns()}"))
    store.create("r", b"", {}, 2)
    with ThreadPoolExecutor(2) as pool, statements() as sent:
        waits = (lambda: store.wait("r", 60), lambda: asyncio.run(store.wait_async("r", 60)))
        both = [pool.submit(wait) for wait in waits]
        with plain(store.url, isolation_level="AUTOCOMMIT") as observer:
            query = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN clutch_%%'"
            )
            until(lambda: observer.exec_driver_sql(query).scalar() == 2, "both to listen")
        complete(store, "0")
        looked = len([each for each in sent if "clutch_runs.state" in each])
        complete(store, "1")
        assert [each.result(60) for each in both] == [State.SUCCEEDED] * 2
        looks = [each for each in sent if "clutch_runs.state" in each]
        assert len(looks) <= looked + 4, "nobody asks again and again"
    store.close()


def test_who_does_not_want_to_listen_polls(migrated: Callable[[str], str]) -> None:
    url = make_url(migrated("postgresql")).update_query_dict({"clutch_listen": "0"})
    options = StoreOptions(f"poll-{time.time_ns()}")
    store = open_store(url.render_as_string(hide_password=False), options)
    store.create("r", b"", {}, 1)
    with ThreadPoolExecutor(2) as pool, statements() as sent:
        waits = (lambda: store.wait("r", 60), lambda: asyncio.run(store.wait_async("r", 60)))
        both = [pool.submit(wait) for wait in waits]
        looks = "SELECT clutch_runs.state"
        until(lambda: len([each for each in sent if each.startswith(looks)]) > 4, "them to look")
        complete(store, "0")
        assert [each.result(60) for each in both] == [State.SUCCEEDED] * 2
    store.close()


# --- what has expired --------------------------------------------------------------------------


def test_prune(url: str) -> None:
    prefix = f"prune-{time.time_ns()}"
    old = open_store(url, StoreOptions(prefix, ttl=0.001, result_ttl=0.001))
    new = open_store(url, StoreOptions(prefix))
    for number in range(25):
        old.create(f"old {number}", b"", {"0": b"page"}, 1)
    new.create("new", b"", {}, 1)
    until(lambda: not [s for s in new.scan()[0] if s.run != "new"], "the old ones to expire")
    other = open_store(url, StoreOptions(f"{prefix} of others"))
    assert other.prune() == 0
    with plain(url, isolation_level="AUTOCOMMIT") as connection:
        count = "SELECT count(*) FROM clutch_{} WHERE {} IN ({})"
        ids = f"SELECT id FROM clutch_runs WHERE prefix = '{prefix}'"
        assert connection.exec_driver_sql(count.format("rows", "run_id", ids)).scalar() == 25
        assert [new.prune(limit=10) for _ in range(4)] == [10, 10, 5, 0]
        assert connection.exec_driver_sql(count.format("rows", "run_id", ids)).scalar() == 0
        assert connection.exec_driver_sql(count.format("runs", "id", ids)).scalar() == 1
    assert new.peek("new") == (State.RUNNING, 0)
    for store in (old, new, other):
        store.close()


def test_the_task_prunes_in_batches(url: str) -> None:
    prefix = f"task-{time.time_ns()}"
    old = open_store(url, StoreOptions(prefix, ttl=0.001, result_ttl=0.001))
    for number in range(7):
        old.create(f"old {number}", b"", {}, 1)
    until(lambda: old.scan() == ([], ""), "the runs to expire")
    old.close()
    app = Celery("prune", set_as_current=False)
    app.conf.update(clutch_store=url, clutch_key_prefix=prefix)
    with statements() as sent:
        task = app.tasks["celery_clutch.prune"]
        assert task.apply(kwargs={"limit": 3}).get() == 7
    assert len([each for each in sent if each.startswith("DELETE")]) == 3
    forget_runtime(app)


def test_counts_that_have_expired_are_deleted_by_those_that_begin(url: str) -> None:
    prefix = f"counts-{time.time_ns()}"
    store = open_store(url, StoreOptions(prefix))
    for number in range(5):
        store.add_counts({f"60.{number}": {"a": 1}}, 0.001)
    until(lambda: not any(store.read_counts(["60.4"])), "the counts to expire")
    store.add_counts({"60.9": {"a": 1}}, 60)
    with plain(url, isolation_level="AUTOCOMMIT") as connection:
        count = f"SELECT count(*) FROM clutch_counts WHERE prefix = '{prefix}'"
        assert connection.exec_driver_sql(count).scalar() == 1
    store.close()


def test_an_expired_run_makes_room(url: str) -> None:
    prefix = f"room-{time.time_ns()}"
    old = open_store(url, StoreOptions(prefix, ttl=0.001, result_ttl=0.001))
    old.create("r", b"old", {"0": b"old"}, 1)
    new = open_store(url, StoreOptions(prefix))
    until(lambda: new.peek("r") is None, "the run to expire")
    new.create("r", b"new", {}, 1)
    record = new.read("r")
    assert record is not None
    assert (record.meta, new.page("r", "0")) == (b"new", Missing)
    assert new.prune() == 0
    for store in (old, new):
        store.close()
