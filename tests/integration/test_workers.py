"""Workers that come and go, and messages that arrive twice."""

from __future__ import annotations

import os
import signal

import pytest

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.errors import MissingResult

from .app import hold, nests, plain, seen, total, value
from .conftest import MakeLab
from .lab import Gate, Lab, handlers, until


def has_result(run: ClutchResult, address: str) -> bool:
    try:
        run.results(address)
    except MissingResult:
        return False
    return True


def test_a_worker_that_is_told_to_stop_finishes_its_job(make_lab: MakeLab, tag: str) -> None:
    with make_lab("warm") as lab:
        lab.app.set_current()
        run = Clutch(
            parallel(hold.s(tag, 1), value.s(2)), total.s(), total.s(1), **handlers(tag)
        ).engage()
        until(lambda: lab.ran(run)["0.0"], "for the job to start")
        worker = lab.workers.pop()
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        lab.raise_flag(tag)
        worker.process.wait(20)
        lab.start()
        assert lab.finish(run) is State.SUCCEEDED
        assert run.get(timeout=1) == [4]
        assert set(lab.ran(run).values()) == {1}
        assert lab.kinds(tag) == {"on_success": 1}


def test_resume_after_a_machine_was_lost(make_lab: MakeLab, tag: str) -> None:
    """Jobs that ran there, and the messages that it had fetched, are gone; resume brings them back."""
    with make_lab("lost") as lab:
        lab.app.set_current()
        clutch = Clutch(value.s(1), **handlers(tag))
        with clutch.parallel():
            clutch << value.s(2) << hold.s(tag, 3) << nests.s(hold.s(tag)) << value.s(4)
        run = clutch.add(seen).engage()
        (inner,) = until(lambda: lab.nested(run), "for the nested run")
        until(lambda: lab.ran(inner)["0"] and lab.ran(run)["1.1"], "for the jobs to start")
        worker = lab.workers.pop()
        assert worker.process is not None
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(5)
        lab.start()
        assert run.state is State.RUNNING
        lab.raise_flag(tag)
        done = [at for at in ("1.0", "1.3") if has_result(run, at)]
        assert run.resume()
        assert run.get(timeout=30) == [[2, 3, "outer", 4]]
        ran = lab.ran(run)
        assert ran["0"] == ran["1.2"] == ran["2"] == 1
        assert all(ran[at] == 1 for at in done)
        until(lambda: lab.kinds(tag), "for on_success")
        assert lab.kinds(tag) == {"on_success": 1}


SHAPES = {
    "series": lambda: [value.s(1), total.s(1), total.s(1)],
    "parallel": lambda: [parallel(value.s(1), value.s(1)), total.s(1)],
    "parallel at the end": lambda: [parallel(value.s(1), value.s(3))],
    "branches": lambda: [
        parallel(series(value.s(1), parallel(value.s(1), value.s(1))), value.s([])),
        seen.s(),
        value.s(3),
    ],
    "plain": lambda: [parallel(plain.s(1), plain.s(2)), total.s(0)],
    "wide": lambda: [parallel(value.s(1) for _ in range(120)), total.s(-117)],
    "nested": lambda: [nests.s(value.s(1)), value.s(3)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_messages_that_arrive_again_after_the_end(
    lab: Lab, gate: Gate, tag: str, shape: str
) -> None:
    run = Clutch(*SHAPES[shape](), queue=gate.queue, **handlers(tag)).engage()
    copies = gate.copies()
    assert copies
    gate.open(run.ready)
    before = lab.ran(run)
    gate.send(copies)
    gate.open()
    assert run.get(timeout=1)[-1] == 3
    assert lab.kinds(tag) == {"on_success": 1}
    again = lab.ran(run) - before
    assert not again or shape == "plain", again
    assert not again["1"]


def test_a_member_that_arrives_again_does_not_open_the_barrier(
    lab: Lab, gate: Gate, tag: str
) -> None:
    run = series(parallel(value.s(1).set(queue=gate.queue), hold.s(tag, 2)), total.s()).engage()
    (copy,) = gate.copies()
    gate.open_only(lambda: run.progress().done == 1)
    before = lab.ever()
    gate.send([copy] * 3)
    until(lambda: lab.ever() >= before + 3, "for the copies")
    until(lambda: lab.ran(run)["0.1"], "for the other member to start")
    assert not lab.ran(run)["1"]
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [3]
    assert lab.ran(run) == {"0.0": 1, "0.1": 1, "1": 1}
