"""Where in a clutch a job can stand that ends in some way, and what has to come of it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from celery_clutch import Clutch, ClutchResult, State, Status, parallel, series
from celery_clutch.errors import ClutchFailed

from .app import nests, value
from .lab import Runs, handlers, new_tag

ERRORS = "celery_clutch.errors"


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


@dataclass(frozen=True)
class Outcome:
    """A run in which a job has ended in some way, and what its handlers noted."""

    lab: Runs
    run: ClutchResult
    tag: str

    @property
    def nested(self) -> ClutchResult:
        (run,) = self.lab.nested(self.run)
        return run


def engage(lab: Runs, victim: Any) -> dict[str, Outcome]:
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


def told_of(failure: Any) -> str:
    """The exception of a failure; leaving may be seen by the job or by the worker's main process."""
    left = "SystemExit" in failure.traceback or "exitcode 3" in failure.message
    return "SystemExit" if left else str(failure.exception)


def check(outcome: Outcome, exception: str, place: Place, attempts: int = 1) -> None:
    run, lab = outcome.run, outcome.lab
    assert run.state is State.FAILED
    assert lab.kinds(outcome.tag) == {"on_failure": 1, "on_death": 1}
    (failure,) = run.failures()
    assert (failure.address, told_of(failure)) == (place.at, exception)
    assert failure.final
    assert failure.attempt == attempts
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


def check_nested(outcome: Outcome, exception: str) -> None:
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
