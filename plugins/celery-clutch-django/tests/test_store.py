"""What the contract cannot know: transactions, connections, statements, and pruning."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery_clutch_django.models import CHILDREN, Run
from celery_clutch_django.plugin import open_store
from celery_clutch_django.tasks import prune
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext, override_settings
from shop import app

from celery_clutch import State
from celery_clutch.errors import AlreadyEngaged, ConfigurationError, StoreUnavailable, UnknownStore
from celery_clutch.extend.plugins import Plugins, forget_runtime, runtime
from celery_clutch.extend.settings import Settings
from celery_clutch.stores.base import Joins, Settles, StoreOptions, Verdict


def opened(alias: str, **options: Any) -> Any:
    return open_store(f"django://{alias}", StoreOptions(**options))


def play(store: Any, run: str) -> None:
    """A bit of everything in a run."""
    pages = {str(number): b"page" for number in range(3)}
    store.create(run, b"meta", pages, 5, jobs=5, name="n", tags=["t", "u"], data={"k": b"1"})
    store.begin(run, "0", "0", 0, 5)
    settles, joins = Settles("0", "0", 2), Joins("0", 2)
    more: dict[str, Any] = {"generation": 0, "token": "one", "settles": settles, "joins": joins}
    store.complete(run, "0", "0", b"value", changes={"k": None, "l": b"2"}, info=b"{}", **more)
    store.fail(run, "1", "1", b"{}", attempt=1, final=False, generation=0, token="two")
    store.hold(run, "2", b"held")
    store.take(run, "counter", "lane", -1, 0)


# --- how it is found ------------------------------------------------------------------------


@pytest.mark.usefixtures("_sqlite")
def test_it_is_found_by_its_scheme() -> None:
    store = Plugins().open(Settings("django://default", 7, 5, "prefix"))
    assert repr(store) == "<DjangoStore django://default>"
    assert store.options == StoreOptions("prefix", 7, 5)
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


# --- statements -------------------------------------------------------------------------------


@pytest.mark.usefixtures("_postgres")
def test_a_job_takes_two_statements_on_postgresql() -> None:
    store = opened("postgres", prefix="statements")
    store.create("r", b"", {}, 3)
    with CaptureQueriesContext(connections["postgres"]) as job:
        assert store.begin("r", "0", "0", 0, 5).verdict is Verdict.RUN
        store.complete(
            "r",
            "0",
            "0",
            b"1",
            generation=0,
            token="token",
            settles=Settles("0", "0", 1),
            joins=Joins("0", 1),
            changes={"key": b"1"},
        )
    assert len(job.captured_queries) == 2, "no BEGIN, no COMMIT: each is a transaction of its own"
    calls: dict[str, Callable[[], Any]] = {
        "fail": lambda: store.fail(
            "r", "1", "1", b"", attempt=1, final=True, generation=0, token="t"
        ),
        "hold": lambda: store.hold("r", "1", b""),
        "take": lambda: store.take("r", "k", "lane", -1, 0),
        "peek": lambda: store.peek("r"),
        "values": lambda: store.values("r", ["0", "1"]),
        "data": lambda: store.data("r"),
        "executions": lambda: store.executions("r"),
        "transition": lambda: store.transition("r", [State.FAILED], State.RUNNING, 0),
        "create": lambda: store.create("s", b"", {"0": b""}, 1, tags=["t"], data={"k": b"1"}),
        "delete": lambda: store.delete("r"),
    }
    for name, call in calls.items():
        with CaptureQueriesContext(connections["postgres"]) as made:
            call()
        assert len(made.captured_queries) == 1, name
    store.delete("s")


# --- transactions of the caller -----------------------------------------------------------------


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
    with pytest.raises(StoreUnavailable), transaction.atomic(using="postgres"):
        with connections["postgres"].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (backend,) = cursor.fetchone()
        with connections["postgres_server"].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
        store.create("r", b"", {}, 1)
    assert store.read("r") is None


@pytest.mark.usefixtures("_postgres")
def test_a_deadlock_is_survived() -> None:
    """The one of two transactions that PostgreSQL gives up is made again, if it is the store's."""
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
            "CREATE TRIGGER wait_for_other BEFORE INSERT ON celery_clutch_django_result"
            " FOR EACH ROW EXECUTE FUNCTION wait_for_other()"
        )
    thread = threading.Thread(target=other)
    thread.start()
    try:
        meets.wait()
        done = store.complete("a", "0", "0", b"1", generation=0, token="token")
        assert (done.remaining, done.fresh) == (1, True)
    finally:
        thread.join(60)
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP TRIGGER wait_for_other ON celery_clutch_django_result")
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
        lambda: store.begin("r", "0", "0", 0, 5),
    ):
        with pytest.raises(ConfigurationError, match=rf"migrate .* --database {empty}"):
            call()


def test_check_tells_what_to_do(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("_sqlite")
    lacking, slow = opened("empty").check()
    assert "lacks 0001_initial, 0002_functions of celery_clutch_django: run manage.py" in lacking
    assert "set CONN_MAX_AGE of DATABASES['empty'] to some seconds" in slow
    assert opened("default").check() == [slow.replace("'empty'", "'default'")]
    assert opened("nowhere").check() == []
    request.getfixturevalue("_postgres")
    assert opened("postgres").check() == []


# --- expiry ----------------------------------------------------------------------------------------


def count_rows(alias: str) -> int:
    models = [Run, *(model for model, _ in CHILDREN)]
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
