"""on_end: sent once a generation, however the run ends."""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import (
    cancels,
    exhaust,
    fail,
    fail_unless,
    hold,
    nests_with_end,
    note,
    plain_fail,
    retry,
    seen,
    value,
)
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, State, Status, parallel

EVERY = ("on_failure", "on_death", "on_success", "on_end")


def ends(lab: Runs, tag: str, kind: str = "on_end") -> list[tuple[State, int]]:
    """The state and generation of each status that on_end was sent."""
    found = map(Status.from_dict, lab.notes(tag, kind))
    return [(status.state, status.generation) for status in found]


def test_it_succeeds(lab: Runs, tag: str) -> None:
    run = Clutch(value.s(1), parallel(retry.s(1, 2), value.s(3)), **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1, "on_end": 1}
    (told,) = map(Status.from_dict, lab.notes(tag, "on_end"))
    assert (told.id, told.state, told.done, told.total) == (run.id, State.SUCCEEDED, 3, 3)
    assert run.record().due == {}


@pytest.mark.parametrize("victim", [fail, exhaust, plain_fail], ids=lambda task: task.name)
def test_it_fails(lab: Runs, tag: str, victim: Any) -> None:
    run = Clutch(victim.s(), value.s("never"), **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1, "on_end": 1}
    (told,) = map(Status.from_dict, lab.notes(tag, "on_end"))
    assert (told.state, told.dead) == (State.FAILED, 1)
    assert told.failures[0].final
    assert run.record().due == {}


def test_it_is_the_only_handler(lab: Runs, tag: str) -> None:
    for job, state in ((value.s(1), State.SUCCEEDED), (fail.s(), State.FAILED)):
        run = Clutch(job, on_end=note.s(f"{tag} {state}", "on_end")).engage()
        assert lab.finish(run) is state
        assert ends(lab, f"{tag} {state}") == [(state, 0)]


def test_two_deaths_are_one_end(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(fail.s(), fail.s(), value.s(1)), **handlers(tag, "on_end")).engage()
    assert lab.finish(run) is State.FAILED
    assert ends(lab, tag) == [(State.FAILED, 0)]


def test_it_expires(lab: Runs, tag: str) -> None:
    run = Clutch(value.s(1), value.s(2), expires=1e-9, **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.FAILED
    assert ends(lab, tag) == [(State.FAILED, 0)]
    (told,) = map(Status.from_dict, lab.notes(tag, "on_end"))
    assert told.failures[0].exception.endswith(".ClutchExpired")


def test_each_generation_has_its_end(lab: Runs, tag: str) -> None:
    run = Clutch(fail_unless.s(tag, 5), seen.s(), **handlers(tag, "on_end")).engage()
    assert lab.finish(run) is State.FAILED
    assert run.resume()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert ends(lab, tag) == [(State.FAILED, 0), (State.FAILED, 1), (State.SUCCEEDED, 2)]
    assert not run.resume()
    lab.settle()
    assert len(ends(lab, tag)) == 3


def test_cancelling_what_has_failed_is_no_other_end(lab: Runs, tag: str) -> None:
    run = Clutch(fail.s(), **handlers(tag, "on_end")).engage()
    assert lab.finish(run) is State.FAILED
    assert run.cancel()
    assert lab.finish(run) is State.CANCELLED
    assert ends(lab, tag) == [(State.FAILED, 0)]
    assert run.record().due == {}


def test_a_job_cancels_its_run(lab: Runs, tag: str) -> None:
    run = Clutch(cancels.s(), value.s(1), **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.CANCELLED
    assert lab.kinds(tag) == {"on_end": 1}
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert ends(lab, tag) == [(State.CANCELLED, 0), (State.SUCCEEDED, 1)]


@pytest.mark.not_eager
def test_it_is_cancelled(lab: Runs, tag: str) -> None:
    clutch = Clutch(hold.s(tag, "held"), value.s("never"), **handlers(tag, *EVERY))
    run = clutch.engage()
    until(lambda: lab.ran(run)["0"], "for the job to start")
    assert run.cancel()
    until(lambda: ends(lab, tag), "for on_end, while the job still runs")
    assert not run.cancel()
    lab.raise_flag(tag)
    lab.settle()
    assert lab.kinds(tag) == {"on_end": 1}
    assert ends(lab, tag) == [(State.CANCELLED, 0)]
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert ends(lab, tag) == [(State.CANCELLED, 0), (State.SUCCEEDED, 1)]


@pytest.mark.not_eager
def test_it_is_forgotten_while_it_runs(lab: Runs, tag: str) -> None:
    run = Clutch(hold.s(tag), **handlers(tag, "on_end")).engage()
    until(lambda: lab.ran(run)["0"], "for the job to start")
    assert run.forget()
    lab.raise_flag(tag)
    lab.settle()
    assert ends(lab, tag) == [(State.CANCELLED, 0)]


@pytest.mark.parametrize("dies", [False, True])
def test_a_nested_run_has_an_end_of_its_own(lab: Runs, tag: str, dies: bool) -> None:
    nested = nests_with_end.s(tag, fail.s() if dies else value.s(1))
    run = Clutch(nested, **handlers(tag, "on_end")).engage()
    state = State.FAILED if dies else State.SUCCEEDED
    assert lab.finish(run) is state
    assert ends(lab, tag, "inner on_end") == ends(lab, tag) == [(state, 0)]
    assert lab.kinds(tag) == {"on_end": 1, "inner on_end": 1}


@pytest.mark.not_eager
def test_cancel_goes_down_to_nested_runs(lab: Runs, tag: str) -> None:
    run = Clutch(nests_with_end.s(tag, hold.s(tag)), **handlers(tag, "on_end")).engage()
    (inner,) = until(lambda: lab.nested(run), "for the nested run")
    until(lambda: lab.ran(inner)["0"], "for the nested job to start")
    assert run.cancel()
    lab.raise_flag(tag)
    lab.settle()
    assert ends(lab, tag, "inner on_end") == ends(lab, tag) == [(State.CANCELLED, 0)]


def test_in_json(lab: Runs, tag: str) -> None:
    text = Clutch(value.s(1), **handlers(tag, "on_end")).to_json()
    run = Clutch.from_json(text, app=lab.app).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert ends(lab, tag) == [(State.SUCCEEDED, 0)]
