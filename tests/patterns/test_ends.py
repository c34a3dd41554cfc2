"""How a case ends before its time: the patterns 20 and 43 of the catalogue at workflowpatterns.com."""

from __future__ import annotations

import pytest
from integration.app import cancels, double, hold, nests, seen, stop, value
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, State, parallel, series
from celery_clutch.errors import ClutchCancelled


@pytest.mark.not_eager
def test_20_cancel_case(lab: Runs, tag: str) -> None:
    """The whole case is withdrawn: what runs, what is still to come and what is nested in it. It has
    not been completed.

    ``run.cancel()``: no further job starts, and what follows those that run does not either.
    """
    steps = [parallel(hold.s(tag, 1), nests.s(hold.s(tag, 2), value.s("never"))), value.s("never")]
    run = Clutch(*steps, **handlers(tag, "on_success", "on_death", "on_end")).engage()
    (inner,) = until(lambda: lab.nested(run), "for the nested case")
    until(lambda: lab.ran(run)["0.0"] and lab.ran(inner)["0"], "for both to be under way")
    assert run.cancel()
    assert run.state is State.CANCELLED
    with pytest.raises(ClutchCancelled):
        run.get(timeout=30)
    lab.raise_flag(tag)
    lab.settle()
    assert set(lab.ran(run)) == {"0.0", "0.1"}
    assert set(lab.ran(inner)) == {"0"}
    assert inner.state is State.CANCELLED
    assert lab.kinds(tag) == {"on_end": 1}


def test_20_cancel_case_from_inside(lab: Runs, tag: str) -> None:
    clutch = Clutch(cancels.s(), value.s("never"), **handlers(tag, "on_success", "on_end"))
    run = clutch.engage()
    assert lab.finish(run) is State.CANCELLED
    assert lab.ran(run) == {"0": 1}
    assert lab.kinds(tag) == {"on_end": 1}


def test_43_explicit_termination(lab: Runs, tag: str) -> None:
    """A certain point ends the case, with success, whatever else there was to do.

    A job raises ``Stop(value)``: what has not started is skipped, and counts as done.
    """
    steps = [value.s(1), stop.s("found it"), parallel(value.s(3), value.s(4)), seen.s()]
    run = Clutch(*steps, **handlers(tag, "on_success", "on_death", "on_end")).engage()
    assert run.get(timeout=30) == ["found it"]
    lab.settle()
    assert set(lab.ran(run)) == {"0", "1"}
    assert run.state is State.SUCCEEDED
    assert not run.resume()
    assert lab.kinds(tag) == {"on_success": 1, "on_end": 1}
    status = run.status()
    assert (status.done, status.total) == (5, 5)


@pytest.mark.not_eager
def test_43_explicit_termination_with_others_under_way(lab: Runs, tag: str) -> None:
    steps = parallel(series(hold.s(tag, 1), value.s("never")), stop.s("found it"))
    run = Clutch(steps, value.s("never")).engage()
    assert run.get(timeout=30) == ["found it"]
    lab.raise_flag(tag)
    lab.settle()
    assert set(lab.ran(run)) <= {"0.0.0", "0.1"}
    assert run.results() == ["found it"]
    assert run.state is State.SUCCEEDED


def test_43_explicit_termination_in_one_instance_of_many(lab: Runs) -> None:
    branch = Clutch().choose(double.s(), {2: stop.s(), 4: value.s()})
    run = Clutch(value.s([2, 1, 2])).map(branch, max_concurrency=1).add(seen).engage()
    assert run.get(timeout=30) == [1]
    lab.settle()
    assert set(lab.ran(run)) == {"0", "1.0.0", "1.0.2", "1.1.0", "1.1.1"}


def test_43_explicit_termination_of_a_nested_case(lab: Runs) -> None:
    run = Clutch(nests.s(stop.s("inner"), value.s("never")), seen.s()).engage()
    assert run.get(timeout=30) == [["outer"]], "which goes on around it"
    (inner,) = lab.nested(run)
    assert (inner.state, inner.get()) == (State.SUCCEEDED, ["inner"])
