"""Runs that have lost a message are found and taken up again, on real workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.errors import ClutchExpired
from celery_clutch.sweep import sweep

from .app import crowd, hold, kill_after_complete, nests, retry, seen, total, value
from .lab import Gate, Lab, handlers, until


def lose(lab: Lab, queue: str) -> None:
    """Throw away what lies in a queue."""
    assert lab.broker is not None
    until(lambda: lab.length(queue))
    lab.broker.delete(queue)


def swept(lab: Lab, run: ClutchResult, **how: Any) -> bool:
    return run.id in sweep(lab.app, **{"grace": 0.0, **how})


def heals(lab: Lab, run: ClutchResult) -> None:
    assert run.state is State.RUNNING
    assert swept(lab, run)
    assert lab.finish(run) is State.SUCCEEDED
    assert set(lab.ran(run).values()) == {1}, "each finished job was executed once"
    assert not swept(lab, run)


LOSSES: dict[str, Callable[[str], Clutch]] = {
    "the body of a chord": lambda lost: series(
        value.s(1), parallel(total.s(1), total.s(2)), total.s().set(queue=lost)
    ),
    "the next of a chain": lambda lost: series(value.s(1), total.s(1).set(queue=lost), total.s(1)),
    "the body of a wide chord": lambda lost: series(
        parallel(value.s(1) for _ in range(250)), total.s().set(queue=lost)
    ),
    "the body of a chord in a branch": lambda lost: series(
        parallel(
            value.s(1),
            series(parallel(value.s(1), value.s(2)), total.s().set(queue=lost), total.s(1)),
        ),
        seen.s(),
    ),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_lost_message(lab: Lab, gate: Gate, what: str) -> None:
    run = LOSSES[what](gate.queue).engage()
    lose(lab, gate.queue)
    lab.settle()
    assert not swept(lab, run, grace=60.0), "not before the grace period is over"
    gate.open_only()
    heals(lab, run)


def test_the_end_of_a_nested_run(lab: Lab, gate: Gate) -> None:
    lost = nests.s(value.s(1), total.s(1).set(queue=gate.queue))
    run = series(parallel(lost, value.s(2)), seen.s()).engage()
    lose(lab, gate.queue)
    lab.settle()
    gate.open_only()
    (nested,) = lab.nested(run)
    assert swept(lab, nested)
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0.0": 1, "0.1": 1, "1": 1}
    assert lab.ran(nested) == {"0": 1, "1": 1}


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_killed_behind_a_result(make_lab: Any, tag: str, late: bool) -> None:
    """Its child is gone between storing the result and sending what follows."""
    conf = {"task_acks_late": True} if late else {}
    with make_lab("killed", concurrency=1, **conf) as lab:
        lab.app.set_current()
        run = series(parallel(value.s(1), kill_after_complete.s(tag)), seen.s("end")).engage()
        until(lambda: run.status().done == 2)
        lab.settle()
        if run.state is State.RUNNING:
            assert swept(lab, run)
        assert lab.finish(run) is State.SUCCEEDED
        assert run.get(timeout=1) == [["end", [1, "done"]]]
        assert lab.ran(run) == {"0.0": 1, "0.1": 1, "1": 1}


@pytest.mark.parametrize("width", [1, 12])
def test_the_message_of_a_worker_killed_behind_a_result_comes_again(
    make_lab: Any, tag: str, width: int
) -> None:
    conf = {"task_acks_late": True, "task_reject_on_worker_lost": True}
    with make_lab("again", concurrency=1, **conf) as lab:
        lab.app.set_current()
        branches = [*(value.s(i) for i in range(width)), kill_after_complete.s(tag)]
        run = series(parallel(branches), seen.s("end")).engage()
        assert lab.finish(run) is State.SUCCEEDED, "without a sweep"
        assert run.get(timeout=1) == [["end", [*range(width), "done"]]]
        assert set(lab.ran(run).values()) == {1}


def test_a_whole_worker_killed(make_lab: Any, tag: str) -> None:
    with make_lab("gone", concurrency=1, clutch_lease=10.0) as lab:
        lab.app.set_current()
        run = series(value.s(1), hold.s(tag, 2), total.s()).engage()
        until(lambda: len(lab.ran(run)) == 2)
        worker = lab.workers.pop()
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(10)
        # The lease may run out while the next worker starts.
        assert not swept(lab, run), "a job that has begun may be a long one"
        assert not swept(lab, run, silent_for=60.0)
        lab.start(concurrency=1)
        lab.raise_flag(tag)
        assert swept(lab, run, silent_for=0.0)
        assert lab.finish(run) is State.SUCCEEDED
        assert lab.ran(run) == {"0": 1, "1": 2, "2": 1}


def test_a_lost_queue(lab: Lab, gate: Gate) -> None:
    run = Clutch(value.s(1), total.s(1), queue=gate.queue).engage()
    lose(lab, gate.queue)
    gate.open_only()
    assert swept(lab, run)
    assert lab.finish(run) is State.SUCCEEDED
    assert set(lab.ran(run).values()) == {1}


def test_what_is_under_way_is_left_alone(lab: Lab, gate: Gate, tag: str) -> None:
    busy = series(parallel(value.s(1), hold.s(tag)), seen.s()).engage()
    retried = series(retry.s(1, 1).set(countdown=0), value.s()).engage()
    until(lambda: len(lab.ran(busy)) == 2)
    assert not swept(lab, busy)
    lab.raise_flag(tag)
    assert lab.finish(busy) is State.SUCCEEDED
    assert lab.finish(retried) is State.SUCCEEDED
    assert (busy.status().generation, set(lab.ran(busy).values())) == (0, {1})


def test_each_time_it_waits_longer(lab: Lab, gate: Gate) -> None:
    run = series(value.s(1), total.s().set(queue=gate.queue)).engage()
    until(lambda: lab.length(gate.queue))
    assert swept(lab, run, grace=0.001)
    until(lambda: lab.length(gate.queue) == 2)
    assert not swept(lab, run, grace=60.0)
    gate.open()
    assert run.state is State.SUCCEEDED
    assert set(lab.ran(run).values()) == {1}


def test_a_lane_that_stopped(lab: Lab, gate: Gate, tag: str) -> None:
    branches = [crowd.s(tag, i) for i in range(5)]
    branches[3].set(queue=gate.queue)
    run = series(parallel(branches, max_concurrency=1), seen.s()).engage()
    lose(lab, gate.queue)
    lab.settle()
    gate.open_only()
    heals(lab, run)


def test_many_sweeps_at_once_resume_once(lab: Lab, gate: Gate) -> None:
    run = LOSSES["the body of a chord"](gate.queue).engage()
    lose(lab, gate.queue)
    lab.settle()
    gate.open_only()
    task = lab.app.tasks["celery_clutch.sweep"]
    sent = [task.delay(grace=0.0) for _ in range(6)]
    assert sum(run.id in each.get(timeout=30) for each in sent) >= 1
    assert lab.finish(run) is State.SUCCEEDED
    assert set(lab.ran(run).values()) == {1}


def test_a_run_past_its_deadline_that_nobody_started(lab: Lab, gate: Gate, tag: str) -> None:
    clutch = Clutch(value.s(1), queue=gate.queue, expires=0.001)
    clutch.on_death = handlers(tag, "on_death")["on_death"].set(queue=lab.queue)
    run = clutch.engage()
    lose(lab, gate.queue)
    sweep(lab.app, grace=0.0)
    assert run.state is State.FAILED
    with pytest.raises(ClutchExpired):
        run.get(timeout=1)
