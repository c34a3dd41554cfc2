"""How runs look that decide while they run: addresses, names, states, counts, handlers."""

from __future__ import annotations

import pytest
from integration.app import double, every_named, fail, picky, read_named, seen, value
from integration.lab import Runs, handlers, new_tag

from celery_clutch import Clutch, Failed, State, named, parallel, series
from celery_clutch.errors import MissingResult, UnknownAddress

# --- addresses ----------------------------------------------------------------------------------


def test_results_of_what_is_inside_a_map(lab: Runs) -> None:
    branch = series(double.s(), parallel(seen.s("x"), seen.s("y")))
    run = Clutch(value.s([1, 2, 3])).map(branch).add(seen).engage()
    run.get(timeout=30)
    assert run.results("1.2.0") == 6
    assert run.results("1.2") == [["x", [6]], ["y", [6]]]
    assert run.results("1.0.1.1") == ["y", [2]]
    assert run.results("1") == [run.results(f"1.{index}") for index in range(3)]
    with pytest.raises(UnknownAddress, match=r"'1\.3'.* the map at 1 has 3 branches"):
        run.results("1.3")
    for address in ("1.2.2", "1.02", "1.2.0.0", "1.2+0"):
        with pytest.raises(UnknownAddress):
            run.results(address)


def test_results_of_what_is_inside_maps_in_a_map(lab: Runs) -> None:
    inner = Clutch(value.s()).map(double).add(seen)
    run = Clutch(value.s([[1, 2], [], [3]])).map(inner, allow_failures=1).engage()
    run.get(timeout=30)
    assert run.results("1.0.1") == [2, 4]
    assert run.results("1.1.1") == []
    assert run.results("1.2.1.0") == 6
    assert run.results("1.2") == [6]
    with pytest.raises(UnknownAddress):
        run.results("1.1.1.0")


def test_results_of_what_is_inside_a_choice(lab: Runs) -> None:
    clutch = Clutch(value.s("before"))
    clutch.choose(value.s("b"), {"a": value.s(1), "b": series(value.s(2), seen.s())})
    clutch.add(value, "no").when(value.s(0))
    run = clutch.engage()
    run.get(timeout=30)
    assert (run.results("1"), run.results("1.0")) == ([2], "b")
    assert (run.results("1.2"), run.results("1.2.0")) == ([2], 2)
    assert (run.results("2"), run.results("2.0")) == ([2], 0)
    for skipped in ("1.1", "2.1"):
        with pytest.raises(MissingResult, match="it was skipped"):
            run.results(skipped)
    with pytest.raises(UnknownAddress):
        run.results("1.3")


# --- names --------------------------------------------------------------------------------------


def test_names_in_a_map_are_of_the_own_branch_there_and_of_all_behind_it(lab: Runs) -> None:
    branch = series(named(double.s(), "doubled"), every_named.s())
    clutch = Clutch(value.s([1, 2])).map(branch)
    run = clutch.add(every_named).engage()
    assert run.get(timeout=30) == [{"doubled": [2, 4]}]
    assert run.results("1") == [{"doubled": 2}, {"doubled": 4}]
    assert run.results("doubled") == [2, 4]


def test_names_in_a_map_in_a_map(lab: Runs) -> None:
    inner = Clutch(named(value.s(), "list")).map(series(named(double.s(), "each"), every_named.s()))
    run = Clutch(value.s([[1, 2], []])).map(inner.add(every_named)).add(every_named).engage()
    assert run.get(timeout=30) == [{"list": [[1, 2], []], "each": [[2, 4], []]}]
    assert run.results("1") == [
        {"list": [1, 2], "each": [2, 4]},
        {"list": [], "each": []},
    ]
    assert run.results("1.0.1.1") == {"list": [1, 2], "each": 4}
    assert run.results("each") == [[2, 4], []]


def test_names_in_a_map_that_goes_on_without_a_branch(lab: Runs) -> None:
    branch = series(named(picky.s(2), "seen"), value.s("x"))
    run = Clutch(value.s([1, 2])).map(branch, allow_failures=1).add(every_named).engage()
    (found,) = run.get(timeout=30)
    assert found["seen"][0] == 1 and found["seen"][1]["message"] == "2 is refused"
    assert run.results("seen") == [1, Failed("1.1.0", "ValueError", "2 is refused")]


def test_names_in_branches_of_a_map_that_run_side_by_side_are_hidden(lab: Runs) -> None:
    branch = parallel(named(double.s(), "one"), read_named.s("later"))
    clutch = Clutch(value.s(["one"])).map(branch)
    run = clutch.add(named(value.s(), "later")).engage()
    run.get(timeout=30)
    told = run.results("1.0.1")
    assert "both are in the parallel 1.0, in branches that run side by side" in told["one"]
    assert "it comes later" in told["later"]


def test_the_name_of_a_step_that_need_not_be_chosen_is_hidden_elsewhere(lab: Runs) -> None:
    clutch = Clutch(value.s("photo"))
    options = {"a": series(named(value.s(1), "one"), every_named.s()), "b": value.s(2)}
    clutch.choose(value.s("a"), options).named("chosen")
    run = clutch.add(read_named, "one", "chosen").engage()
    (told,) = run.get(timeout=30)
    assert told["chosen"] == {"one": 1}
    assert "it is in an option of the choice at 1, which need not be chosen" in told["one"]


# --- handlers -----------------------------------------------------------------------------------


def test_who_listens_to_the_branch_of_a_map_is_told(lab: Runs) -> None:
    tag, outside = new_tag(), new_tag()
    branch = Clutch(picky.s(2), seen.s(), **handlers(tag))
    clutch = Clutch(value.s([1, 2, 3]), **handlers(outside)).map(branch, allow_failures=True)
    run = clutch.engage()
    run.get(timeout=30)
    lab.settle()
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 2}
    assert lab.kinds(outside) == {"on_success": 1}


def test_who_listens_inside_a_map_in_a_map_is_told_of_a_death(lab: Runs) -> None:
    tag = new_tag()
    inner = Clutch(value.s()).map(Clutch(seen.s(), fail.s("x"), **handlers(tag)))
    run = Clutch(value.s([[1]])).map(inner).engage()
    assert lab.finish(run) is State.FAILED
    lab.settle()
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
