"""A broker that is away for some seconds fails nothing that is healthy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from celery_clutch import Clutch, ClutchResult, State, parallel
from celery_clutch.sweep import sweep

from . import app as tasks
from .app import hold, hold_fail, nests, seen, total, value
from .conftest import MakeLab
from .lab import Lab, RedisServer, handlers, until

HOW_LONG = {
    "for a moment": {"task_acks_late": True},
    "for longer than a worker waits": {"clutch_it_broker_patience": 0.3},
}


@pytest.fixture(scope="module", params=HOW_LONG)
def away(
    make_lab: MakeLab, spare_redis: RedisServer, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    """A lab whose broker can be stopped and started; the store is elsewhere."""
    conf: dict[str, Any] = {
        "broker_url": spare_redis.url,
        "clutch_store": tasks.database(1),
        "clutch_lease": 1.5,
        **HOW_LONG[request.param],
    }
    with make_lab("away", **conf) as lab:
        lab.app.set_current()
        yield lab


def come_back(lab: Lab, broker: RedisServer) -> None:
    """Start the broker, and workers that have not outlived it (kombu 5.7.0 can raise TypeError)."""
    broker.start()

    def up() -> bool:
        for worker in lab.workers:
            if worker.process is not None and worker.process.poll() is not None:
                worker.start()
        try:
            return bool(lab.busy())
        except redis.ConnectionError:  # the connection of this process, from before
            return False

    until(up, "for the workers to be back")


def ends(lab: Lab, run: ClutchResult, tag: str) -> None:
    """Sweep, as beat would, until the run has ended well and nobody is left to be told."""

    def over() -> bool:
        sweep(lab.app, grace=0.5)
        assert run.state is not State.FAILED, run.failures()
        return run.state is State.SUCCEEDED and not run.record().due.keys() - {"look"}

    until(over, "for the run to succeed", 30)
    # What a worker could not acknowledge stays in Redis for an hour, so this does not settle.
    until(lambda: lab.kinds(tag)["on_success"], "for on_success")


def test_a_result_that_a_parallel_is_behind(away: Lab, spare_redis: RedisServer, tag: str) -> None:
    nested = nests.s(value.s(1), returns=4)
    fan_in = parallel(total.s(1), total.s(2), nested)
    run = Clutch(hold.s(tag, 1), fan_in, total.s(), **handlers(tag)).engage()
    until(lambda: away.ran(run)["0"], "for the job to start")
    spare_redis.stop()
    away.raise_flag(tag)
    until(lambda: run.progress().done == 1, "for the result")
    if away.conf.get("clutch_it_broker_patience"):
        what = f"what follows in run {run.id} is due"
        until(lambda: what in away.workers[0].log.read_text(), "for the worker to give up")
    assert run.state is State.RUNNING
    assert run.failures() == []
    come_back(away, spare_redis)
    ends(away, run, tag)
    assert run.get(timeout=1) == [9]
    assert set(away.ran(run).values()) == {1}
    assert away.kinds(tag) == {"on_success": 1}


def test_the_end_of_a_run(away: Lab, spare_redis: RedisServer, tag: str) -> None:
    run = Clutch(value.s(1), hold.s(tag, 2), **handlers(tag)).engage()
    until(lambda: away.ran(run)["1"], "for the job to start")
    spare_redis.stop()
    away.raise_flag(tag)
    assert run.get(timeout=30) == [2]
    come_back(away, spare_redis)
    ends(away, run, tag)
    assert away.ran(run) == {"0": 1, "1": 1}
    assert away.kinds(tag) == {"on_success": 1}


def test_a_retry_is_no_death(away: Lab, spare_redis: RedisServer, tag: str) -> None:
    run = Clutch(hold_fail.s(tag, 1), seen.s(), **handlers(tag)).engage()
    until(lambda: away.ran(run)["0"], "for the job to start")
    spare_redis.stop()
    away.raise_flag(tag)
    until(lambda: run.progress().failing == 1, "for the attempt to fail")
    if away.conf.get("clutch_it_broker_patience"):
        what = f"the retry of job 0 of run {run.id} is due"
        until(lambda: what in away.workers[0].log.read_text(), "for the worker to give up")
    assert (run.state, run.progress().dead) == (State.RUNNING, 0)
    come_back(away, spare_redis)
    ends(away, run, tag)
    assert run.get(timeout=1) == [["healed"]]
    assert away.ran(run) == {"0": 2, "1": 1}
    assert away.kinds(tag) == {"on_failure": 1, "on_success": 1}
