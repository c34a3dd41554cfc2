"""What stands in the place of what did not run."""

from __future__ import annotations

import pytest
from integration.app import double, every_named, fail, seen, spread, value
from integration.lab import Runs

from celery_clutch import Clutch, Skipped, State, parallel, series
from celery_clutch.errors import MissingResult

NO = value.s(False)


def test_a_step_of_a_series(lab: Runs) -> None:
    clutch = Clutch(value.s("before"), Clutch(value.s("no")).when(NO), seen.s())
    run = clutch.engage()
    assert run.get(timeout=30) == [["before"]]
    lab.settle()
    assert run.results("1") == "before"
    with pytest.raises(MissingResult, match="it was skipped"):
        run.results("1.1")


def test_the_first_step(lab: Runs) -> None:
    run = Clutch(Clutch(value.s("no")).when(NO), seen.s()).engage()
    assert run.get(timeout=30) == [[]]


def test_all_of_a_clutch(lab: Runs) -> None:
    run = Clutch(value.s("no")).when(NO).engage()
    assert run.get(timeout=30) == []
    assert run.state is State.SUCCEEDED


def test_a_branch(lab: Runs) -> None:
    choice = Clutch().choose(value.s("b"), {"a": value.s("no"), "b": series()})
    branches = [Clutch(value.s("no")).when(NO), value.s("yes"), series(choice)]
    run = Clutch(value.s("before"), parallel(branches), seen.s()).engage()
    assert run.get(timeout=30) == [[{"address": "1.0"}, "yes", {"address": "1.2"}]]
    assert run.results("1") == [Skipped("1.0"), "yes", Skipped("1.2")]
    assert not run.results("1.0")


def test_a_step_of_a_branch(lab: Runs) -> None:
    branch = series(Clutch(value.s("no")).when(NO), seen.s())
    run = Clutch(value.s("before"), parallel(branch, value.s(1)), seen.s()).engage()
    assert run.get(timeout=30) == [[["before"], 1]]


@pytest.mark.parametrize("bounds", [{}, {"allow_failures": True}, {"need": 2}])
def test_branches_of_a_tolerant_parallel(lab: Runs, bounds: dict[str, int]) -> None:
    branches = [Clutch(value.s("no")).when(NO), value.s("yes")]
    run = Clutch(parallel(branches, **bounds), seen.s()).engage()
    assert run.get(timeout=30) == [[{"address": "0.0"}, "yes"]]


def test_branches_of_a_map(lab: Runs) -> None:
    clutch = Clutch(value.s([0, 1, 0, 3])).map(Clutch(double.s()).when(value))
    run = clutch.add(seen).engage()
    assert run.get(timeout=30) == [[{"address": "1.0"}, 2, {"address": "1.2"}, 6]]
    assert run.results("1") == [Skipped("1.0"), 2, Skipped("1.2"), 6]


def test_a_step_with_a_name(lab: Runs) -> None:
    clutch = Clutch(value.s("before"))
    clutch.add(value, "no").when(NO).named("gift")
    run = clutch.add(every_named).engage()
    assert run.get(timeout=30) == [{"gift": "before"}]
    assert run.results("gift") == "before"


def test_a_parallel_that_needs_some_of_its_branches_in_another(lab: Runs) -> None:
    branches = [series(value.s(1), value.s(2)), series(value.s(3), value.s(4))]
    inner = parallel(branches, need=1, max_concurrency=1)
    run = Clutch(parallel(inner, value.s(9), need=2), seen.s()).engage()
    assert run.get(timeout=30) == [[[2, {"address": "0.0.1"}], 9]]


def test_a_parallel_that_goes_on_without_a_branch_in_one_that_needs_some(lab: Runs) -> None:
    inner = parallel(series(value.s(1), value.s(2)), fail.s("x"), allow_failures=True)
    run = Clutch(parallel(inner, value.s(9), need=2), seen.s()).engage()
    dead = {"address": "0.0.1", "exception": "ValueError", "message": "x"}
    assert run.get(timeout=30) == [[[2, dead], 9]]


@pytest.mark.parametrize("yes", [True, False])
def test_a_branch_beside_branches_that_are_added(lab: Runs, yes: bool) -> None:
    adds = spread.s(1, value.s(3), value.s("x"))
    run = Clutch(parallel(adds, Clutch(value.s(2)).when(value.s(yes))), seen.s()).engage()
    assert run.get(timeout=30) == [[1, 2 if yes else {"address": "0.1"}, 3, "x"]]
