"""Bad input at run time: services that go away, data that is not what it should be."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery.signals import before_task_publish
from kombu.exceptions import OperationalError

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.compile import compat
from celery_clutch.errors import (
    CorruptRecord,
    NonJSONArgument,
    RunNotFound,
    StoreUnavailable,
)
from celery_clutch.extend.plugins import runtime

from . import app as tasks
from .app import hold, hold_fail, nests, plain, seen, total, value
from .conftest import MakeLab
from .lab import Gate, Lab, RedisServer, handlers, spare_port, until

# --- at engage ------------------------------------------------------------------------------


def test_store_down_at_engage(make_lab: MakeLab, redis_down: RedisServer) -> None:
    with make_lab("store-down", start=False, clutch_store=redis_down.url) as lab:
        clutch = Clutch(value.s(1), parallel(value.s(2), value.s(3)), value.s(4), app=lab.app)
        with pytest.raises(StoreUnavailable):
            clutch.engage()
        with pytest.raises(StoreUnavailable):
            ClutchResult("any", lab.app).state
        assert lab.messages(lab.queue) == []


SHAPES = {
    "one job": lambda: [value.s(1)],
    "series": lambda: [value.s(1), value.s(2)],
    "parallel": lambda: [parallel(value.s(1), value.s(2))],
    "barrier": lambda: [parallel(value.s(1), value.s(2)), value.s(3)],
    "wide": lambda: [parallel(value.s(i) for i in range(300)), value.s(3)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_broker_down_at_engage_leaves_no_run(redis_server: None, tag: str, shape: str) -> None:
    url = f"amqp://guest:guest@localhost:{spare_port()}//"
    once = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    conf = {"broker_url": url, "task_publish_retry": False, "broker_transport_options": once}
    app = tasks.make_app(conf)
    app.set_current()
    with pytest.raises(OperationalError):
        Clutch(*SHAPES[shape](), id=tag, app=app).engage()
    with pytest.raises(RunNotFound):
        ClutchResult(tag, app).state
    app.close()


@pytest.mark.skipif(not compat.BATCH_ERRORS, reason="before kombu 5.7 each message goes by itself")
def test_messages_that_do_not_get_through_together_are_sent_one_by_one(
    redis_server: None, redis_down: RedisServer, tag: str
) -> None:
    redis_down.start()
    app = tasks.make_app({"broker_url": redis_down.url})
    app.set_current()
    Clutch(value.s(0), app=app).engage()  # connects, and declares the queue
    published: list[str] = []

    @before_task_publish.connect
    def go_away(sender: Any, **_: Any) -> None:
        published.append(sender)
        if len(published) == 3:
            redis_down.stop()
        elif len(published) == 4:
            redis_down.start()

    try:
        run = parallel(value.s(i) for i in range(3)).engage()
    finally:
        before_task_publish.disconnect(go_away)
    assert len(published) == 6
    assert run.state is State.RUNNING
    assert redis_down.client.llen("celery") == 4
    app.close()


def test_an_argument_that_is_not_json(idle: Lab, tag: str) -> None:
    clutch = Clutch(value.s(1), parallel(value.s(2), value.s({"a": [1, object()]})), id=tag)
    with pytest.raises(NonJSONArgument, match=r"1\.1 \(it\.value\).*\['a'\]\[1\]"):
        clutch.engage()
    assert idle.messages(idle.queue) == []
    with pytest.raises(RunNotFound):
        ClutchResult(tag).state


@pytest.fixture(scope="module")
def backendless(make_lab: MakeLab) -> Iterator[Lab]:
    conf = {"result_backend": None, "clutch_store": tasks.database(1)}
    with make_lab("backendless", pool="solo", concurrency=1, **conf) as lab:
        lab.app.set_current()
        yield lab


def test_a_barrier_without_a_result_backend(backendless: Lab, tag: str) -> None:
    clutch = Clutch(parallel(value.s(1), value.s(2)), total.s(3), id=tag, app=backendless.app)
    run = clutch.engage()
    assert backendless.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [6]


def test_what_needs_no_barrier_runs_without_a_result_backend(backendless: Lab, tag: str) -> None:
    app = backendless.app
    clutch = Clutch(
        value.s(1), plain.s(2), parallel(total.s(1), total.s(2)), app=app, **handlers(tag)
    )
    run = clutch.engage()
    assert backendless.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [3, 4]
    assert backendless.kinds(tag) == {"on_success": 1}


def test_a_long_and_wide_run_without_a_result_backend(backendless: Lab) -> None:
    clutch = Clutch(app=backendless.app)
    for _ in range(30):
        clutch << total.s(1)
    clutch << parallel(total.s(i) for i in range(150))
    run = clutch.engage()
    assert backendless.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [30 + i for i in range(150)]


# --- a store that goes away -----------------------------------------------------------------


@pytest.fixture
def redis_down(missing: Any, tmp_path: Any) -> Iterator[RedisServer]:
    """A redis-server that is not running."""
    if not RedisServer.available():
        missing("redis-server", "the program is not installed")
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_a_watch_asks_nothing_as_long_as_nothing_changes(
    make_lab: MakeLab, redis_down: RedisServer
) -> None:
    redis_down.start()
    with make_lab("watched", start=False, clutch_store=redis_down.url) as lab:
        run = Clutch(value.s(1), app=lab.app).engage()

        def asked() -> int:
            return int(client.info("stats")["total_commands_processed"])

        watching = runtime(lab.app).store.watch(run.id)
        with redis_down.client as client, closing(watching):
            assert next(watching) is True
            asked()  # connects
            before = asked()
            assert [next(watching), next(watching)] == [False, False]
            assert asked() - before == 1, "this question itself"


@pytest.fixture(scope="module")
def frail(make_lab: MakeLab, spare_redis: RedisServer) -> Iterator[Lab]:
    """A lab whose store can be stopped and started. It evicts keys, too."""
    spare_redis.client.config_set("maxmemory-policy", "allkeys-lru")
    with make_lab("frail", clutch_store=spare_redis.url) as lab:
        lab.app.set_current()
        yield lab


@pytest.fixture(scope="module")
def hasty(make_lab: MakeLab, spare_redis: RedisServer) -> Iterator[Lab]:
    """As `frail`, with a worker that puts jobs off after half a second."""
    with make_lab("hasty", clutch_store=spare_redis.url, clutch_it_patience=0.5) as lab:
        lab.app.set_current()
        yield lab


def test_a_store_that_evicts_keys_is_warned_of_at_start(frail: Lab) -> None:
    log = frail.workers[0].log.read_text()
    assert "evicts keys" in log
    assert "allkeys-lru" in log


def test_the_store_goes_away_while_a_job_runs(
    frail: Lab, spare_redis: RedisServer, tag: str
) -> None:
    run = Clutch(hold.s(tag, "kept"), parallel(seen.s(1), seen.s(2)), value.s(3)).engage()
    until(lambda: frail.ran(run)["0"], "for the job to start")
    spare_redis.stop()
    frail.raise_flag(tag)
    until(lambda: tasks.notebook().llen(f"it:flag:{tag}") < 100, "for the job to go on")
    with pytest.raises(StoreUnavailable):
        run.state
    spare_redis.start()
    assert frail.finish(run) is State.SUCCEEDED
    assert run.results("1") == [[1, ["kept"]], [2, ["kept"]]]
    assert set(frail.ran(run).values()) == {1}


def test_the_store_is_away_when_a_job_starts(frail: Lab, spare_redis: RedisServer) -> None:
    before = frail.ever()
    run = Clutch(parallel(value.s(i).set(countdown=0.5) for i in range(2)), seen.s()).engage()
    spare_redis.stop()
    until(lambda: frail.ever() == before + 2, "for the jobs to be accepted")
    spare_redis.start()
    assert frail.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[0, 1]]
    assert set(frail.ran(run).values()) == {1}


def test_the_store_is_away_for_long(hasty: Lab, spare_redis: RedisServer, tag: str) -> None:
    """Jobs are put off, the members of a chord and the internal steps as well."""
    before = hasty.ever()
    clutch = Clutch(**handlers(tag))
    with clutch.parallel():
        for i in range(4):
            clutch << value.s(i).set(countdown=0.5)
    clutch << total.s() << total.s()
    wide = series(parallel(value.s(i) for i in range(150)), total.s())
    run, other = clutch.engage(), wide.engage(countdown=0.5)
    spare_redis.stop()
    # Each of the four jobs and the expand is accepted and comes back: at least five times more.
    until(lambda: hasty.ever() >= before + 10, "for the jobs to be put off")
    spare_redis.start()
    assert hasty.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [6]
    assert set(hasty.ran(run).values()) == {1}
    assert other.get(timeout=30) == [149 * 75]
    assert set(hasty.ran(other).values()) == {1}
    assert hasty.kinds(tag) == {"on_success": 1}


def test_the_store_is_away_for_long_after_a_job(
    hasty: Lab, spare_redis: RedisServer, tag: str
) -> None:
    """The value could not be recorded, so the job runs again: at least once."""
    run = Clutch(parallel(hold.s(tag, 1), value.s(2)), total.s(), **handlers(tag)).engage()
    until(lambda: hasty.ran(run)["0.0"] and run.progress().done == 1, "for the job to start")
    spare_redis.stop()
    before = hasty.ever()
    hasty.raise_flag(tag)
    until(lambda: hasty.ever() > before, "for the job to be put off")
    spare_redis.start()
    assert hasty.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [3]
    assert hasty.ran(run)["1"] == 1
    assert hasty.kinds(tag) == {"on_success": 1}


def test_the_store_is_away_while_a_job_fails(
    hasty: Lab, spare_redis: RedisServer, tag: str
) -> None:
    run = Clutch(hold_fail.s(tag), value.s("never"), **handlers(tag)).engage()
    until(lambda: hasty.ran(run)["0"], "for the job to start")
    spare_redis.stop()
    before = hasty.ever()
    hasty.raise_flag(tag)
    until(lambda: hasty.ever() > before, "for the job to be put off")
    spare_redis.start()
    assert hasty.finish(run) is State.FAILED
    assert [each.exception for each in run.failures()] == ["ValueError"]
    assert hasty.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert not hasty.ran(run)["1"]


def test_the_store_is_away_while_a_job_retries(
    hasty: Lab, spare_redis: RedisServer, tag: str
) -> None:
    """The attempt could not be recorded, so it is made again: `on_failure` is not lost."""
    run = Clutch(hold_fail.s(tag, 1), seen.s(), **handlers(tag)).engage()
    until(lambda: hasty.ran(run)["0"], "for the job to start")
    spare_redis.stop()
    before = hasty.ever()
    hasty.raise_flag(tag)
    until(lambda: hasty.ever() > before, "for the job to be put off")
    spare_redis.start()
    assert hasty.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["healed"]]
    assert hasty.ran(run) == {"0": 3, "1": 1}
    assert hasty.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_the_store_is_away_while_a_nested_run_runs(
    hasty: Lab, spare_redis: RedisServer, tag: str
) -> None:
    run = series(parallel(nests.s(hold.s(tag), value.s(1)), value.s(2)), seen.s()).engage()
    (inner,) = until(lambda: hasty.nested(run), "for the nested run")
    until(lambda: hasty.ran(inner)["0"], "for the nested job to start")
    spare_redis.stop()
    before = hasty.ever()
    hasty.raise_flag(tag)
    until(lambda: hasty.ever() > before, "for the job to be put off")
    spare_redis.start()
    assert hasty.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["outer", 2]]


def test_waiting_outlives_a_restart_or_says_so(
    frail: Lab, spare_redis: RedisServer, tag: str
) -> None:
    """`get` does not wait for ever for a message that the store could not send."""
    run = series(hold.s(tag, "x")).engage()
    spare_redis.stop()
    with pytest.raises(StoreUnavailable):
        run.get(timeout=5)
    spare_redis.start()
    frail.raise_flag(tag)
    assert run.get(timeout=30) == ["x"]
    frail.settle()


# --- data that is not what it should be -----------------------------------------------------


def keys(run: ClutchResult) -> dict[str, str]:
    """The keys of *run* in the store, by what they end in."""
    if "CLUTCH_TEST_STORE" in os.environ:
        pytest.skip("looks into the keys of Redis")
    found = tasks.notebook().keys(f"{run.app.conf.clutch_key_prefix}:{{{run.id}}}:*")
    return {key.rpartition(":")[2]: key for key in found}


def test_pages_that_cannot_be_read(lab: Lab, gate: Gate, tag: str) -> None:
    clutch = Clutch(parallel(value.s(i) for i in range(300)), value.s(0), queue=gate.queue)
    clutch.on_death = tasks.note.s(tag, "on_death")
    run = clutch.engage()
    for page in ("0", *map(str, range(1, 5)), "plan"):
        assert tasks.notebook().hexists(keys(run)["pages"], page)
        tasks.notebook().hset(keys(run)["pages"], page, "garbage")
    gate.open()
    assert run.state is State.FAILED
    assert "CorruptRecord" in run.failures()[0].exception
    assert lab.kinds(tag) == {"on_death": 1}
    assert lab.ran(run) == {}
    with pytest.raises(CorruptRecord):
        run.plan()


def test_a_missing_page(lab: Lab, gate: Gate) -> None:
    run = Clutch(parallel(value.s(i) for i in range(300)), value.s(0), queue=gate.queue).engage()
    tasks.notebook().delete(keys(run)["pages"])
    gate.open()
    assert run.state is State.FAILED
    assert "MissingResult" in run.failures()[0].exception


def test_a_state_that_is_none(lab: Lab) -> None:
    run = series(value.s(1)).engage()
    lab.settle()
    tasks.notebook().hset(keys(run)["run"], "state", "BANANA")
    for ask in (lambda: run.state, run.status, lambda: run.get(timeout=1), run.cancel):
        with pytest.raises(CorruptRecord, match="BANANA"):
            ask()


def test_a_description_that_cannot_be_read(lab: Lab, gate: Gate, tag: str) -> None:
    """The jobs run; the handlers, which are in the description, cannot be sent."""
    run = Clutch(value.s(1), value.s(2), queue=gate.queue, **handlers(tag)).engage()
    tasks.notebook().hset(keys(run)["run"], "meta", "garbage")
    gate.open()
    assert run.state is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1, "1": 1}
    with pytest.raises(CorruptRecord):
        run.status()


def test_a_result_that_cannot_be_read(lab: Lab, tag: str) -> None:
    run = Clutch(hold.s(tag, 1), hold.s(f"{tag} 2"), seen.s(), **handlers(tag)).engage()
    lab.raise_flag(tag)
    until(lambda: lab.ran(run)["1"], "for the second job")
    tasks.notebook().hset(keys(run)["results"], "0", "garbage")
    with pytest.raises(CorruptRecord, match="garbage"):
        run.results("0")
    lab.raise_flag(f"{tag} 2")
    assert lab.finish(run) is State.SUCCEEDED


def test_a_previous_result_that_cannot_be_read(lab: Lab, gate: Gate, tag: str) -> None:
    run = Clutch(value.s(1), seen.s().set(queue=gate.queue), value.s(3), **handlers(tag)).engage()
    until(lambda: run.progress().done == 1, "for the first job")
    tasks.notebook().hset(keys(run)["results"], "0", "garbage")
    gate.open()
    assert run.state is State.FAILED
    assert run.failures()[0].exception == "celery_clutch.errors.CorruptRecord"
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_a_previous_result_that_is_gone(lab: Lab, gate: Gate, tag: str) -> None:
    run = Clutch(value.s(1), seen.s().set(queue=gate.queue), value.s(3), **handlers(tag)).engage()
    until(lambda: run.progress().done == 1, "for the first job")
    tasks.notebook().hdel(keys(run)["results"], "0")
    gate.open()
    assert run.state is State.FAILED
    assert run.failures()[0].exception == "celery_clutch.errors.MissingResult"


def test_keys_of_somebody_else(lab: Lab, gate: Gate) -> None:
    """The worker survives, and the handle says what is wrong."""
    run = Clutch(value.s(1), queue=gate.queue).engage()
    name = keys(run)["run"]
    tasks.notebook().delete(name)
    tasks.notebook().set(name, "mine")
    gate.open()
    with pytest.raises(CorruptRecord):
        run.state
    assert lab.ran(run) == {}


def test_messages_of_runs_that_never_were(lab: Lab) -> None:
    header = {"run": "never-was", "gen": 0, "at": "0"}
    before = time.monotonic()
    value.apply_async((1,), headers={"clutch": header})
    lab.app.send_task("celery_clutch.expand", ("0",), headers={"clutch": header})
    lab.app.send_task("celery_clutch.collect", (1,), headers={"clutch": header})
    lab.app.send_task("celery_clutch.settle", (), headers={"clutch": header})
    lab.settle()
    assert lab.ran("never-was") == {}
    assert time.monotonic() - before < 20
    assert series(value.s(1)).engage().get(timeout=30) == [1]
