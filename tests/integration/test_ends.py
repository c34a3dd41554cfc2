"""Ends that only a worker of its own has: time limits, lost and terminated processes, revocations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_clutch import Clutch, ClutchResult, State

from .app import die, hang, leave, poison, replace, value
from .conftest import MakeLab
from .lab import Lab, handlers, until
from .places import ERRORS, PLACES, Outcome, check, check_nested, engage

REVOKED = "celery.exceptions.TaskRevokedError"


SLOW: dict[str, tuple[Callable[[Lab], Any], str]] = {
    "soft time limit": (
        lambda lab: hang.s().set(soft_time_limit=1),
        "billiard.exceptions.SoftTimeLimitExceeded",
    ),
    "hard time limit": (
        lambda lab: hang.s().set(time_limit=1),
        "billiard.exceptions.TimeLimitExceeded",
    ),
    "loses its worker": (lambda lab: die.s(), f"{ERRORS}.JobLost"),
    "leaves its worker": (lambda lab: leave.s(), "SystemExit"),
    "kills every worker": (lambda lab: poison.s(), f"{ERRORS}.JobLost"),
    "is revoked": (lambda lab: value.s().set(countdown=2), REVOKED),
    "is terminated": (lambda lab: hang.s(), REVOKED),
}


def victims(outcomes: dict[str, Outcome]) -> Iterator[tuple[ClutchResult, str]]:
    """The runs and addresses of the victims, once the nested one has been engaged."""
    for name, place in PLACES.items():
        yield outcomes[name].run, place.at
    nested = outcomes["nested"]
    until(lambda: nested.lab.nested(nested.run), "for the nested run")
    yield nested.nested, "0"


def revoke(lab: Lab, outcomes: dict[str, Outcome]) -> None:
    for run, at in victims(outcomes):
        lab.app.control.revoke(lab.task_id(run, at))


def terminate(lab: Lab, outcomes: dict[str, Outcome]) -> None:
    for run, at in victims(outcomes):
        until(lambda: lab.ran(run)[at], f"for {at} to start")
        lab.app.control.revoke(lab.task_id(run, at), terminate=True)


@pytest.fixture(scope="module")
def many(make_lab: MakeLab) -> Iterator[Lab]:
    """A worker with processes to spare."""
    with make_lab("ends", concurrency=6, clutch_max_starts=2) as lab:
        lab.app.set_current()
        yield lab


@pytest.fixture(scope="module")
def slow(many: Lab) -> dict[str, dict[str, Outcome]]:
    """All slow ends, waited for together."""
    found = {}
    for end in ("is terminated", "is revoked", *SLOW):
        if end not in found:
            found[end] = engage(many, SLOW[end][0](many))
            if end == "is terminated":
                terminate(many, found[end])
    revoke(many, found["is revoked"])
    many.settle(180)
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", SLOW)
def test_a_job_of_the_slow_kind(slow: dict[str, dict[str, Outcome]], end: str, place: str) -> None:
    check(slow[end][place], SLOW[end][1], PLACES[place])


@pytest.mark.parametrize("end", SLOW)
def test_a_nested_job_of_the_slow_kind(slow: dict[str, dict[str, Outcome]], end: str) -> None:
    check_nested(slow[end]["nested"], SLOW[end][1])


def test_a_poison_job_is_started_as_often_as_allowed(slow: dict[str, dict[str, Outcome]]) -> None:
    outcome = slow["kills every worker"]["series"]
    assert outcome.lab.ran(outcome.run)["1"] == 2


def test_what_stands_in_the_place_of_a_job_loses_its_worker(lab: Lab, tag: str) -> None:
    run = Clutch(replace.s(die.s()), value.s(1), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.final) == ("0", True)
    assert failure.exception.endswith(".WorkerLostError")
