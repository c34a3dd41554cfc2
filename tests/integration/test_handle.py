"""The handle of a run: looking at it, waiting for it, and steering it."""

from __future__ import annotations

import asyncio

import pytest

from celery_clutch import Clutch, State, parallel, series
from celery_clutch.errors import (
    ClutchCancelled,
    RunNotFound,
)

from .app import hold, plain, plain_retry, shared, total, value
from .lab import Gate, Lab, handlers, until


def gated(gate: Gate, *steps: object, **options: object) -> Clutch:
    """A clutch whose messages stay in the queue of the gate until it is opened."""
    return Clutch(*steps, queue=gate.queue, **options)  # type: ignore[arg-type]


# --- looking --------------------------------------------------------------------------------


# --- waiting --------------------------------------------------------------------------------


# --- cancel ---------------------------------------------------------------------------------


def test_cancelled_jobs_do_not_run(lab: Lab, gate: Gate, tag: str) -> None:
    run = gated(
        gate, value.s(1), parallel(value.s(2), plain.s(3)), value.s(4), **handlers(tag)
    ).engage()
    assert run.cancel()
    gate.open()
    assert run.state is State.CANCELLED
    assert lab.ran(run) == {}
    assert lab.kinds(tag) == {}
    with pytest.raises(ClutchCancelled):
        run.get(timeout=1)
    assert run.cancel() is False


def test_cancelled_plain_jobs_leave_no_trace(lab: Lab, gate: Gate) -> None:
    run = gated(gate, plain.s(1), value.s(2)).engage()
    run.cancel()
    gate.open()
    assert run.state is State.CANCELLED
    assert not lab.ran(run)["1"]


def test_cancel_while_a_plain_job_runs(lab: Lab, tag: str) -> None:
    run = Clutch(plain_retry.s(0, "held", tag), value.s("next")).engage()
    until(lambda: lab.ran(run)["0"], "for the job to start")
    assert run.cancel()
    lab.raise_flag(tag)
    lab.settle()
    assert run.state is State.CANCELLED
    assert run.results("0") == "held"
    assert run.resume()
    assert run.get(timeout=30) == ["next"]
    assert lab.ran(run) == {"0": 1, "1": 1}


def test_cancel_of_a_wide_run_before_it_is_expanded(lab: Lab, gate: Gate) -> None:
    run = gated(gate, parallel(value.s(i) for i in range(500)), value.s(0)).engage()
    run.cancel()
    gate.open()
    assert lab.ran(run) == {}
    assert lab.sent(run)["n"] == 1


# --- resume ---------------------------------------------------------------------------------


def test_resume_after_cancel(lab: Lab, gate: Gate) -> None:
    clutch = gated(gate, value.s(1), parallel(value.s(2), value.s(3)), total.s())
    run = clutch.engage()
    run.cancel()
    gate.open()
    assert run.resume()
    assert run.get(timeout=30) == [5]
    assert set(lab.ran(run).values()) == {1}, lab.ran(run)


SHAPES = {
    "series": lambda: [value.s(1), total.s(1), total.s(1)],
    "parallel": lambda: [parallel(value.s(1), value.s(1)), total.s(1)],
    "parallel at the end": lambda: [value.s(1), parallel(total.s(2), total.s(3))],
    "branches": lambda: [parallel(series(value.s(1), total.s(0)), value.s(2)), total.s(0)],
    "plain": lambda: [value.s(1), parallel(plain.s(1), plain.s(2)), total.s(0)],
    "wide": lambda: [parallel(value.s(1) for _ in range(120)), total.s(-117)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_resume_twice_is_harmless(lab: Lab, gate: Gate, tag: str, shape: str) -> None:
    run = gated(gate, *SHAPES[shape](), **handlers(tag)).engage()
    assert run.resume()
    assert run.resume()
    assert run.status().generation == 2
    gate.open(run.ready)
    assert run.get(timeout=1)[-1] in (3, 4)
    # The messages of two older generations were in the queue as well, and were dropped.
    assert set(lab.ran(run).values()) == {1}
    assert lab.kinds(tag) == {"on_success": 1}


def test_what_follows_a_plain_task_runs_once_all_the_same(lab: Lab, gate: Gate, tag: str) -> None:
    """A plain task knows nothing of generations, so its own older messages run; nothing after them does."""
    run = gated(gate, plain.s(1), total.s(1), plain.s(3), **handlers(tag)).engage()
    assert run.resume()
    assert run.resume()
    gate.open(run.ready)
    assert run.get(timeout=1) == [3]
    ran = lab.ran(run)
    assert (ran["1"], ran["2"]) == (1, 1)
    assert lab.kinds(tag) == {"on_success": 1}


@pytest.mark.parametrize("shape", SHAPES)
def test_resume_after_messages_were_lost(lab: Lab, gate: Gate, tag: str, shape: str) -> None:
    run = gated(gate, *SHAPES[shape](), **handlers(tag)).engage()
    lab.delete(gate.queue)
    assert run.state is State.RUNNING
    assert run.resume()
    gate.open(run.ready)
    assert run.get(timeout=1)[-1] in (3, 4)
    assert set(lab.ran(run).values()) == {1}, lab.ran(run)
    assert lab.kinds(tag) == {"on_success": 1}


def test_a_job_of_an_older_generation_that_is_still_running(lab: Lab, tag: str) -> None:
    """It is not started again, and its result counts in the generation that the run is in."""
    run = Clutch(hold.s(tag, 1), total.s(1), total.s(1), **handlers(tag)).engage()
    until(lambda: lab.ran(run)["0"], "for the first job")
    before = lab.ever()
    assert run.resume()
    until(lambda: lab.ever() >= before + 2, "for the copy of the first job to come")
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [3]
    assert lab.ran(run) == {"0": 1, "1": 1, "2": 1}
    assert lab.kinds(tag) == {"on_success": 1}


# --- forget ---------------------------------------------------------------------------------


def test_forget(lab: Lab, gate: Gate, tag: str) -> None:
    run = gated(
        gate, value.s(1), parallel(value.s(2), plain.s(3)), value.s(4), **handlers(tag)
    ).engage()
    assert run.forget() is True
    assert run.forget() is False
    gate.open()
    assert lab.ran(run) == {}
    assert lab.kinds(tag) == {}
    with pytest.raises(RunNotFound):
        run.state


def test_forget_of_a_wide_run(lab: Lab, gate: Gate) -> None:
    run = gated(gate, parallel(value.s(i) for i in range(300)), value.s(0)).engage()
    run.forget()
    gate.open()
    assert lab.ran(run) == {}


def test_waiting_ends_when_the_run_is_forgotten(lab: Lab, gate: Gate, tag: str) -> None:
    run = gated(gate, value.s(1)).engage()

    async def main() -> None:
        waiting = asyncio.ensure_future(run.aget(timeout=30))
        await asyncio.sleep(0.2)
        run.forget()
        await asyncio.wait_for(waiting, 8)

    with pytest.raises(RunNotFound):
        asyncio.run(main())
    gate.open()


def test_forget_leaves_nothing_in_the_store(lab: Lab) -> None:
    run = Clutch(shared.s(), data={"a": 1}).engage()
    assert lab.finish(run) is State.SUCCEEDED
    run.forget()
    with pytest.raises(RunNotFound):
        run.data()
    assert not [key for key in lab.tasks.notebook().scan_iter(f"*{run.id}*") if "it:" not in key]
