"""However a job ends: the handlers are sent once, the run ends in the right state, nothing hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import chain, chord, group

from celery_clutch import Clutch, ClutchResult, State, Status, parallel, series
from celery_clutch.errors import ClutchFailed

from .app import (
    add,
    autoretry,
    die,
    exhaust,
    fail,
    gather,
    hang,
    ignore,
    large,
    leave,
    needs,
    nests,
    plain,
    plain_exhaust,
    plain_fail,
    plain_retry,
    plain_set,
    poison,
    reject,
    replace,
    retry,
    unserialisable,
    value,
)
from .conftest import MakeLab
from .lab import Lab, handlers, new_tag, until

ERRORS = "celery_clutch.errors"
REVOKED = "celery.exceptions.TaskRevokedError"


@dataclass(frozen=True)
class Place:
    """Where in a clutch the job stands that ends in some way.

    ``at`` is its address, ``step`` that of the step that ``on_failure`` is about, ``after`` are the jobs
    that must not run when it dies and ``beside`` those that must.
    """

    build: Callable[[Any], Clutch]
    at: str
    step: str
    after: tuple[str, ...]
    beside: tuple[str, ...]


PLACES = {
    "series": Place(
        lambda victim: series(value.s(1), victim, value.s(2)), "1", "1", ("2",), ("0",)
    ),
    "parallel": Place(
        lambda victim: series(value.s(1), parallel(value.s(2), victim, value.s(3)), value.s(4)),
        "1.1",
        "1",
        ("2",),
        ("0", "1.0", "1.2"),
    ),
    "parallel at the end": Place(
        lambda victim: parallel(value.s(2), victim), "0.1", "0", (), ("0.0",)
    ),
    "branch": Place(
        lambda victim: series(
            parallel(series(value.s(1), victim, value.s(2)), series(value.s(3), value.s(4))),
            value.s(5),
        ),
        "0.0.1",
        "0",
        ("0.0.2", "1"),
        ("0.0.0", "0.1.0", "0.1.1"),
    ),
}

# How a job can die: what to send, and the exception recorded for it.
QUICK: dict[str, tuple[Callable[[Lab], Any], str]] = {
    "raises": (lambda lab: fail.s(), "ValueError"),
    "exhausts its retries": (lambda lab: exhaust.s(), "ValueError"),
    "exhausts its autoretries": (lambda lab: autoretry.s(False), "KeyError"),
    "is unknown": (
        lambda lab: lab.app.signature("it.no_such_task"),
        "celery.exceptions.NotRegistered",
    ),
    "ignores itself": (lambda lab: ignore.s(), f"{ERRORS}.JobLost"),
    "rejects itself": (lambda lab: reject.s(), f"{ERRORS}.JobLost"),
    "requeues itself for ever": (lambda lab: reject.s(True), f"{ERRORS}.JobLost"),
    "replaces itself in vain": (lambda lab: replace.s(fail.s()), "ValueError"),
    "replaces itself by a failing chain": (
        lambda lab: replace.s(chain(add.s(1, 1), fail.si(), add.s(1))),
        "ValueError",
    ),
    "replaces itself by a failing group": (
        lambda lab: replace.s(group(add.s(1, 1), fail.s())),
        "ValueError",
    ),
    "returns a set": (lambda lab: unserialisable.s(), f"{ERRORS}.NonJSONResult"),
    "returns too much": (lambda lab: large.s(), f"{ERRORS}.ResultTooLarge"),
    "has bad arguments": (lambda lab: needs.s(1, 2, 3), "TypeError"),
    "has expired": (lambda lab: value.s().set(expires=-1), REVOKED),
    "raises, plain": (lambda lab: plain_fail.s(), "ValueError"),
    "exhausts its retries, plain": (lambda lab: plain_exhaust.s(), "ValueError"),
    "returns no JSON, plain": (lambda lab: plain_set.s(), f"{ERRORS}.NonJSONResult"),
}
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
TWO_ATTEMPTS = {
    "exhausts its retries",
    "exhausts its autoretries",
    "exhausts its retries, plain",
}


@dataclass(frozen=True)
class Outcome:
    """A run in which a job has ended in some way, and what its handlers noted."""

    lab: Lab
    run: ClutchResult
    tag: str

    @property
    def nested(self) -> ClutchResult:
        (run,) = self.lab.nested(self.run)
        return run


def engage(lab: Lab, victim: Any) -> dict[str, Outcome]:
    """A run for each place, and one in which the victim is nested at run time."""
    found = {}
    for name, place in PLACES.items():
        tag = new_tag()
        clutch = Clutch(place.build(victim), **handlers(tag))
        found[name] = Outcome(lab, clutch.engage(), tag)
    tag = new_tag()
    nested = Clutch(value.s(1), nests.s(victim, value.s("inner")), value.s(2), **handlers(tag))
    found["nested"] = Outcome(lab, nested.engage(), tag)
    return found


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


@pytest.fixture(scope="module")
def quick(many: Lab, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """One quick end."""
    found = engage(many, QUICK[request.param][0](many))
    many.settle()
    return found


def told_of(failure: Any) -> str:
    """The exception of a failure; leaving may be seen by the job or by the worker's main process."""
    left = "SystemExit" in failure.traceback or "exitcode 3" in failure.message
    return "SystemExit" if left else str(failure.exception)


def check(outcome: Outcome, end: str, place: Place) -> None:
    _, exception = (QUICK | SLOW)[end]
    run, lab = outcome.run, outcome.lab
    assert run.state is State.FAILED
    assert lab.kinds(outcome.tag) == {"on_failure": 1, "on_death": 1}
    (failure,) = run.failures()
    assert (failure.address, told_of(failure)) == (place.at, exception)
    assert failure.final
    assert failure.attempt == (2 if end in TWO_ATTEMPTS else 1)
    (told,) = lab.notes(outcome.tag, "on_failure")
    assert told["step"] == place.step
    assert [each["address"] for each in told["failures"]] == [place.at]
    assert [told_of(each) for each in Status.from_dict(told).failures] == [exception]
    (death,) = lab.notes(outcome.tag, "on_death")
    assert (death["id"], death["state"], death["dead"]) == (run.id, "FAILED", 1)
    ran = lab.ran(run)
    assert not [at for at in place.after if ran[at]]
    assert [ran[at] for at in place.beside] == [1] * len(place.beside)
    status = run.status()
    assert (status.done, status.dead, status.failing) == (len(place.beside), 1, 0)
    with pytest.raises(ClutchFailed, match=f"at {place.at}"):
        run.get(timeout=1)


def check_nested(outcome: Outcome, end: str) -> None:
    _, exception = (QUICK | SLOW)[end]
    run, lab = outcome.run, outcome.lab
    assert (run.state, outcome.nested.state) == (State.FAILED, State.FAILED)
    assert lab.kinds(outcome.tag) == {"on_failure": 1, "on_death": 1}
    (inner,) = outcome.nested.failures()
    assert (inner.address, told_of(inner), inner.final) == ("0", exception, True)
    (outer,) = run.failures()
    assert (outer.address, outer.exception) == ("1", f"{ERRORS}.NestedClutchFailed")
    (told,) = lab.notes(outcome.tag, "on_failure")
    assert (told["id"], told["step"]) == (outcome.nested.id, "0")
    assert told["parent"] == {"run": run.id, "address": "1"}
    assert [each["id"] for each in lab.notes(outcome.tag, "on_death")] == [run.id]
    assert lab.ran(run) == {"0": 1, "1": 1}
    assert not lab.ran(outcome.nested)["1"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("quick", QUICK, indirect=True)
def test_a_job(quick: dict[str, Outcome], place: str, request: pytest.FixtureRequest) -> None:
    check(quick[place], request.node.callspec.params["quick"], PLACES[place])


@pytest.mark.parametrize("quick", QUICK, indirect=True)
def test_a_nested_job(quick: dict[str, Outcome], request: pytest.FixtureRequest) -> None:
    check_nested(quick["nested"], request.node.callspec.params["quick"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end", SLOW)
def test_a_job_of_the_slow_kind(slow: dict[str, dict[str, Outcome]], end: str, place: str) -> None:
    check(slow[end][place], end, PLACES[place])


@pytest.mark.parametrize("end", SLOW)
def test_a_nested_job_of_the_slow_kind(slow: dict[str, dict[str, Outcome]], end: str) -> None:
    check_nested(slow[end]["nested"], end)


def test_a_poison_job_is_started_as_often_as_allowed(slow: dict[str, dict[str, Outcome]]) -> None:
    outcome = slow["kills every worker"]["series"]
    assert outcome.lab.ran(outcome.run)["1"] == 2


# --- ends that are none ---------------------------------------------------------------------

# What looks like an end and is not: what to send, the value of the job, and whether on_failure fires.
HEALED: dict[str, tuple[Callable[[], Any], Any, bool]] = {
    "retry": (lambda: retry.s(2, "x"), "x", True),
    "autoretry": (lambda: autoretry.s(True, "x"), "x", True),
    "retry, plain": (lambda: plain_retry.s(2, "x"), "x", True),
    "replaced by a task": (lambda: replace.s(add.s(1, 2)), 3, False),
    "replaced by a job": (lambda: replace.s(value.s("x")), "x", False),
    "replaced by a plain task": (lambda: replace.s(plain.s("x")), "x", False),
    "replaced by a chain": (lambda: replace.s(chain(add.s(1, 2), add.s(3))), 6, False),
    "replaced by a group": (lambda: replace.s(group(add.s(1, 2), add.s(3, 4))), [3, 7], False),
    "replaced by a chord": (
        lambda: replace.s(chord([add.s(1, 2), add.s(3, 4)], gather.s("end"))),
        [[3, 7], "end"],
        False,
    ),
    "replaced twice": (lambda: replace.s(replace.s(value.s("x"))), "x", False),
    "replaced by what retries": (lambda: replace.s(retry.s(1, "x")), "x", False),
}


def in_order(value: Any) -> Any:
    """*value* with numbers sorted: Celery's groups are not always in order inside a chord (5.3 to 5.5)."""
    if not isinstance(value, list):
        return value
    return sorted(map(in_order, value), key=str)


@pytest.fixture(scope="module")
def healed(many: Lab, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    found = engage(many, HEALED[request.param][0]())
    many.settle()
    return found


@pytest.mark.parametrize("place", [*PLACES, "nested"])
@pytest.mark.parametrize("healed", HEALED, indirect=True)
def test_a_job_that_heals(
    healed: dict[str, Outcome], place: str, request: pytest.FixtureRequest
) -> None:
    _, result, fails = HEALED[request.node.callspec.params["healed"]]
    outcome = healed[place]
    run, lab = outcome.run, outcome.lab
    assert run.state is State.SUCCEEDED
    assert lab.kinds(outcome.tag) == {"on_success": 1} | ({"on_failure": 1} if fails else {})
    assert run.failures() == []
    where, at = (outcome.nested, "0") if place == "nested" else (run, PLACES[place].at)
    assert in_order(where.results(at)) == in_order(result)
    assert run.status().done == run.status().total


def test_what_stands_in_the_place_of_a_job_loses_its_worker(lab: Lab, tag: str) -> None:
    run = Clutch(replace.s(die.s()), value.s(1), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.final) == ("0", True)
    assert failure.exception.endswith(".WorkerLostError")
