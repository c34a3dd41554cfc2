"""How runs look that decide while they run: addresses, names, states, counts, handlers."""

from __future__ import annotations

from collections import Counter

import celery
import pytest
from integration.app import (
    double,
    every_named,
    fail,
    fail_unless,
    hold,
    picky,
    read_named,
    seen,
    spread,
    stop,
    value,
)
from integration.lab import Runs, handlers, new_tag, until

from celery_clutch import Clutch, ClutchResult, Failed, Skipped, State, named, parallel, series
from celery_clutch.errors import ClutchFailed, MissingResult, UnknownAddress, UnknownName
from celery_clutch.model import graph
from celery_clutch.operate.cli.base import tree_of

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


@pytest.mark.not_eager
def test_results_of_what_will_not_run_before_the_run_has_ended(lab: Runs) -> None:
    flag = new_tag()
    clutch = Clutch().choose(value.s("a"), {"a": value.s(1), "b": value.s(2)})
    run = clutch.add(hold, flag, 3).add(value, 4).engage()
    until(lambda: run.progress().done == 3, "for the choice")
    with pytest.raises(MissingResult, match=r"0\.2 .* has no result: it was skipped"):
        run.results("0.2")
    with pytest.raises(MissingResult, match=r"2 .* has no result yet: the run is RUNNING"):
        run.results("2")
    lab.raise_flag(flag)
    run.get(timeout=30)


def test_results_of_a_branch_that_a_run_goes_on_without(lab: Runs) -> None:
    steps = series(value.s(1), parallel(value.s(2), fail.s("b")), value.s(3))
    branches = Clutch(value.s([0, 1])).map(series(picky.s(0), value.si(5)), allow_failures=1)
    run = parallel(steps, branches, fail.s("c"), allow_failures=True, name="all").engage()
    run.get(timeout=30)
    assert run.results("0.0") == Failed("0.0.1.1", "ValueError", "b")
    assert run.results("0.1") == [Failed("0.1.1.0.0", "ValueError", "0 is refused"), 5]
    assert run.results("0.1.1.0") == run.results("0.1")[0]
    assert [run.results(f"0.{n}") for n in range(3)] == run.results("all")
    said = "died of ValueError: 0 is refused, and the run goes on without it"
    with pytest.raises(MissingResult, match=said):
        run.results("0.1.1.0.0")


@pytest.mark.not_eager
def test_results_of_a_parallel_before_as_many_have_succeeded_as_it_needs(lab: Runs) -> None:
    flag = new_tag()
    run = parallel(value.s(1), hold.s(flag, 2), value.s(3), need=3, name="all").engage()
    until(lambda: run.progress().done == 2, "for two branches")
    for address in ("0", "all", None):
        with pytest.raises(MissingResult, match=r"0\.1 .* has no result yet"):
            run.results(address)
    lab.raise_flag(flag)
    assert run.get(timeout=30) == [1, 2, 3]


def test_what_is_missing_where_fewer_have_succeeded_than_are_needed(lab: Runs) -> None:
    run = parallel(fail.s("a"), fail.s("b"), value.s(1), need=3, max_concurrency=1).engage()
    assert lab.finish(run) is State.FAILED
    assert run.get(timeout=30, propagate=False) == [None, None, 1]


# --- names --------------------------------------------------------------------------------------


def test_a_step_that_is_skipped_is_the_same_by_name_and_by_address(lab: Runs) -> None:
    def skipped(name: str) -> Clutch:
        return named(Clutch(value.s("no")).when(value.s(False)), name)

    clutch = Clutch(value.s("before"), skipped("step"))
    clutch << parallel(skipped("branch"), series(skipped("first"), seen.s()), value.s(1))
    run = clutch.add(every_named).engage()
    branch = Skipped("2.0")
    seen_inside = {"step": "before", "branch": branch.to_dict(), "first": "before"}
    assert run.get(timeout=30) == [seen_inside]
    expected = {"step": ("1", "before"), "branch": ("2.0", branch), "first": ("2.1.0", "before")}
    for name, (address, result) in expected.items():
        assert (run.results(name), run.results(address)) == (result, result)
    assert run.results("2.1") == ["before"], "what the step behind the first has got"


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


# --- states and counts --------------------------------------------------------------------------


def states(lab: Runs, run: ClutchResult) -> dict[str, str]:
    return {node.address: node.state for node in tree_of(lab.app, run.id).walk()}


def test_what_a_run_has_decided_is_shown(lab: Runs) -> None:
    clutch = Clutch(value.s([1, 2, 3]))
    clutch.map(series(picky.s(2), seen.s()), allow_failures=1)
    clutch.choose(value.s("eu"), {"eu": value.s(1), "us": series(value.s(2), seen.s())})
    clutch.add(value, 1).when(value.s(False))
    branches = [series(value.s(n), seen.s()) for n in range(4)]
    clutch << parallel(branches, need=1, max_concurrency=1)
    run = clutch.engage()
    run.get(timeout=30)
    lab.settle()
    found = states(lab, run)
    assert {at for at, state in found.items() if state == "skipped"} == {
        *("1.1.1", "2.2", "2.2.0", "2.2.1", "3.1"),
        *(f"4.{n}{step}" for n in (1, 2, 3) for step in ("", ".0", ".1")),
    }
    assert {at for at, state in found.items() if state == "tolerated"} == {"1", "1.1", "1.1.0"}
    status = run.status()
    counted = Counter(node.state for node in tree_of(lab.app, run.id).walk() if node.kind == "job")
    assert (status.skipped, status.tolerated) == (counted["skipped"], counted["tolerated"])
    assert (status.done, status.total) == (status.total, sum(counted.values()))
    assert status.to_dict()["skipped"] == 10
    assert tree_of(lab.app, run.id).status == status


def test_a_job_that_decides_what_follows_ends_the_run(lab: Runs) -> None:
    for steps in (Clutch(stop.s("x")).map(double), Clutch().choose(stop.s("x"), {"a": value.s(1)})):
        run = steps.engage()
        assert run.get(timeout=30) == ["x"]
        assert set(states(lab, run).values()) <= {"done", "skipped"}


def test_what_an_early_end_leaves_is_skipped(lab: Runs) -> None:
    tag = new_tag()
    clutch = Clutch(value.s([1, 2]), stop.s("done"), **handlers(tag))
    run = clutch.map(double).add(seen).engage()
    run.get(timeout=30)
    lab.settle()
    assert states(lab, run) == {
        **{"0": "done", "1": "done"},
        **dict.fromkeys(("2", "2.%", "3"), "skipped"),
    }
    assert run.status().skipped == 2
    (told,) = lab.notes(tag)
    assert told["skipped"] == 2


def test_deaths_above_the_tolerance_fail_the_run_and_those_below_are_no_reason(lab: Runs) -> None:
    steps = parallel(fail.s("one"), fail.s("two"), fail.s("three"), allow_failures=2)
    run = series(steps, seen.s()).engage()
    assert lab.finish(run) is State.FAILED
    status = run.status()
    assert (status.dead, status.tolerated, status.skipped) == (1, 2, 0)
    found = states(lab, run)
    dead = [at for at, state in found.items() if state == "dead" and at != "0"]
    assert len(dead) == 1 and list(found.values()).count("tolerated") == 2
    assert [failure.address for failure in run.failures()] == dead
    tolerated = run.failures(tolerated=True)
    assert {failure.address for failure in tolerated} == {"0.0", "0.1", "0.2"} - {*dead}
    assert all(failure.final and failure.message for failure in tolerated)
    assert run.failures(1, 1, tolerated=True) == tolerated[1:]
    with pytest.raises(ClutchFailed, match=f"it.fail at {dead[0]}: ") as caught:
        run.get(timeout=1)
    assert ";" not in str(caught.value)
    reasons = [reason for reason in run.why() if reason.kind == "ended"]
    assert [reason.address for reason in reasons] == dead


def test_a_death_tolerated_before_a_run_was_resumed_is_shown(lab: Runs) -> None:
    flag = new_tag()
    branches = [series(fail.s("x"), seen.s()), fail_unless.s(flag)]
    steps = parallel(branches, allow_failures=1, max_concurrency=1)
    run = series(steps, fail_unless.s(flag)).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(flag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert states(lab, run) == {
        **dict.fromkeys(("0", "0.0", "0.0.0"), "tolerated"),
        "0.0.1": "skipped",
        **dict.fromkeys(("0.1", "1"), "done"),
    }


def test_branches_that_a_job_has_added_are_shown_with_what_is_in_them(lab: Runs) -> None:
    inner = celery.group(spread.si(1, value.si(7)), value.si(2))
    branch = spread.s("x", value.si(3), inner)
    run = series(parallel(branch, value.s("y")), seen.s()).engage()
    run.get(timeout=30)
    found = states(lab, run)
    assert {at for at in found if "+" in at} == {
        *("0.0+0", "0.0+1", "0.0+1.0", "0.0+1.1", "0.0+1.0+0"),
    }
    assert set(found.values()) == {"done"}
    assert run.results("0.0+0") == 3
    assert run.results("0.0+1") == [1, 2, 7]
    assert run.results("0.0+1.0+0") == 7
    for address in ("0.0+2", "0.1+0", "0.0+1.3", "0.0+1.0+1", "0+0"):
        with pytest.raises((UnknownAddress, UnknownName)):
            run.results(address)
    tasks = {node.address: node.task for node in tree_of(lab.app, run.id).walk()}
    assert tasks["0.0+1.0+0"] == "it.value"
    assert "2 branches added" in graph.text(tree_of(lab.app, run.id).plan)
