"""What the contract cannot know: transactions, connections, statements, and pruning."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import io
import os
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from celery_clutch_django.models import Row, Run
from celery_clutch_django.plugin import open_store
from celery_clutch_django.tasks import prune
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections, transaction
from django.test import TestCase
from django.test.utils import CaptureQueriesContext, override_settings
from shop import app

from celery_clutch import State
from celery_clutch.errors import AlreadyEngaged, ConfigurationError, StoreUnavailable, UnknownStore
from celery_clutch.extend.plugins import Plugins, forget_runtime, runtime
from celery_clutch.extend.settings import Settings
from celery_clutch.stores.base import (
    Attempted,
    Barrier,
    Begun,
    Claim,
    Completion,
    Settles,
    StoreOptions,
)

allowed_in_transactions = override_settings(CLUTCH_ALLOW_IN_TRANSACTION=True)


def opened(alias: str, **options: Any) -> Any:
    return open_store(f"django://{alias}", StoreOptions(**options))


def begin(store: Any, run: str, address: str) -> Begun:
    found: Begun = store.begin(Claim(run, address, 0, owner="owner", limit=5, receipts=("page 0",)))
    return found


def play(store: Any, run: str) -> None:
    """A bit of everything in a run."""
    pages = {str(number): b"page" for number in range(3)}
    due = {"page 0": 1.0}
    store.create(run, b"meta", pages, 5, name="n", tags=["t", "u"], data={"k": b"1"}, due=due)
    begin(store, run, "0")
    more: dict[str, Any] = {"settles": Settles("0", "0", 2), "barriers": (Barrier("0", 2, "1"),)}
    changes = {"k": None, "l": b"2"}
    store.complete(Completion(run, "0", 0, b"value", "one", changes=changes, info=b"{}", **more))
    store.fail(Attempted(run, "1", 0, b"{}", 1, False, "two", retry=("job 1", 2.0)))
    begin(store, run, "2")
    store.checkpoint(run, "2", b"held", 0)
    store.report(run, "2", "child", b"{}")


# --- how it is found ------------------------------------------------------------------------


@pytest.mark.usefixtures("_sqlite")
def test_it_is_found_by_its_scheme() -> None:
    store = Plugins().open(Settings("django://default", 7, 5, "prefix", failed_ttl=6))
    assert repr(store) == "<DjangoStore django://default>"
    assert store.options == StoreOptions("prefix", 7, 5, 6)
    assert Plugins().open(Settings("django://")).url == "django://"


def test_an_unknown_database_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no 'other'; known are default, "):
        open_store("django://other")
    with pytest.raises(UnknownStore):
        Plugins().open(Settings("djangoo://default"))


def test_it_needs_its_app(run_python: Callable[..., str]) -> None:
    said = run_python(
        """
        from celery import Celery
        from celery_clutch import ClutchResult, errors
        app = Celery(broker="memory://")
        app.conf.clutch_store = "django://default"
        def say():
            try:
                ClutchResult("r", app).state
            except errors.ConfigurationError as exc:
                print(exc)
        say()
        from django.conf import settings
        settings.configure()
        say()
        import django
        django.setup()
        say()
        """
    )
    first, second, third = said.splitlines()
    assert "set DJANGO_SETTINGS_MODULE" in first
    assert "call django.setup()" in second
    assert third == 'django://default: add "celery_clutch_django" to INSTALLED_APPS'


# --- databases that take other text for the same ------------------------------------------------

ON_MARIADB = """
    import os
    from urllib.parse import unquote, urlsplit
    import pymysql
    pymysql.version_info = (2, 2, 7, "final", 0)  # what Django asks of mysqlclient
    pymysql.install_as_MySQLdb()
    place = urlsplit(os.environ["PLACE"])
    user, password = unquote(place.username or "root"), unquote(place.password or "")
    how = {"host": place.hostname, "port": place.port or 3306, "user": user, "password": password}
    name = f"clutch_django_{os.getpid()}"
    try:
        server = pymysql.connect(**how)
    except pymysql.Error as exc:
        raise SystemExit(print(f"missing {exc}"))
    server.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        import django
        from django.conf import settings
        from django.core.management import call_command
        database = {"ENGINE": "django.db.backends.mysql", "NAME": name}
        database |= {key.upper(): value for key, value in how.items()}
        apps = ["celery_clutch_django"]
        settings.configure(DATABASES={"default": database}, INSTALLED_APPS=apps, USE_TZ=True)
        django.setup()
        call_command("migrate", verbosity=0)
        from celery_clutch.stores.base import Completion, StoreOptions
        from celery_clutch_django.plugin import open_store
        store = open_store("django://default", StoreOptions("x"))
        texts = ["k", "K", "k ", " ", "  ", "e", "\u00e9", "e\u0301", "\u00df", "ss", "\U0001f600" * 200]
        for text in texts:
            store.create(text, b"", {}, 1, data={key: key.encode() for key in texts})
        store.complete(Completion("k", "0", 0, b"", changes={"k": None}))
        store.renew(texts, 60)
        kept = {key: key.encode() for key in texts}
        assert store.data("K") == kept, store.data("K")
        del kept["k"]
        assert store.data("k") == kept, store.data("k")
        assert {each.run for each in store.scan()[0]} == set(texts)
        assert set(store.owners()) == set(texts)
    finally:
        server.cursor().execute(f"DROP DATABASE {name}")
    print("fine")
"""


def test_text_is_itself_only_on_mariadb(
    run_python: Callable[..., str], missing: Callable[[str, object], NoReturn]
) -> None:
    if importlib.util.find_spec("pymysql") is None:
        missing("PyMySQL", "it is not installed")
    place = os.environ.get("CLUTCH_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/test")
    said = run_python(ON_MARIADB, PLACE=place).strip()
    if said.startswith("missing"):
        missing("MariaDB", said)
    assert said == "fine"


# --- statements -------------------------------------------------------------------------------


def test_statements(alias: str) -> None:
    """Whatever is asked for together is read together; the transaction's own two are counted."""
    store = opened(alias, prefix="statements")
    store.create("r", b"", {}, 9)
    barriers = tuple(Barrier(name, 9, "page 1") for name in "abc")
    done = Completion("r", "0", 0, b"1", barriers=barriers[:1], changes={"k": b"1", "l": None})
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "begin": (5, lambda: begin(store, "r", "0")),
        "complete": (7, lambda: store.complete(done)),
        "repeated": (5, lambda: store.complete(done)),
        "peek": (1, lambda: store.peek("r")),
        "read": (2, lambda: store.read("r")),
        "values": (1, lambda: store.values("r", ["0", "1"])),
        "finished": (1, lambda: store.finished("r", ["0", "1"])),
        "page": (1, lambda: store.page("r", "0")),
        "scan": (1, store.scan),
        "renew": (3, lambda: store.renew(["one", "two"], 1.0)),
    }
    lock = alias == "default"  # SQLite takes the lock of the one writer in a statement of its own
    for name, (count, call) in calls.items():
        with CaptureQueriesContext(connections[alias]) as made:
            call()
        writes = name in ("begin", "complete", "repeated")
        said = "\n".join(query["sql"] for query in made.captured_queries)
        assert len(made.captured_queries) == count + (lock and writes), f"{name}: {said}"
    store.retire(["one", "two"])
    store.delete("r")


def test_a_row_is_not_read_before_it_is_written_alone(alias: str) -> None:
    """What many write at once waits for its turn, and nobody overwrites what another has read."""
    store = opened(alias, prefix="turns")
    store.create("r", b"", {}, 80)
    failed: list[Exception] = []

    def work(worker: int) -> None:
        try:
            for number in range(20):
                barriers = (Barrier("all", 80, "page 1"),)
                store.complete(Completion("r", f"{worker}.{number}", 0, b"1", barriers=barriers))
        except Exception as exc:
            failed.append(exc)
        finally:
            connections[alias].close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert (store.counts("r", ["all"]), set(store.read("r").due)) == ([80], {"page 1"})
    store.delete("r")


# --- transactions of the caller -----------------------------------------------------------------


def test_a_run_is_not_started_in_a_transaction(store: Any, alias: str) -> None:
    """Its messages would arrive before the commit."""
    store.create("r", b"", {}, 1)
    store.transition("r", [State.RUNNING], State.CANCELLED, 0)
    with transaction.atomic(using=alias):
        with pytest.raises(ConfigurationError, match=r"engage_on_commit\(clutch\)"):
            store.create("s", b"", {}, 1)
        with pytest.raises(ConfigurationError, match=r"on_commit\(run.resume\)"):
            store.transition("r", [State.CANCELLED], State.RUNNING, 0)
    assert (store.peek("r"), store.peek("s")) == ((State.CANCELLED, 0), None)
    with transaction.atomic(using=alias), allowed_in_transactions:
        store.create("s", b"", {}, 1)
        assert store.transition("r", [State.CANCELLED], State.RUNNING, 0)
    assert (store.peek("r"), store.peek("s")) == ((State.RUNNING, 1), (State.RUNNING, 0))


def test_what_ends_a_run_is_part_of_the_transaction(store: Any, alias: str) -> None:
    store.create("r", b"", {}, 1)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):
        assert store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        raise ZeroDivisionError
    assert store.peek("r") == (State.RUNNING, 0)
    with transaction.atomic(using=alias):
        assert store.delete("r")
    assert store.peek("r") is None


def test_the_transaction_of_a_test_case_is_none(store: Any, alias: str) -> None:
    """As with Django's own ``durable``."""

    class Engages(TestCase):
        databases = frozenset([alias])

        def runTest(self) -> None:
            store.create("r", b"", {}, 1)
            with transaction.atomic(using=alias), pytest.raises(ConfigurationError):
                store.create("s", b"", {}, 1)

    result = unittest.TestSuite([Engages()]).run(unittest.TestResult())
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert store.peek("r") is None, "rolled back"


@allowed_in_transactions
def test_a_transaction_around_it_takes_it_along(store: Any, alias: str) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):
        play(store, "r")
        assert store.values("r", ["0"]) == [b"value"]
        raise ZeroDivisionError
    assert store.read("r") is None
    assert store.scan() == ([], "")
    with transaction.atomic(using=alias):
        play(store, "r")
    assert store.peek("r") == (State.RUNNING, 0)


@allowed_in_transactions
def test_an_id_that_is_taken_leaves_the_transaction_usable(store: Any, alias: str) -> None:
    store.create("r", b"", {}, 1)
    with transaction.atomic(using=alias):
        with pytest.raises(AlreadyEngaged):
            store.create("r", b"", {}, 1)
        store.create("s", b"", {}, 1)
    assert store.peek("s") == (State.RUNNING, 0)


# --- connections --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_postgres")
def test_a_connection_that_was_cut_is_replaced() -> None:
    store = opened("postgres", prefix="cut")
    store.create("r", b"", {}, 1)
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    with connections["postgres_server"].cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
    with pytest.raises(StoreUnavailable, match="the database 'postgres' does not answer"):
        store.peek("r")
    assert store.peek("r") == (State.RUNNING, 0)
    assert store.delete("r")


@pytest.mark.usefixtures("_postgres")
def test_a_cut_connection_of_a_transaction_is_left_to_its_owner() -> None:
    store = opened("postgres", prefix="cut")
    with (
        allowed_in_transactions,
        pytest.raises(StoreUnavailable),
        transaction.atomic(using="postgres"),
    ):
        with connections["postgres"].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (backend,) = cursor.fetchone()
        with connections["postgres_server"].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
        store.create("r", b"", {}, 1)
    assert store.read("r") is None


@pytest.mark.usefixtures("_postgres")
def test_a_deadlock_is_survived() -> None:
    """The one of two transactions that PostgreSQL gives up is made again, as a worker calls it."""
    store = opened("postgres", prefix="deadlock")
    store.create("a", b"", {}, 2)
    meets, failed = threading.Barrier(2, timeout=60), []

    def other() -> None:
        # Holds run a, and wants what the store holds while it waits for a.
        try:
            with transaction.atomic(using="postgres"):
                with connections["postgres"].cursor() as cursor:
                    # It is the one that waits longer, and so not the one that looks for deadlocks.
                    cursor.execute("SET LOCAL deadlock_timeout = '60s'")
                    cursor.execute("SELECT pg_advisory_xact_lock(1)")
                    meets.wait()
                    until_waiting(cursor)
                    cursor.execute(
                        "UPDATE celery_clutch_django_run SET name = 'other'"
                        " WHERE prefix = 'deadlock' AND run = 'a'"
                    )
        except Exception as exc:
            failed.append(exc)
        finally:
            connections["postgres"].close()

    def until_waiting(cursor: Any) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
            if cursor.fetchone()[0]:
                return
            time.sleep(0.01)
        raise AssertionError("nobody waits for the lock")

    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION wait_for_other() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER wait_for_other BEFORE INSERT ON celery_clutch_django_row"
            " FOR EACH ROW EXECUTE FUNCTION wait_for_other()"
        )
    thread = threading.Thread(target=other)
    thread.start()
    try:
        meets.wait()
        done = store.patiently(store.complete, Completion("a", "0", 0, b"1"))
        assert (done.remaining, done.fresh) == (1, True)
    finally:
        thread.join(60)
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP TRIGGER wait_for_other ON celery_clutch_django_row")
            cursor.execute("DROP FUNCTION wait_for_other")
    assert failed == []
    assert [summary.name for summary in store.scan()[0]] == ["other"]
    store.delete("a")


@pytest.mark.parametrize("empty", ["empty", "postgres_empty"])
def test_missing_tables_name_the_command(empty: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("_postgres" if empty.startswith("postgres") else "_sqlite")
    store = opened(empty)
    for call in (
        lambda: store.create("r", b"", {}, 1),
        lambda: store.peek("r"),
        lambda: begin(store, "r", "0"),
    ):
        with pytest.raises(ConfigurationError, match=rf"migrate .* --database {empty}"):
            call()


def test_check_tells_what_to_do(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("_sqlite")
    lacking, slow = opened("empty").check()
    assert "lacks 0001_initial of celery_clutch_django: run manage.py" in lacking
    assert "set CONN_MAX_AGE of DATABASES['empty'] to some seconds" in slow
    assert opened("default").check() == [slow.replace("'empty'", "'default'")]
    assert opened("nowhere").check() == []
    request.getfixturevalue("_postgres")
    assert opened("postgres").check() == []


# --- expiry ----------------------------------------------------------------------------------------


def count_rows(alias: str) -> int:
    models: list[Any] = [Run, Row]
    return sum(model.objects.using(alias).count() for model in models)


def test_prune_leaves_nothing_of_what_has_expired(alias: str) -> None:
    brief = opened(alias, prefix="prune", ttl=0.2, result_ttl=0.2)
    long = opened(alias, prefix="prune")
    other = opened(alias, prefix="another", ttl=0.2, result_ttl=0.2)
    before = count_rows(alias)
    for number in range(3):
        play(brief, f"brief {number}")
    deadline = time.monotonic() + 60
    while brief.scan()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    play(long, "long")
    kept = count_rows(alias)
    assert other.prune() == 0, "of its own prefix only"
    assert (long.prune(2), long.prune(2), long.prune(2)) == (2, 1, 0), "at most as many"
    assert long.peek("long") == (State.RUNNING, 0)
    assert count_rows(alias) < kept
    long.delete("long")
    assert count_rows(alias) == before


def test_prune_by_command_and_by_task(alias: str, store: Any) -> None:
    app.conf.update(clutch_ttl=0.1, clutch_result_ttl=0.1)
    forget_runtime(app)
    try:
        brief = runtime(app).store
        for said, call in (
            ("deleted 2 expired runs\n", lambda: command("--limit", "2")),
            ("deleted 1 expired run\n", command),
            ("deleted 0 expired runs\n", command),
            (250, lambda: prune.run()),
        ):
            if said in ("deleted 2 expired runs\n", 250):
                for number in range(3 if said != 250 else 250):
                    brief.create(f"r{number}", b"", {}, 1)
            deadline = time.monotonic() + 60
            while brief.scan()[0]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert call() == said
    finally:
        app.conf.update(clutch_ttl=None, clutch_result_ttl=None)
        forget_runtime(app)
    assert prune.name == "celery_clutch_django.prune"


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("clutch_prune", *arguments, stdout=out)
    return out.getvalue()


@pytest.mark.parametrize("path", ["shop.nothing", "no.such.module", "shop.not_an_app"])
def test_a_setting_that_names_no_app(path: str) -> None:
    with override_settings(CLUTCH_CELERY_APP=path), pytest.raises(CommandError, match=path):
        command()


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_postgres")
def test_waiting_in_an_event_loop_leaves_no_connection_behind() -> None:
    def all_closed() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # the server takes note of it a little later
            with connections["postgres_server"].cursor() as cursor:
                cursor.execute(query, [connections["postgres"].settings_dict["NAME"]])
                if cursor.fetchone()[0] == 0:
                    return True
            time.sleep(0.02)
        return False

    store = opened("postgres", prefix="async")
    store.create("r", b"", {}, 1)
    store.close()
    gc.collect()
    assert all_closed()

    async def waits() -> tuple[State | None, bool]:
        return await store.wait_async("r", 0.3), await asyncio.to_thread(all_closed)

    settings = connections.settings["postgres"]
    max_age, settings["CONN_MAX_AGE"] = settings["CONN_MAX_AGE"], 0
    try:
        assert asyncio.run(waits()) == (State.RUNNING, True)
    finally:
        settings["CONN_MAX_AGE"] = max_age
    store.delete("r")
