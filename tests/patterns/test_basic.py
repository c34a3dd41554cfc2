"""The basic patterns of control flow, 1 to 5 of the catalogue at workflowpatterns.com."""

from __future__ import annotations

import pytest
from integration.app import hold, seen, sees, value
from integration.lab import Runs, until

from celery_clutch import Clutch, State, parallel, series


def test_1_sequence(lab: Runs) -> None:
    """A task starts when the one before it has completed.

    The steps of a clutch are such a sequence, and so are those of a series in it.
    """
    run = Clutch(value.s("a"), series(seen.s(), seen.s()), seen.s()).engage()
    assert run.get(timeout=30) == [[[["a"]]]], "each saw what the one before had returned"
    assert lab.order(run) == ["0", "1", "2", "3"]


@pytest.mark.not_eager
def test_1_sequence_that_has_to_wait(lab: Runs, tag: str) -> None:
    run = Clutch(hold.s(tag, "a"), seen.s()).engage()
    until(lambda: lab.ran(run)["0"], "for the first task to start")
    assert lab.order(run) == ["0"]
    lab.raise_flag(tag)
    assert run.get(timeout=30) == [["a"]]
    assert lab.order(run) == ["0", "1"]


def test_2_parallel_split(lab: Runs) -> None:
    """One branch becomes several, each of which goes on by itself.

    The branches of a parallel start when the step before it is done, and each is given its result.
    """
    run = Clutch(value.s("a"), parallel(seen.s("x"), series(seen.s("y"), seen.s()))).engage()
    assert run.get(timeout=30) == [["x", ["a"]], [["y", ["a"]]]]
    assert lab.order(run)[0] == "0"


@pytest.mark.not_eager
def test_2_parallel_split_into_branches_that_run_at_once(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(hold.s(f"{tag} x", "x"), hold.s(f"{tag} y", "y"))).engage()
    until(lambda: len(lab.ran(run)) == 2, "for both branches to be under way")
    assert run.status().done == 0
    for name in "xy":
        lab.raise_flag(f"{tag} {name}")
    assert run.get(timeout=30) == ["x", "y"]


def test_3_synchronization(lab: Runs) -> None:
    """Several branches become one again, which goes on when all of them have arrived.

    What follows a parallel waits for all its branches and runs once, with all their results.
    """
    branches = [series(*(value.s(n) for n in range(length))) for length in (1, 2, 3)]
    run = Clutch(parallel(branches), seen.s()).engage()
    assert run.get(timeout=30) == [[0, 1, 2]]
    lab.settle()
    assert lab.order(run).index("1") == 6
    assert lab.ran(run)["1"] == 1


@pytest.mark.not_eager
def test_3_synchronization_waits_for_the_last(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(value.s("x"), hold.s(tag, "y"), value.s("z")), seen.s()).engage()
    until(lambda: run.status().done == 2, "for the quick branches")
    until(lambda: lab.ran(run)["0.1"], "for the slow branch to start")
    assert not lab.ran(run)["1"]
    lab.raise_flag(tag)
    assert run.get(timeout=30) == [["x", "y", "z"]]


@pytest.mark.parametrize("country", ["fr", "us", "elsewhere"])
def test_4_exclusive_choice(lab: Runs, country: str) -> None:
    """Exactly one of several branches is taken, as data says at that time.

    `Clutch.choose` takes the option whose key a task returns, and else the default.
    """
    clutch = Clutch(value.s("order"))
    options = {"fr": seen.s("road"), "us": series(seen.s("ship"), seen.s())}
    clutch.choose(value.s(country), options, default=seen.s("air"))
    run = clutch.engage()
    wanted = {
        "fr": ["road", ["order"]],
        "us": [["ship", ["order"]]],
        "elsewhere": ["air", ["order"]],
    }
    assert run.get(timeout=30) == [wanted[country]]
    lab.settle()
    taken = {"fr": {"1.1"}, "us": {"1.2.0", "1.2.1"}, "elsewhere": {"1.3"}}[country]
    assert set(lab.ran(run)) == {"0", "1.0"} | taken
    assert run.state is State.SUCCEEDED


@pytest.mark.parametrize("country", ["fr", "us"])
def test_5_simple_merge(lab: Runs, country: str) -> None:
    """Alternative branches become one: what follows runs for the one that was taken, without waiting
    for the others.

    What follows a choice does so: once, with the result of what was chosen.
    """
    clutch = Clutch().choose(value.s(country), {"fr": value.s("road"), "us": value.s("ship")})
    run = clutch.add(seen).engage()
    assert run.get(timeout=30) == [["road" if country == "fr" else "ship"]]
    lab.settle()
    assert lab.ran(run)["1"] == 1


@pytest.mark.parametrize("is_large", [True, False])
def test_5_simple_merge_of_something_and_nothing(lab: Runs, is_large: bool) -> None:
    clutch = Clutch(value.s("large" if is_large else "small"))
    clutch.add(seen, "checked").when(sees.s(["large"]))
    run = clutch.add(seen).engage()
    assert run.get(timeout=30) == [[["checked", ["large"]]] if is_large else ["small"]]
