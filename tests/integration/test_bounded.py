"""Runs with many failures, and runs that have ended while jobs still run."""

from __future__ import annotations

from celery_clutch import Clutch, State, Status, parallel

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
