"""What stands in the place of what did not run."""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import double, every_named, fail, seen, spread, spread_choices, value
from integration.lab import Runs

from celery_clutch import Clutch, Skipped, State, named, parallel, series
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


def test_a_branch_that_dies_before_it_is_decided(lab: Runs) -> None:
    no_choice = Clutch().choose(value.s("d"), {"a": value.s(1)})
    no_list = Clutch(value.s("d")).map(double)
    no_decider = Clutch(value.s(1)).when(fail.s("x"))
    steps = parallel(no_choice, no_list, no_decider, value.s(4), allow_failures=0.8)
    for run in (Clutch(steps).engage(), Clutch(steps, seen.s()).engage()):
        assert lab.finish(run) is State.SUCCEEDED
        *dead, alive = run.results("0")
        assert alive == 4
        assert [(each.address, each.exception.rpartition(".")[2]) for each in dead] == [
            ("0.0.0", "NoSuchChoice"),
            ("0.1.0", "NotAList"),
            ("0.2.0", "ValueError"),
        ]
        last = run.get(timeout=30)
        assert last in ([*dead, 4], [[*(each.to_dict() for each in dead), 4]])


def test_branches_of_a_map_that_die_before_they_are_decided(lab: Runs) -> None:
    branch = Clutch().choose(value.s(), {"a": double.s()})
    run = Clutch(value.s(["a", "b", "a"])).map(branch, allow_failures=1).add(seen).engage()
    ((one, dead, three),) = run.get(timeout=30)
    assert (one, three) == ("aa", "aa")
    assert dead["exception"].endswith("NoSuchChoice")


@pytest.mark.parametrize("bounds", [{}, {"max_concurrency": 1}, {"allow_failures": True}])
def test_branches_that_are_added_and_chosen(lab: Runs, bounds: dict[str, Any]) -> None:
    branches = [spread_choices.s("a", "x"), value.s(2)]
    run = Clutch(value.s(0), parallel(branches, **bounds), seen.s()).engage()
    ((one, two, first, second),) = run.get(timeout=30)
    assert (one, two, first) == ("spread", 2, "chosen a")
    assert second == {"address": run.results("1")[3].address}
    assert run.results("1")[3] == Skipped(second["address"])


@pytest.mark.parametrize("bounds", [{"allow_failures": True}, {"need": 2}])
def test_a_map_of_nothing_in_a_branch_is_no_skipped_branch(
    lab: Runs, bounds: dict[str, Any]
) -> None:
    branches = [Clutch(value.s([])).map(double), value.s(2)]
    run = Clutch(parallel(branches, **bounds), seen.s()).engage()
    assert run.get(timeout=30) == [[[], 2]]


def test_names_in_branches_that_died(lab: Runs) -> None:
    branches = [
        series(named(value.s(1), "one"), named(fail.s("x"), "two")),
        named(value.s(3), "3rd"),
    ]
    run = Clutch(parallel(branches, allow_failures=True), every_named.s()).engage()
    dead = {"address": "0.0.1", "exception": "ValueError", "message": "x"}
    assert run.get(timeout=30) == [{"one": dead, "two": dead, "3rd": 3}]


def test_names_in_branches_that_did_not_run(lab: Runs) -> None:
    branches = [named(value.s(n), f"no. {n}") for n in range(2)]
    run = Clutch(parallel(branches, need=1, max_concurrency=1), every_named.s()).engage()
    assert run.get(timeout=30) == [{"no. 0": 0, "no. 1": {"address": "0.1"}}]


def test_names_in_maps_in_branches_that_may_die(lab: Runs) -> None:
    branch = series(named(double.s(), "twice"), every_named.s())
    inner = Clutch(value.s([1, 2])).map(branch)
    run = Clutch(parallel(inner, fail.s(), allow_failures=True), every_named.s()).engage()
    assert run.get(timeout=30) == [{"twice": [2, 4]}]
    assert run.results("0.0") == [{"twice": 2}, {"twice": 4}]
