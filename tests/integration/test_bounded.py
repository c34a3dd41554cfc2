"""Runs with many failures, and runs that have ended while jobs still run."""

from __future__ import annotations

import tracemalloc

import orjson
import pytest

from celery_clutch import Clutch, ClutchResult, State, Status, parallel
from celery_clutch.compile import canvas
from celery_clutch.errors import ClutchFailed
from celery_clutch.extend.plugins import runtime
from celery_clutch.stores.base import Attempted

from .app import fail, hold
from .lab import Lab, handlers, until

MANY = 60


def test_on_failure_of_many_failures_is_bounded(lab: Lab, tag: str) -> None:
    clutch = Clutch(parallel(fail.s() for _ in range(MANY)), **handlers(tag))
    run = clutch.engage()
    told = until(lambda: [note for note in lab.notes(tag) if note["step"] == "0"], "on_failure")
    status = Status.from_dict(told[0])
    assert len(status.failures) == 20
    assert (status.failure_count, sum(status.exceptions.values())) == (MANY, MANY)
    until(lambda: run.status().failure_count == MANY, "for all failures")
    assert len(run.status().failures) == 20
    assert len(run.failures()) == MANY
    assert [each.address for each in run.failures(limit=2, offset=58)] == ["0.58", "0.59"]


def test_a_job_that_runs_when_the_run_dies_drains_and_moves_its_end(lab: Lab, tag: str) -> None:
    run = Clutch(parallel(hold.s(tag), fail.s())).engage()
    until(lambda: run.state is State.FAILED and run.status().draining == 1, "for draining")
    before = run.status().ended_at or ""
    lab.raise_flag(tag)
    until(lambda: run.status().done == 1, "for the slow job")
    status = run.status()
    assert (status.state, status.draining) == (State.FAILED, 0)
    assert before < (status.ended_at or "") == status.updated_at


def test_very_many_failures_are_not_all_in_memory(idle: Lab) -> None:
    """20,000 of 2 KB each are 40 MB."""
    many, most = 20_000, 8_000_000
    composed = Clutch(parallel(fail.s() for _ in range(many)))
    prepared = canvas.prepare(idle.app, composed.plan, run="many")
    prepared.create()
    store = runtime(idle.app).store
    failure = {"task": "it.fail", "task_id": "", "message": "broken", "traceback": "t" * 2000}
    failure.update(exception="ValueError", attempt=1, final=True, at="2026-01-01T00:00:00+00:00")
    for index in range(many):
        address = f"0.{index}"
        data = orjson.dumps({**failure, "address": address})
        store.fail(Attempted("many", address, 0, data, 1, True))
    run = ClutchResult("many", idle.app)
    tracemalloc.start()
    try:
        status = run.status()
        with pytest.raises(ClutchFailed, match=r"at 0\.2: .* and 19,997 more$") as raised:
            run.get(timeout=1)
        page = run.failures(limit=2, offset=30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most
    assert (status.failure_count, status.exceptions) == (many, {"ValueError": many})
    assert [each.address for each in status.failures] == [f"0.{index}" for index in range(20)]
    assert (len(raised.value.failures), raised.value.failure_count) == (20, many)
    assert [each.address for each in page] == ["0.30", "0.31"]
    run.forget()
