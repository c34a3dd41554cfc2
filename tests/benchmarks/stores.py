"""What each store costs a job: jobs a second, and round trips, statements and transactions of each.

Four threads play workers: each begins and completes jobs of one wide run, with its settling step, its
barrier, a change of the data now and then, and nothing else. Round trips are counted on the wire, by
a proxy between the store and its server; statements in this process, those that begin and end a
transaction included; transactions by the server (PostgreSQL).

    python tests/benchmarks/stores.py [--jobs 2000] [--repeat 3] [--only postgresql] [--out DIR]

Stores whose plugin or server is not there are left out, with the reason. Writes ``stores.json``. Jobs a
second are shown as ratios to Redis in the same run; absolute numbers mean nothing on shared
machines. Exits with 1 where Redis or PostgreSQL, which have `begin` and `complete` as scripts, need
more than two round trips for a job, or PostgreSQL more than three transactions: `complete` waits for
the disk in a second one, when others have the run again. The other stores run the rules over rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from celery_clutch.extend.plugins import Plugins  # noqa: E402
from celery_clutch.extend.settings import Settings  # noqa: E402
from celery_clutch.stores.base import (  # noqa: E402
    Barrier,
    Claim,
    Completion,
    ResultStore,
    Settles,
    Verdict,
)

THREADS = 4
REDIS = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379") + "/14"
POSTGRESQL = os.environ.get(
    "CLUTCH_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/test"
)
MARIADB = os.environ.get("CLUTCH_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/test")


TITLES = {"turns": "round trips", "statements": "statements", "transactions": "transactions"}
COUNTS = tuple(TITLES)


class Proxy:
    """Passes bytes on to a server, and counts how often the direction turns to it: round trips."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.turns = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            quiet = threading.Event()  # the server spoke last
            quiet.set()
            for args in ((client, server, quiet, True), (server, client, quiet, False)):
                threading.Thread(target=self._pass_on, args=args, daemon=True).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, quiet: threading.Event, asks: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                if asks and quiet.is_set():
                    with self._lock:
                        self.turns += 1
                    quiet.clear()
                elif not asks:
                    quiet.set()
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        self._listener.close()


@dataclass
class Place:
    """A store under test, and how its server counts.

    Attributes:
        turns, statements, transactions: how many there were so far.
        most: how many there may be for a job.
    """

    store: ResultStore
    turns: Callable[[], int] | None = None
    statements: Callable[[], int] | None = None
    transactions: Callable[[], int] | None = None
    most: Mapping[str, int] = field(default_factory=dict)


def through(url: str, proxy: Proxy) -> str:
    """*url* with the proxy for its host."""
    parts = urlsplit(url)
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return parts._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()


@contextmanager
def proxied(url: str, port: int) -> Iterator[tuple[str, Proxy]]:
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or port)
    try:
        yield through(url, proxy), proxy
    finally:
        proxy.close()


def opened(url: str) -> ResultStore:
    store = Plugins().open(Settings(url, key_prefix=f"bench-{uuid4().hex[:8]}"))
    store.migrate()
    return store


def statements() -> Callable[[], int]:
    """How many statements were sent from now on, in this process, by SQLAlchemy or straight to
    psycopg."""
    from sqlalchemy import Engine, event

    sent = itertools.count()

    @event.listens_for(Engine, "before_cursor_execute")
    def count(*_: Any) -> None:
        next(sent)

    try:
        from psycopg import Connection
    except ImportError:
        pass
    else:
        straight = Connection.execute

        def execute(self: Any, *args: Any, **options: Any) -> Any:
            next(sent)
            return straight(self, *args, **options)

        Connection.execute = execute  # type: ignore[method-assign]

    # What a count will give next; looking at it gives nothing away.
    return lambda: int(repr(sent)[6:-1])


@contextmanager
def memory() -> Iterator[Place]:
    yield Place(opened("memory://"))


@contextmanager
def redis() -> Iterator[Place]:
    with proxied(REDIS, 6379) as (url, proxy):
        yield Place(opened(url), lambda: proxy.turns, most={"turns": 2})


@contextmanager
def postgresql() -> Iterator[Place]:
    with (
        _database_of_its_own() as (name, own),
        proxied(urlsplit(POSTGRESQL)._replace(path=name).geturl(), 5432) as (url, proxy),
    ):
        store = opened(url)
        turns, transactions = lambda: proxy.turns, lambda: _postgresql_transactions(own, name)
        most = {"turns": 2, "transactions": 3}
        yield Place(store, turns, statements(), transactions, most)
        store.close()


@contextmanager
def _database_of_its_own() -> Iterator[tuple[str, Any]]:
    """The name of a new database, and a connection to another one: the server counts transactions
    for each database, and other tests use that of the URL at the same time."""
    import psycopg

    name = f"clutch_bench_{uuid4().hex[:8]}"
    with psycopg.connect(POSTGRESQL.replace("+psycopg", ""), autocommit=True) as own:
        own.execute(f"CREATE DATABASE {name}")
        try:
            yield name, own
        finally:
            own.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _postgresql_transactions(own: Any, name: str) -> int:
    own.execute("SELECT pg_stat_clear_snapshot()")
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = %s"
    return int(own.execute(query, (name,)).fetchone()[0])


@contextmanager
def mariadb() -> Iterator[Place]:
    with proxied(MARIADB, 3306) as (url, proxy):
        yield Place(opened(url), lambda: proxy.turns, statements())


@contextmanager
def sqlite() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as directory:
        yield Place(opened(f"sqlite:///{directory}/clutch.db"), statements=statements())


@contextmanager
def django_postgresql() -> Iterator[Place]:
    parts = urlsplit(POSTGRESQL)
    with proxied(POSTGRESQL, 5432) as (_, proxy):
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path.strip("/"),
            "USER": parts.username or "",
            "PASSWORD": parts.password or "",
            "HOST": "127.0.0.1",
            "PORT": proxy.port,
        }
        yield Place(_django(database), lambda: proxy.turns)


def _django(database: dict[str, Any]) -> ResultStore:
    import django
    from django.conf import settings
    from django.core.management import call_command

    apps = ["celery_clutch_django"]
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=apps, USE_TZ=True)
    django.setup()
    call_command("migrate", verbosity=0)
    return opened("django://default")


PLACES = {
    "memory": memory,
    "redis": redis,
    "postgresql": postgresql,
    "mariadb": mariadb,
    "sqlite": sqlite,
    "django-postgresql": django_postgresql,
}


def play(store: ResultStore, jobs: int) -> None:
    """Begin and complete all jobs of one run."""
    run = uuid4().hex
    store.create(run, b"meta", {"0": b"page", "1": b"page"}, jobs)
    barrier = Barrier("0", jobs, "page 1")
    opened: list[str] = []
    problems: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, jobs, THREADS):
                at = f"0.{number}"
                begun = store.begin(
                    Claim(run, at, 0, owner="worker", limit=5, receipts=(f"job {at}",))
                )
                assert begun.verdict is Verdict.RUN
                done = store.complete(
                    Completion(
                        run,
                        at,
                        0,
                        b'{"result": 1}',
                        token=at,
                        settles=Settles("0", at, jobs),
                        barriers=(barrier,),
                        changes={"last": b"%d" % number} if number % 10 == 0 else {},
                        info=b"{}",
                    )
                )
                opened.extend(done.due)
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    record = store.read(run)
    assert record is not None
    assert (record.remaining, opened) == (0, ["page 1"]), record
    store.delete(run)


def settle(place: Place) -> None:
    """Wait until the server has counted all transactions.

    A connection of PostgreSQL 15 tells of its own when it ends, or after ten idle seconds.
    """
    if place.transactions is None:
        return
    place.store.close()
    known, since = place.transactions(), time.monotonic()
    while time.monotonic() < since + 0.5:
        time.sleep(0.05)
        now = place.transactions()
        if now > known:
            since = time.monotonic()
        known = now


def measure(place: Place, jobs: int) -> dict[str, float]:
    counts = {name: getattr(place, name) for name in COUNTS if getattr(place, name)}
    settle(place)
    before = {name: count() for name, count in counts.items()}
    started = time.perf_counter()
    play(place.store, jobs)
    found = {"rate": jobs / (time.perf_counter() - started)}
    settle(place)
    for name, count in counts.items():
        found[name] = (count() - before[name]) / jobs
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="What each store costs a job")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="stores whose name contains this")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    bad = False
    with ExitStack() as stack:
        places: dict[str, Place] = {}
        for name, make in PLACES.items():
            if options.only not in name:
                continue
            try:
                places[name] = stack.enter_context(make())
                play(places[name].store, 50)
            except Exception as exc:
                places.pop(name, None)
                print(f"{name}: left out: {type(exc).__name__}: {str(exc)[:150]}")
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for _ in range(options.repeat):  # in turn, so that a busy moment meets all of them
            for name, place in places.items():
                samples[name].append(measure(place, options.jobs))
        for name, each in samples.items():
            rows[name] = {key: statistics.median(s[key] for s in each) for key in each[0]}
    base = rows.get("redis", {}).get("rate")
    print(
        f"{'store':20} {'jobs/s':>8} {'redis = 1':>10}", *(f"{TITLES[name]:>13}" for name in COUNTS)
    )
    for name, row in rows.items():
        ratio = f"{row['rate'] / base:10.2f}" if base else " " * 10
        row["ratio"] = row["rate"] / base if base else None
        counted = (f"{row[each]:13.2f}" if each in row else " " * 13 for each in COUNTS)
        print(f"{name:20} {row['rate']:8.0f} {ratio}", *counted)
        # The start and the end of a run, and a little for the other sessions of the server.
        for each, most in places[name].most.items():
            if row[each] > most + 0.1:
                print(f"  BAD more than {most} {TITLES[each]} a job: {name}")
                bad = True
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stores.json").write_text(json.dumps(rows, indent=2))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
