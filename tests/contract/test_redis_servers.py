"""The Redis store on servers of every kind, healthy and not."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import fakeredis
import pytest
import redis

from celery_clutch.errors import CorruptRecord, StoreUnavailable
from celery_clutch.extend.plugins import Plugins
from celery_clutch.extend.settings import Settings
from celery_clutch.model.status import State
from celery_clutch.stores.base import (
    Attempted,
    Barrier,
    Begun,
    Claim,
    Completed,
    Completion,
    Failed,
    Missing,
    Settles,
    StoreOptions,
    Verdict,
)
from celery_clutch.stores.redis import RedisStore

Start = Callable[..., Any]

GUEST = StoreOptions("keys-guest", ttl=60)
"""For the database that is not ours alone: whatever is left there is soon gone."""


def begin(store: RedisStore, run: str, address: str) -> Begun:
    return store.begin(Claim(run, address, 0, owner="worker", limit=5))


def complete(store: RedisStore, run: str, address: str, **more: Any) -> Completed:
    more = {"value": b"1", "token": "t", **more}
    return store.complete(Completion(run, address, 0, **more))


def fail(store: RedisStore, run: str, address: str, **more: Any) -> Failed:
    more = {"failure": b"{}", "attempt": 1, "final": False, "token": "t", **more}
    return store.fail(Attempted(run, address, 0, **more))


def tour(store: RedisStore) -> None:
    """The life of a run, with every call there is."""
    run = f"tour-{uuid.uuid4()}"
    try:
        pages = {"0": b"page", "1": b"more"}
        store.create(run, b"meta", pages, 3, name="name", tags=["tag"], due={"page 0": 1.0})
        assert store.page(run, "1") == b"more"
        first = store.begin(Claim(run, "0", 0, owner="me", limit=5, receipts=("page 0",)))
        assert first == Begun(Verdict.RUN)
        assert begin(store, run, "0") == Begun(Verdict.BUSY, owner="me")
        store.release(run, "0", "me", 0)
        assert begin(store, run, "0") == Begun(Verdict.RUN)
        assert list(store.leases(run)) == ["0"]
        assert store.checkpoint(run, "0", b"held", 0, ["start"])
        assert store.report(run, "0", "child", b"1") == (b"held", {"child": b"1"})
        store.remind(run, {"start": 2.0})
        store.tried(run, ["start"])
        store.published(run, ["start"])
        opens = (Barrier("0", 1, then="page 1"),)
        done = complete(store, run, "0", value=b"zero", barriers=opens, changes={"a": b"b"})
        assert (done.remaining, done.due, done.pages) == (2, ("page 1",), {"1": b"more"})
        step = (Settles("1", "1", 1),)
        assert fail(store, run, "1", final=True, settles=step) == Failed(
            True, True, settled=("1",), due=("failure 1",)
        )
        assert store.transition(run, [State.FAILED], State.RUNNING, 0)
        store.skip(run, "2", 1, 1)
        assert complete(store, run, "1", value=b"one").fresh
        assert store.values(run, ["0", "1", "2"]) == [b"zero", b"one", Missing]
        assert store.finished(run, ["0", "2"]) == {"0"}
        assert (store.counts(run, ["0"]), store.data(run)) == ([0], {"a": b"b"})
        assert (store.page(run, "0"), store.peek(run)) == (b"page", (State.RUNNING, 1))
        record = store.read(run)
        assert record is not None
        assert (record.meta, record.done, record.remaining) == (b"meta", 2, 1)
        assert store.wait(run, 0.05) is State.RUNNING
        assert complete(store, run, "2", value=b"two", token="d").succeeded
        assert store.wait(run, 10) is State.SUCCEEDED
        assert asyncio.run(store.wait_async(run, 10)) is State.SUCCEEDED
        assert run in [summary.run for summary in store.scan()[0]]
        store.renew(["me", "you"], 60)
        assert 50 < store.owners()["me"] <= 60
        store.retire(["me", "you"])
        assert store.check() == []
        assert store.delete(run)
        assert store.read(run) is None
    finally:
        store.close()


# --- where a server can be -----------------------------------------------------------------------


def test_password_user_and_database(start_redis: Start) -> None:
    server = start_redis("--requirepass", "p@ss/w:rd")
    admin = redis.Redis.from_url(server.url, password="p@ss/w:rd", db=3)
    place = server.url.removeprefix("redis://")
    tour(RedisStore(f"redis://:p%40ss%2Fw%3Ard@{place}/3"))
    admin.execute_command("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all")
    store = RedisStore(f"redis://me:secret@{place}/3")
    tour(store)
    store.create("here", b"", {}, 1)
    assert admin.exists("clutch:{here}:run"), "the database of the URL is used"
    admin.close()
    store.close()
    for url in (f"redis://:wrong@{place}", f"redis://{place}"):
        store = RedisStore(url)
        with pytest.raises(StoreUnavailable) as error:
            store.create("r", b"", {}, 1)
        assert "wrong" not in f"{error.value} {store!r}"
        store.close()


@pytest.mark.skipif(
    redis.__version__.startswith("4.5."), reason="redis-py 4.5 cannot connect to these itself"
)
def test_a_socket_in_the_file_system(start_redis: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start_redis("--unixsocket", path, "--port", 0, url=f"unix://{path}?db=2")
    store = RedisStore(f"redis+socket://{path}?virtual_host=2")
    tour(store)
    store.create("here", b"", {}, 1)
    assert server.client.exists("clutch:{here}:run"), "virtual_host is the database"
    store.close()


def test_tls(
    start_redis: Start, tmp_path: Path, missing: Callable[[str, object], NoReturn], free_port: Any
) -> None:
    key, cert, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    if shutil.which("openssl") is None:
        missing("openssl", "the program is not installed")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names.split(), *files], check=True, capture_output=True)
    url = f"rediss://localhost:{port}/0"
    own = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
    options = [*own, "--tls-auth-clients", "no", "--tls-port", port, "--port", 0]
    start_redis(*options, url=f"{url}?ssl_ca_certs={cert}")
    tour(RedisStore(f"{url}?ssl_cert_reqs=CERT_NONE"))
    tour(RedisStore(f"{url}?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={cert}"))
    store = RedisStore(f"{url}?ssl_cert_reqs=CERT_REQUIRED")
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
        store.peek("r")
    store.close()


def test_sentinel(start_redis: Start, tmp_path: Path, free_port: Any, until: Any) -> None:
    master = start_redis()
    _, _, port = master.url.rpartition(":")
    file, other = tmp_path / "sentinel.conf", free_port()
    file.write_text(f"port {other}\nsentinel monitor shop-master 127.0.0.1 {port} 1\n")
    sentinel = start_redis(file, "--sentinel", url=f"redis://localhost:{other}")
    until(lambda: sentinel.client.execute_command("SENTINEL", "MASTERS"))

    tour(RedisStore(f"sentinel://localhost:{other}/shop-master"))
    tour(RedisStore(f"sentinel://localhost:1,localhost:{other}/shop-master"))
    celery_form = f"sentinel://localhost:1;sentinel://localhost:{other}/4"
    store = RedisStore(f"{celery_form}?master_name=shop-master")
    tour(store)
    store.create("here", b"", {}, 1)
    with redis.Redis.from_url(f"{master.url}/4") as client:
        assert client.exists("clutch:{here}:run"), "the path is the database"
    store.close()

    conf = {
        "result_backend": celery_form,
        "result_backend_transport_options": {"master_name": "shop-master"},
    }
    derived = Plugins([]).open(Settings.of(conf))
    assert derived.peek("here") == (State.RUNNING, 0), "derived from Celery's own settings"
    derived.close()

    store = RedisStore(f"sentinel://localhost:{other}/unknown")
    with pytest.raises(StoreUnavailable, match="unknown"):
        store.peek("r")


def test_cluster(start_redis: Start, until: Any) -> None:
    nodes = [start_redis("--cluster-enabled", "yes", "--cluster-node-timeout", 2000) for _ in "abc"]
    ports = [int(node.url.rpartition(":")[2]) for node in nodes]
    bounds = [0, 5000, 10000, 16384]
    for node, first, last in zip(nodes, bounds, bounds[1:], strict=False):
        node.client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
        node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])

    def joined() -> bool:
        infos = [node.client.execute_command("CLUSTER INFO") for node in nodes]
        known = [int(info["cluster_known_nodes"]) for info in infos]
        return known == [3] * 3 and all(info["cluster_state"] == "ok" for info in infos)

    until(joined)
    store = RedisStore(f"redis+cluster://localhost:{ports[0]}")
    for _ in range(6):  # runs land on one node or another
        tour(store)
    for number in range(10):
        store.create(f"r{number}", b"", {}, 1)
    assert len(store.scan(count=100)[0]) == 10
    with redis.RedisCluster.from_url(nodes[0].url) as client:
        client.zadd("clutch:runs", {"old": time.time() - 1000, "about to be created": time.time()})
        assert len(store.scan(count=100)[0]) == 10
        assert client.zscore("clutch:runs", "old") is None
        assert client.zscore("clutch:runs", "about to be created"), "a run is listed first"
    used = [node.client.dbsize() for node in nodes]
    assert sum(count > 0 for count in used) > 1, "runs are spread over the nodes"
    store.close()


# --- servers that do not do what they should -----------------------------------------------------


def attempts(store: RedisStore) -> dict[str, Callable[[], Any]]:
    """The calls that write."""
    return {
        "create": lambda: store.create("new", b"", {"0": b"page"}, 1),
        "begin": lambda: begin(store, "r", "0"),
        "complete": lambda: complete(store, "r", "0"),
        "fail": lambda: fail(store, "r", "0"),
        "checkpoint": lambda: store.checkpoint("r", "0", b"", 0),
        "remind": lambda: store.remind("r", {"job 0": 1.0}),
        "transition": lambda: store.transition("r", [State.RUNNING], State.CANCELLED, 0),
    }


def test_out_of_memory(start_redis: Start) -> None:
    server = start_redis("--maxmemory-policy", "noeviction")
    store = RedisStore(server.url)
    store.create("r", b"meta", {}, 2)
    complete(store, "r", "1", value=b"value")
    server.client.config_set("maxmemory", "1mb")
    before = store.read("r")
    for name, attempt in attempts(store).items():
        if name != "transition":  # so that runs can be cancelled
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                attempt()
                pytest.fail(f"{name} in a server without memory")
    assert store.read("r") == before, "what is stored can still be read, and nothing was half done"
    assert store.values("r", ["1"]) == [b"value"]
    attempts(store)["transition"]()
    assert store.peek("r") == (State.CANCELLED, 0)
    assert store.delete("r"), "room can be made"
    server.client.config_set("maxmemory", "0")
    store.create("r", b"", {}, 1)
    store.close()


def test_a_replica_takes_no_writes(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {}, 1)
    server.client.execute_command("REPLICAOF", "127.0.0.1", 1)
    for name, attempt in attempts(store).items():
        with pytest.raises(StoreUnavailable, match="read only"):
            attempt()
            pytest.fail(f"{name} on a replica")
    server.client.execute_command("REPLICAOF", "NO", "ONE")
    server.client.config_set("min-replicas-to-write", 1)
    with pytest.raises(StoreUnavailable, match="replicas"):
        store.checkpoint("r", "0", b"", 0)
    server.client.config_set("min-replicas-to-write", 0)
    tour(store)


def test_a_user_who_may_only_read(start_redis: Start) -> None:
    server = start_redis()
    rights = ["on", ">pw", "~*", "&*", "+@read", "+@connection", "+evalsha", "+eval"]
    server.client.execute_command("ACL", "SETUSER", "guest", *rights)
    place = server.url.removeprefix("redis://")
    store = RedisStore(f"redis://guest:pw@{place}")
    with pytest.raises(StoreUnavailable, match="can't run this command"):
        store.create("r", b"", {}, 1)
    assert store.read("r") is None
    store.close()


def test_a_server_that_goes_away_and_comes_back(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {}, 1)
    server.stop()
    started = time.monotonic()
    for attempt in attempts(store).values():
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            attempt()
    assert time.monotonic() - started < 2, "at once: whoever calls decides about trying again"
    server.start()
    tour(store)
    store.create("r", b"", {}, 1)
    server.stop()
    server.start()
    assert store.peek("r") is None, "connections that were lost meanwhile are made again"
    store.close()


def test_a_server_that_hangs(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(f"{server.url}?socket_timeout=0.2")
    store.create("r", b"", {}, 1)
    server.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.peek("r")
    with pytest.raises(StoreUnavailable):
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
    assert time.monotonic() - started < 5
    store.close()


def test_waiting_may_take_longer_than_a_command(redis_url: str) -> None:
    run = f"r-{uuid.uuid4()}"
    store = RedisStore(f"{redis_url}?socket_timeout=0.1", GUEST)

    def wait() -> State | None:
        return store.wait(run, 0.4)

    def wait_async() -> State | None:
        return asyncio.run(store.wait_async(run, 0.4))

    with closing(RedisStore(redis_url, GUEST)) as maker, closing(store):
        maker.create(run, b"", {}, 1)
        # On a busy machine a command, too, may take more than its timeout: try again, as all callers
        # do. If waiting had that timeout it would never come to an end.
        assert store.patiently(wait) is State.RUNNING
        assert store.patiently(wait_async) is State.RUNNING
        maker.delete(run)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_keys_is_reported(start_redis: Start, policy: str) -> None:
    # Managed servers have no CONFIG.
    server = start_redis("--maxmemory-policy", policy, "--rename-command", "CONFIG", "")
    store = RedisStore(server.url)
    (warning,) = store.check()
    assert policy in warning
    assert "noeviction" in warning
    store.close()


def test_a_server_that_has_forgotten_the_scripts(redis_url: str) -> None:
    store = RedisStore(redis_url, GUEST)
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    tour(store)


def test_options_that_would_change_what_is_read(redis_url: str) -> None:
    tour(RedisStore(f"{redis_url}?decode_responses=True", GUEST))


# --- the connection that is kept for jobs -------------------------------------------------------


def work(store: RedisStore, run: str, first: int) -> None:
    """Fifty jobs; every call gets the answer to what it has asked."""
    for number in map(str, range(first, first + 50)):
        assert begin(store, run, number) == Begun(Verdict.RUN)
        assert complete(store, run, number).fresh
        assert begin(store, run, number) == Begun(Verdict.DONE)


def test_processes_do_not_share_it(redis_url: str) -> None:
    run, store = f"r-{uuid.uuid4()}", RedisStore(redis_url, GUEST)
    store.create(run, b"", {}, 150)
    work(store, run, 0)
    child = multiprocessing.get_context("fork").Process(target=work, args=(store, run, 50))
    child.start()
    work(store, run, 100)
    child.join(30)
    assert child.exitcode == 0
    assert store.wait(run, 0) is State.SUCCEEDED
    store.delete(run)
    store.close()


def test_who_waits_again_and_again_connects_once(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {}, 1)
    store.create("s", b"", {}, 1)
    assert store.wait("r", 0.01) is State.RUNNING
    before = server.client.info("stats")["total_connections_received"]
    for _ in range(20):
        assert store.wait("r", 0.01) is State.RUNNING
        with closing(store.watch("s")) as changes:
            assert next(changes) is True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, "s", 30)
        begin(store, "s", "0")
        complete(store, "s", "0")
        assert waiting.result(30) is State.SUCCEEDED, "the channel of another run is not heard"
    after = server.client.info("stats")["total_connections_received"]
    assert after - before <= 1, "a thread that listens beside another has a connection of its own"
    store.close()


def test_who_waits_again_after_the_server_has_closed_connections(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {}, 1)
    for _ in range(3):
        assert store.wait("r", 0.01) is State.RUNNING
        with closing(store.watch("r")) as changes:
            assert next(changes) is True
        server.client.client_kill_filter(_type="normal", skipme=True)
    store.close()


def test_many_threads_use_it_first(redis_url: str, request: pytest.FixtureRequest) -> None:
    """One client serves them all: redis-py closes the pool of a client that is dropped."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # threads take turns within every line
    for _ in range(60):
        store, ready = RedisStore(redis_url, GUEST), threading.Barrier(12)

        def first(number: int, store: RedisStore = store, ready: Any = ready) -> Begun:
            ready.wait(10)
            return begin(store, f"none-{number}", "0")

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(first, range(12))) == [Begun(Verdict.DROP)] * 12
        store.close()


class Interrupted(Exception):
    """Out of a signal handler, as soft time limits are."""


def test_a_call_that_is_interrupted_does_not_answer_the_next(start_redis: Start) -> None:
    def interrupt(*_: Any) -> NoReturn:
        raise Interrupted

    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {}, 150)
    work(store, "r", 0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        server.client.execute_command("CLIENT", "PAUSE", 400)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            begin(store, "r", "50")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    work(store, "r", 50)
    store.close()


def test_a_connection_is_given_back_at_once_when_a_call_fails(start_redis: Start) -> None:
    """Not when its client is collected: that may be while a thread has the lock of the pool."""
    server = start_redis()
    store = RedisStore(f"{server.url}?client_name=lost", StoreOptions("keys"))

    def connected() -> int:
        return sum(each["name"] == "lost" for each in server.client.client_list())

    store.create("r", b"", {}, 1)
    assert connected() == 1
    server.client.set("keys:{s}:run", "no hash")
    with pytest.raises(CorruptRecord) as caught:
        store.peek("s")
    assert connected() == 0, str(caught.value)
    assert store.peek("r") == (State.RUNNING, 0)
    assert connected() == 1
    store.close()


def test_it_is_not_kept_where_connections_are_counted(redis_url: str) -> None:
    # Waiting takes both of them.
    tour(RedisStore(f"{redis_url}?max_connections=2", GUEST))


def test_who_has_waited_holds_no_connection_where_they_are_counted(redis_url: str) -> None:
    store = RedisStore(f"{redis_url}?max_connections=2", GUEST)
    assert store.wait("gone", 0.01) is None
    ready = threading.Barrier(2)

    def look() -> None:
        ready.wait(10)
        for _ in range(200):
            assert store.peek("gone") is None

    with ThreadPoolExecutor(2) as pool:
        for looking in [pool.submit(look), pool.submit(look)]:
            looking.result(30)
    store.close()


# --- keys ----------------------------------------------------------------------------------------


@pytest.fixture(params=["server", "fakeredis"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fakeredis":
        made: Any = fakeredis.FakeRedis()
    else:
        made = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    yield made
    for key in made.keys("keys-*"):
        made.delete(key)
    made.close()


@pytest.fixture
def store(client: Any) -> RedisStore:
    options = StoreOptions(f"keys-{uuid.uuid4().hex[:8]}", ttl=100, result_ttl=5, failed_ttl=10)
    return RedisStore("redis://", options, client=client)


def names(store: RedisStore, client: Any) -> list[str]:
    return sorted(key.decode() for key in client.keys(f"{store.options.prefix}*"))


KINDS = ("data", "due", "jobs", "leases", "marks", "members", "pages", "results", "run")


def test_every_key_has_a_time_to_live(store: RedisStore, client: Any) -> None:
    prefix = store.options.prefix
    store.create("r", b"", {}, 3)
    own = [f"{prefix}:{{r}}:{kind}" for kind in KINDS]
    assert names(store, client) == sorted([*own, f"{prefix}:runs"])
    assert all(90_000 < client.pttl(key) <= 100_000 for key in own), "the ttl of a run"
    for attempt in ("begin", "complete", "fail", "checkpoint", "remind"):
        attempts(store)[attempt]()
    complete(store, "r", "2", settles=Settles("2", "2", 2), changes={"a": b"b", "c": None})
    assert names(store, client) == sorted([*own, f"{prefix}:runs"])
    assert all(90_000 < client.pttl(key) <= 100_000 for key in own), "the ttl of a run"
    assert client.pttl(f"{prefix}:runs") >= 100_000, "the index outlives its runs"
    store.transition("r", [State.RUNNING], State.CANCELLED, 0)
    assert all(9_000 < client.pttl(key) <= 10_000 for key in own), "the ttl of what has ended"
    store.transition("r", [State.CANCELLED], State.RUNNING, 0)
    assert all(90_000 < client.pttl(key) <= 100_000 for key in own), "of a run again"
    store.delete("r")
    store.renew(["me"], 5)
    assert names(store, client) == [f"{prefix}:owners"]
    assert 5_000 < client.pttl(f"{prefix}:owners") <= 106_000
    store.retire(["me"])
    assert names(store, client) == []


def test_times_to_live_are_renewed_when_it_is_worth_it(store: RedisStore, client: Any) -> None:
    store.create("r", b"", {}, 3)
    keys = [f"{store.options.prefix}:{{r}}:{kind}" for kind in KINDS]
    begin(store, "r", "0")
    expires = client.hget(keys[-1], "expires")
    begin(store, "r", "1")
    assert client.hget(keys[-1], "expires") == expires, "less than 1 % of it has passed"
    for key in keys:
        client.pexpire(key, 50_000)
    client.hincrby(keys[-1], "expires", -50_000)
    begin(store, "r", "2")
    assert all(90_000 < client.pttl(key) <= 100_000 for key in keys)


def test_owners_are_listed_while_one_of_them_lives(store: RedisStore, client: Any) -> None:
    store.renew(["long"], 500)
    store.renew(["short"], 1)
    assert client.pttl(f"{store.options.prefix}:owners") > 500_000
    assert set(store.owners()) == {"long", "short"}


def test_messages_of_a_run_that_is_gone_leave_no_keys(store: RedisStore, client: Any) -> None:
    for name, attempt in attempts(store).items():
        if name != "create":
            attempt()
    assert names(store, client) == []


def test_what_an_eviction_leaves_is_not_taken_over(store: RedisStore, client: Any) -> None:
    store.create("r", b"", {"0": b"page"}, 3)
    for attempt in ("begin", "complete", "fail", "checkpoint", "remind"):
        attempts(store)[attempt]()
    client.delete(f"{store.options.prefix}:{{r}}:run")
    store.create("r", b"", {}, 1)
    assert (store.page("r", "0"), store.values("r", ["0"])) == (Missing, [Missing])
    assert begin(store, "r", "0") == Begun(Verdict.RUN)
    record = store.read("r")
    assert record is not None
    assert (record.failures, record.held, record.due) == ({}, {}, {})
    client.delete(f"{store.options.prefix}:{{r}}:run")
    assert store.delete("r") is False, "there is no such run"
    assert names(store, client) == []


def test_the_index_forgets_what_has_expired(client: Any, until: Any) -> None:
    options = StoreOptions(f"keys-{uuid.uuid4().hex[:8]}", ttl=0.1, result_ttl=0.1)
    store = RedisStore("redis://", options, client=client)
    for number in range(25):
        store.create(f"old{number}", b"", {}, 1)
    until(lambda: not client.keys(f"{options.prefix}:{{old*"))
    for number in range(4):
        store.create(f"new{number}", b"", {}, 1)
    listed = {run.decode() for run in client.zrange(f"{options.prefix}:runs", 0, -1)}
    assert not any(run.startswith("old") for run in listed), "nobody needs to list runs for that"


def test_a_listing_goes_on_behind_runs_that_have_expired(store: RedisStore, client: Any) -> None:
    store.create("r", b"", {}, 1)
    gone = {f"gone{number}": time.time() + 5 for number in range(300)}
    client.zadd(f"{store.options.prefix}:runs", gone)
    assert [summary.run for summary in store.scan(count=1)[0]] == ["r"]


# --- writers that meet ---------------------------------------------------------------------------


def test_what_was_decided_on_old_rows_is_decided_again(store: RedisStore) -> None:
    store.create("r", b"", {}, 2)
    with pytest.raises(StoreUnavailable, match="changed meanwhile"):
        with store.transaction("r") as rows:
            assert rows is not None
            assert rows.get("result", "0") is None
            complete(store, "r", "0")
            rows.put("held", "0", b"")
    record = store.read("r")
    assert record is not None
    assert (record.remaining, record.held) == (1, {})


def test_a_busy_run_is_changed_in_the_end(redis_url: str) -> None:
    run, store = f"r-{uuid.uuid4()}", RedisStore(redis_url, GUEST)
    store.create(run, b"", {}, 10_000)
    stop = threading.Event()

    def others() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            begin(store, run, f"job {number}")
            complete(store, run, f"job {number}")

    with ThreadPoolExecutor(3) as pool:
        busy = [pool.submit(others) for _ in range(3)]
        try:
            for number in range(20):
                assert store.checkpoint(run, f"held {number}", b"", 0)
            assert store.transition(run, [State.RUNNING], State.CANCELLED, 0)
        finally:
            stop.set()
        for each in busy:
            each.result(30)
    record = store.read(run)
    assert record is not None
    assert (record.state, len(record.held)) == (State.CANCELLED, 20)
    store.delete(run)
    store.close()


def test_who_has_a_run_to_itself_and_dies(store: RedisStore, client: Any) -> None:
    key = f"{store.options.prefix}:{{r}}:run"
    store.create("r", b"", {}, 2)
    started = time.time()
    client.hset(key, "lock", f"dead {started + 0.3}")
    assert begin(store, "r", "0") == Begun(Verdict.RUN)
    assert time.time() >= started + 0.3
    client.hset(key, "lock", f"dead {started + 0.6}")
    assert store.checkpoint("r", "0", b"held", 0)
    assert time.time() >= started + 0.6
    assert not client.hexists(key, "lock") or begin(store, "r", "1") == Begun(Verdict.RUN)


def test_a_job_takes_few_commands(start_redis: Start) -> None:
    server = start_redis()
    store = RedisStore(server.url)
    store.create("r", b"", {"1": b"page"}, 3)

    def work(address: str) -> None:
        store.begin(Claim("r", address, 0, owner="me", limit=5, receipts=(f"job {address}",)))
        settles = Settles(address, address, 1)
        complete(store, "r", address, settles=settles, next=("page 1", 1.0))

    work("0")
    server.client.config_resetstat()
    work("1")
    stats = server.client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
    assert calls.pop("evalsha") == 2
    calls.pop("config|resetstat")
    assert sum(calls.values()) <= 22, calls
    store.close()


# --- data that is not ours -----------------------------------------------------------------------


def calls(store: RedisStore) -> dict[str, Callable[[], Any]]:
    return {
        **attempts(store),
        "create": lambda: store.create("r", b"", {}, 1),
        "page": lambda: store.page("r", "0"),
        "values": lambda: store.values("r", ["0"]),
        "finished": lambda: store.finished("r", ["0"]),
        "read": lambda: store.read("r"),
        "peek": lambda: store.peek("r"),
        "outline": lambda: store.outline("r"),
        "wait": lambda: store.wait("r", 0),
        "leases": lambda: store.leases("r"),
        "infos": lambda: store.infos("r"),
        "data": lambda: store.data("r"),
        "scan": store.scan,
    }


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("run", (set(attempts(None)) - {"create"}) | {"read", "peek", "wait"}),  # type: ignore[arg-type]
        ("pages", {"page"}),
        ("results", {"begin", "complete", "fail", "checkpoint", "values", "finished"}),
        ("marks", {"begin", "complete", "fail", "read"}),
        ("leases", {"begin", "leases"}),
        ("jobs", {"infos"}),
        ("data", {"data"}),
        ("due", {"remind", "read"}),
    ],
)
def test_a_key_of_another_type(store: RedisStore, client: Any, kind: str, broken: set[str]) -> None:
    for name in sorted(broken):
        store.delete("r")
        store.create("r", b"", {"0": b"page"}, 2)
        key = f"{store.options.prefix}:{{r}}:{kind}"
        client.delete(key)
        client.rpush(key, "somebody else's list")
        with pytest.raises(CorruptRecord):
            calls(store)[name]()
            pytest.fail(f"{name} with a list in place of {kind}")


def test_an_index_of_another_type(store: RedisStore, client: Any) -> None:
    client.set(f"{store.options.prefix}:runs", "not an index")
    with pytest.raises(CorruptRecord):
        store.scan()


@pytest.mark.parametrize(
    ("field", "value", "broken"),
    [
        ("state", b"LAZY", {"read", "peek", "wait"}),
        ("state", b"\xff\xfe", {"read", "peek", "wait"}),
        ("gen", b"first", {"read", "peek", "wait", "begin", "complete", "fail"}),
        ("left", b"many", {"read", "complete"}),
        ("left", None, {"read"}),
        ("dead", b"", {"read", "complete"}),
        ("created", b"yesterday", {"read"}),
        ("created", None, {"read"}),
        ("meta", None, {"read"}),
        ("updated", b"\x00", {"read"}),
        ("ended", b"soon", {"read"}),
        ("ender", None, {"read"}),
        ("version", b"new", {"begin", "complete", "fail"}),
    ],
)
def test_a_record_that_cannot_be_read(
    store: RedisStore, client: Any, field: str, value: bytes | None, broken: set[str]
) -> None:
    key = f"{store.options.prefix}:{{r}}:run"
    for name in sorted(broken):
        store.delete("r")
        store.create("r", b"", {}, 2)
        if value is None:
            client.hdel(key, field)
        else:
            client.hset(key, field, value)
        with pytest.raises(CorruptRecord) as error:
            calls(store)[name]()
            pytest.fail(f"{name} with {field} = {value!r}")
        assert name in ("begin", "complete", "fail") or "'r'" in str(error.value), (
            "the run is named"
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", b"LAZY"),
        ("created", b"yesterday"),
        ("created", None),
        ("name", b"\xff"),
        ("name", None),
        ("tags", b"{"),
        ("tags", b"1"),
        (None, None),
    ],
)
def test_a_listing_leaves_out_what_cannot_be_read(
    store: RedisStore, client: Any, caplog: Any, field: str | None, value: bytes | None
) -> None:
    for run in ("good", "bad", "fine"):
        store.create(run, b"", {}, 1)
    key = f"{store.options.prefix}:{{bad}}:run"
    if field is None:
        client.delete(key)
        client.rpush(key, "somebody else's list")
    elif value is None:
        client.hdel(key, field)
    else:
        client.hset(key, field, value)
    assert {summary.run for summary in store.scan()[0]} == {"good", "fine"}
    assert "the record of run 'bad' cannot be read" in caplog.text


def test_marks_that_cannot_be_read(store: RedisStore, client: Any) -> None:
    store.create("r", b"", {}, 2)
    client.hset(f"{store.options.prefix}:{{r}}:marks", b"failure:\xff", b"1 0 0\n")
    with pytest.raises(CorruptRecord, match="'r'"):
        store.read("r")
