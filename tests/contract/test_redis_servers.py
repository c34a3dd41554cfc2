"""The Redis store on servers of every kind, healthy and not."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import fakeredis
import pytest
import redis

from celery_clutch.errors import CorruptRecord, StoreUnavailable
from celery_clutch.extend.plugins import Plugins
from celery_clutch.extend.settings import Settings
from celery_clutch.model.status import State
from celery_clutch.stores.base import Begun, Failed, Missing, Settles, StoreOptions, Verdict
from celery_clutch.stores.redis import RedisStore

Start = Callable[..., Any]

GUEST = StoreOptions("keys-guest", ttl=60)
"""For the database that is not ours alone: whatever is left there is soon gone."""


def tour(store: RedisStore) -> None:
    """The life of a run, with every call there is."""
    run = f"tour-{uuid.uuid4()}"
    try:
        store.create(run, b"meta", {"0": b"page"}, 3, name="name", tags=["tag"])
        assert store.add_page(run, "more", b"more")
        assert store.page(run, "more") == b"more"
        assert store.begin(run, "0", "0", 0, 5) == Begun(Verdict.RUN)
        store.hold(run, "0", b"held")
        assert store.complete(run, "0", "0", b"zero", generation=0, token="a").remaining == 2
        step = [Settles("1", "1", 1)]
        failed = store.fail(
            run, "1", "1", b"{}", attempt=1, final=True, generation=0, token="b", settles=step
        )
        assert failed == Failed(True, True, ("1",), ("1",))
        assert store.transition(run, [State.FAILED], State.RUNNING, 0)
        assert store.complete(run, "1", "1", b"one", generation=1, token="c").fresh
        assert store.values(run, ["0", "1", "2"]) == [b"zero", b"one", Missing]
        assert store.finished(run, ["0", "2"]) == {"0"}
        assert (store.page(run, "0"), store.peek(run)) == (b"page", (State.RUNNING, 1))
        record = store.read(run)
        assert record is not None
        assert (record.meta, record.done, record.remaining) == (b"meta", 2, 1)
        assert store.wait(run, 0.05) is State.RUNNING
        assert store.complete(run, "2", "2", b"two", generation=1, token="d").succeeded
        assert store.wait(run, 10) is State.SUCCEEDED
        assert asyncio.run(store.wait_async(run, 10)) is State.SUCCEEDED
        assert run in [summary.run for summary in store.scan()[0]]
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
    used = [node.client.dbsize() for node in nodes]
    assert sum(count > 0 for count in used) > 1, "runs are spread over the nodes"
    store.close()


# --- servers that do not do what they should -----------------------------------------------------


def attempts(store: RedisStore) -> dict[str, Callable[[], Any]]:
    """The calls that write."""
    return {
        "create": lambda: store.create("new", b"", {"0": b"page"}, 1),
        "begin": lambda: store.begin("r", "0", "0", 0, 5),
        "complete": lambda: store.complete("r", "0", "0", b"", generation=0, token="t"),
        "fail": lambda: store.fail(
            "r", "0", "0", b"", attempt=1, final=False, generation=0, token="t"
        ),
        "hold": lambda: store.hold("r", "0", b""),
        "transition": lambda: store.transition("r", [State.RUNNING], State.CANCELLED, 0),
    }


def test_out_of_memory(start_redis: Start) -> None:
    server = start_redis("--maxmemory-policy", "noeviction")
    store = RedisStore(server.url)
    store.create("r", b"meta", {}, 2)
    store.complete("r", "1", "1", b"value", generation=0, token="t")
    server.client.config_set("maxmemory", "1mb")
    before = store.read("r")
    for name, attempt in attempts(store).items():
        if name != "transition":  # which takes no memory, so that runs can be cancelled
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                attempt()
                pytest.fail(f"{name} in a server without memory")
    assert store.read("r") == before, "what is stored can still be read, and nothing was half done"
    assert store.values("r", ["1"]) == [b"value"]
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
        store.hold("r", "0", b"")
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
    store.create(run, b"", {}, 1)
    assert store.wait(run, 0.4) is State.RUNNING
    assert asyncio.run(store.wait_async(run, 0.4)) is State.RUNNING
    store.delete(run)
    store.close()


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
        assert store.begin(run, number, number, 0, 5) == Begun(Verdict.RUN)
        assert store.complete(run, number, number, b"1", generation=0, token="t").fresh
        assert store.begin(run, number, number, 0, 5) == Begun(Verdict.DONE)


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
            store.begin("r", "50", "50", 0, 5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    work(store, "r", 50)
    store.close()


def test_it_is_not_kept_where_connections_are_counted(redis_url: str) -> None:
    # Waiting takes both of them.
    tour(RedisStore(f"{redis_url}?max_connections=2", GUEST))


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
    options = StoreOptions(f"keys-{uuid.uuid4().hex[:8]}", ttl=100, result_ttl=10)
    return RedisStore("redis://", options, client=client)


def names(store: RedisStore, client: Any) -> list[str]:
    return sorted(key.decode() for key in client.keys(f"{store.options.prefix}*"))


def test_every_key_has_a_time_to_live(store: RedisStore, client: Any) -> None:
    prefix = store.options.prefix
    store.create("r", b"", {"0": b"page"}, 3)
    for attempt in ("begin", "complete", "fail", "hold"):
        attempts(store)[attempt]()
    own = [f"{prefix}:{{r}}:{kind}" for kind in ("jobs", "marks", "pages", "results", "run")]
    own.append(f"{prefix}:{{r}}:members")
    store.complete("r", "2", "2", b"", generation=0, token="t", settles=Settles("2", "2", 2))
    assert names(store, client) == sorted([*own, f"{prefix}:runs"])
    assert all(90_000 < client.pttl(key) <= 100_000 for key in own), "the ttl of a run"
    assert client.pttl(f"{prefix}:runs") >= 100_000, "the index outlives its runs"
    store.transition("r", [State.RUNNING], State.CANCELLED, 0)
    assert all(9_000 < client.pttl(key) <= 10_000 for key in own), "the ttl of what has ended"
    store.delete("r")
    assert names(store, client) == []


def test_messages_of_a_run_that_is_gone_leave_no_keys(store: RedisStore, client: Any) -> None:
    for name, attempt in attempts(store).items():
        if name != "create":
            attempt()
    assert names(store, client) == []


def test_what_an_eviction_leaves_is_not_taken_over(store: RedisStore, client: Any) -> None:
    store.create("r", b"", {"0": b"page"}, 3)
    for attempt in ("begin", "complete", "fail", "hold"):
        attempts(store)[attempt]()
    client.delete(f"{store.options.prefix}:{{r}}:run")
    store.create("r", b"", {}, 1)
    assert (store.page("r", "0"), store.values("r", ["0"])) == (Missing, [Missing])
    assert store.begin("r", "0", "0", 0, 1) == Begun(Verdict.RUN)
    record = store.read("r")
    assert record is not None
    assert (record.failures, record.held) == ({}, {})
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
        "wait": lambda: store.wait("r", 0),
        "scan": store.scan,
    }


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        ("run", set(attempts(None)) | {"read", "peek", "wait"}),  # type: ignore[arg-type]
        ("pages", {"page"}),
        ("results", {"begin", "complete", "fail", "values", "finished"}),
        ("marks", {"begin", "complete", "fail", "hold", "read"}),
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
        ("gen", b"first", {"read", "peek", "wait"}),
        ("left", b"many", {"read", "complete"}),
        ("left", None, {"read"}),
        ("dead", b"", {"read"}),
        ("created", b"yesterday", {"read"}),
        ("created", None, {"read"}),
        ("meta", None, {"read"}),
        ("updated", b"\x00", {"read"}),
        ("ended", b"soon", {"read"}),
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
        assert name == "complete" or "'r'" in str(error.value), "the run is named"


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
    client.hset(f"{store.options.prefix}:{{r}}:marks", b"\xff:\xfe", b"")
    with pytest.raises(CorruptRecord, match="'r'"):
        store.read("r")
