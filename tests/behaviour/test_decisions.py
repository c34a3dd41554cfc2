"""Choices, early ends, maps, and parallels that go on without some of their branches."""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import (
    double,
    fail,
    fail_unless,
    picky,
    plain,
    seen,
    sees,
    stop,
    tagged_list,
    total,
    value,
)
from integration.lab import Runs, handlers, new_tag

from celery_clutch import Clutch, Failed, State, parallel, series
from celery_clutch.errors import ClutchFailed

# --- choices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("paid", [True, False])
def test_a_step_runs_only_when_a_task_says_so(lab: Runs, paid: bool) -> None:
    clutch = Clutch(value.s("before"))
    clutch.add(value, "refund").when(sees.s(["before"] if paid else ["other"]))
    clutch << seen.s()
    run = clutch.engage()
    assert run.get(timeout=30) == [["refund" if paid else "before"]]
    assert ("1.1" in lab.ran(run)) is paid
    status = run.status()
    assert (status.done, status.total) == (4, 4)


def test_what_decides_and_what_is_decided_get_the_previous_results(lab: Runs) -> None:
    run = series(value.s(7), series(seen.s()).when(sees.s([7]))).engage()
    assert run.get(timeout=30) == [[7]]


@pytest.mark.parametrize("where", ["eu", "us", "else"])
def test_one_of_several(lab: Runs, where: str) -> None:
    clutch = Clutch()
    options = {"eu": series(value.s(1), seen.s()), "us": parallel(value.s(2), value.s(3))}
    clutch.choose(value.s(where), options, default=value.s("other"))
    clutch << seen.s()
    run = clutch.engage()
    wanted = {"eu": [[1]], "us": [2, 3], "else": ["other"]}[where]
    assert run.get(timeout=30) == [wanted]
    assert run.results("0") == {"eu": [1], "us": [2, 3], "else": "other"}[where]


@pytest.mark.parametrize("decided", [1, True, None, 1.5, "x"])
def test_keys_of_other_kinds(lab: Runs, decided: Any) -> None:
    options = {decided: value.s("this"), "other": value.s("no")}
    run = Clutch().choose(value.s(decided), options).engage()
    assert run.get(timeout=30) == ["this"]


def test_no_such_option_is_a_final_failure_of_what_decides(lab: Runs) -> None:
    run = Clutch().choose(value.s("x"), {"eu": value.s(1), "us": value.s(2)}).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert failure.exception == "celery_clutch.errors.NoSuchChoice"
    assert "0.0 has decided for 'x'" in failure.message and '"eu", "us"' in failure.message


def test_many_and_long_options_are_cut_where_none_is_chosen(lab: Runs) -> None:
    options = {"k" * 500: value.s(0), **{f"key {n}": value.s(n) for n in range(1000)}}
    run = Clutch().choose(value.s("x" * 500), options).engage()
    assert lab.finish(run) is State.FAILED
    message = run.failures()[0].message
    assert f"has decided for '{'x' * 50}" in message and "…, which is no option" in message
    assert f'the options are "{"k" * 50}' in message and '…, "key 0", "key 1", ' in message
    assert message.endswith(' "key 8" and 991 more')
    assert len(message) < 500


def test_choices_in_branches_and_a_choice_that_is_last(lab: Runs) -> None:
    branches = [
        Clutch().choose(value.s(key), {"a": parallel(value.s(1), value.s(2)), "b": value.s(3)})
        for key in "ab"
    ]
    run = series(parallel(branches), seen.s()).engage()
    assert run.get(timeout=30) == [[[1, 2], 3]]
    run = series(
        value.s(0), Clutch().choose(value.s("b"), {"a": value.s(1), "b": series()})
    ).engage()
    assert run.get(timeout=30) == [0]


def test_plain_tasks_decide(lab: Runs) -> None:
    run = Clutch().choose(plain.s("a"), {"a": plain.s(1), "b": plain.s(2)}).engage()
    assert run.get(timeout=30) == [1]


# --- early ends ------------------------------------------------------------------------------------


def test_a_job_ends_the_run(lab: Runs) -> None:
    tag = new_tag()
    run = Clutch(value.s(1), stop.s("done"), value.s(3), **handlers(tag)).engage()
    assert run.get(timeout=30) == ["done"]
    lab.settle()
    assert run.state is State.SUCCEEDED
    assert set(lab.ran(run)) == {"0", "1"}
    assert lab.kinds(tag) == {"on_success": 1}
    assert run.results("1") == "done"
    assert run.results() == ["done"]


def test_a_branch_ends_the_run(lab: Runs) -> None:
    run = series(parallel(stop.s({"a": 1}), series(value.s(1), value.s(2))), value.s(3)).engage()
    assert run.get(timeout=30) == [{"a": 1}]
    lab.settle()
    assert "1" not in lab.ran(run)


# --- maps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 1, 3, 250])
def test_a_map_has_a_branch_for_each_element(lab: Runs, width: int) -> None:
    clutch = Clutch(value.s(list(range(width))))
    clutch.map(double, kwargs={"more": 1})
    clutch << seen.s()
    run = clutch.engage()
    assert run.get(timeout=60) == [[2 * number + 1 for number in range(width)]]
    status = run.status()
    assert (status.done, status.total) == (width + 2, width + 2)
    lab.settle()
    assert set(lab.ran(run).values()) == {1}


@pytest.mark.parametrize("width", [0, 2, 120])
def test_a_map_that_is_last(lab: Runs, width: int) -> None:
    run = Clutch(value.s(list(range(width)))).map(double).engage()
    assert run.get(timeout=60) == [2 * number for number in range(width)]


def test_a_map_of_a_series(lab: Runs) -> None:
    branch = series(double.s(), seen.s(), parallel(seen.s("x"), seen.s("y")), seen.s())
    run = Clutch(value.s([1, 2])).map(branch).add(seen).engage()
    one, two = ([["x", [[number]]], ["y", [[number]]]] for number in (2, 4))
    assert run.get(timeout=30) == [[one, two]]


def test_a_map_of_a_parallel(lab: Runs) -> None:
    run = Clutch(value.s([1, 2])).map(parallel(double.s(), double.s(1))).add(seen).engage()
    assert run.get(timeout=30) == [[[2, 3], [4, 5]]]


def test_a_map_of_the_results_of_a_parallel_and_of_a_map(lab: Runs) -> None:
    clutch = Clutch(parallel(value.s(1), value.s(2))).map(double).map(double).add(seen)
    assert clutch.engage().get(timeout=30) == [[4, 8]]


def test_a_map_in_a_map(lab: Runs) -> None:
    inner = Clutch(value.s()).map(double).add(total)
    run = Clutch(value.s([[1, 2], [], [3]])).map(inner).add(seen).engage()
    assert run.get(timeout=30) == [[6, 0, 6]]


def test_a_map_with_few_at_a_time(lab: Runs) -> None:
    branch = series(double.s(), seen.s())
    clutch = Clutch(value.s(list(range(7)))).map(branch, max_concurrency=2).add(seen)
    run = clutch.engage()
    assert run.get(timeout=30) == [[[2 * number] for number in range(7)]]
    lab.settle()
    assert set(lab.ran(run).values()) == {1}


def test_a_narrow_map_in_a_map_and_a_narrow_parallel_in_a_map(lab: Runs) -> None:
    inner = Clutch(value.s()).map(double, max_concurrency=1)
    run = Clutch(value.s([[1, 2, 3], [4]])).map(inner, max_concurrency=1).add(seen).engage()
    assert run.get(timeout=30) == [[[2, 4, 6], [8]]]
    narrow = parallel(double.s(), double.s(1), double.s(2), max_concurrency=1)
    run = Clutch(value.s([1, 2])).map(narrow).add(seen).engage()
    assert run.get(timeout=30) == [[[2, 3, 4], [4, 5, 6]]]


def test_a_map_in_branches(lab: Runs) -> None:
    branches = [Clutch(value.s(list(range(n)))).map(double) for n in range(3)]
    run = series(parallel(branches), seen.s()).engage()
    assert run.get(timeout=30) == [[[], [0], [0, 2]]]


def test_a_choice_in_a_map(lab: Runs) -> None:
    branch = Clutch().choose(value.s(), {"a": double.s(), "b": series(double.s(), seen.s())})
    run = Clutch(value.s(["a", "b"])).map(branch).add(seen).engage()
    assert run.get(timeout=30) == [["aa", ["bb"]]]


def test_what_is_no_list_is_a_final_failure_of_the_job_that_returned_it(lab: Runs) -> None:
    run = Clutch(value.s({"a": 1})).map(double).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.exception) == ("0", "celery_clutch.errors.NotAList")
    plainly = Clutch(plain.s("ab")).map(double).engage()
    assert lab.finish(plainly) is State.FAILED
    assert plainly.failures()[0].exception == "celery_clutch.errors.NotAList"


def test_a_map_whose_list_is_known_to_be_wrong_late(lab: Runs) -> None:
    clutch = Clutch(value.s(5))
    clutch.add(value, []).when(value.s(False))
    run = clutch.map(double).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.exception) == ("2", "celery_clutch.errors.NotAList")


def test_a_list_that_is_shorter_than_need_fails_the_run_again_when_that_is_resumed(
    lab: Runs,
) -> None:
    run = Clutch(value.s([1])).map(double, need=2).engage()
    for _ in range(2):
        assert lab.finish(run) is State.FAILED
        (failure,) = run.failures()
        assert failure.address == "1"
        assert failure.message == (
            "the map at 1 has need=2, which wants a list of at least 2 elements, and its list has "
            "1 element"
        )
        (reason,) = run.why()
        assert reason.kind == "ended"
        assert f": the map 1 is dead: {failure.exception}: {failure.message}" in reason.sentence
        assert "Its list is a result, which resume() keeps" in reason.fix
        assert run.resume()


def test_a_map_is_resumed_where_it_was(lab: Runs) -> None:
    flag = new_tag()
    run = Clutch(value.s([1, flag, 3])).map(series(picky.s(flag), seen.s())).add(seen).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(flag)
    assert run.resume()
    assert run.get(timeout=30) == [[[1], [flag], [3]]]
    assert {address for address, times in lab.ran(run).items() if times > 1} == {"1.1.0"}


# --- tolerated deaths ------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", [True, 1, 0.4])
def test_a_parallel_goes_on_without_a_branch(lab: Runs, allow: Any) -> None:
    tag = new_tag()
    steps = parallel(value.s(1), fail.s("broken"), value.s(3), allow_failures=allow)
    run = Clutch(steps, seen.s(), **handlers(tag)).engage()
    lab.settle()
    absent = {"address": "0.1", "exception": "ValueError", "message": "broken"}
    assert run.get(timeout=30) == [[1, absent, 3]]
    assert run.results("0") == [1, Failed("0.1", "ValueError", "broken"), 3]
    assert not run.results("0")[1]
    assert run.state is State.SUCCEEDED
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_too_many_deaths_fail_the_run(lab: Runs) -> None:
    tag = new_tag()
    steps = parallel(value.s(1), fail.s(), fail.s(), allow_failures=1)
    run = Clutch(steps, seen.s(), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    lab.settle()
    assert lab.kinds(tag)["on_death"] == 1
    with pytest.raises(ClutchFailed):
        run.get(timeout=1)


def test_a_series_that_dies_in_its_middle(lab: Runs) -> None:
    branch = series(value.s(1), fail.s("x"), value.s(3))
    run = series(parallel(branch, value.s(2), allow_failures=True), seen.s()).engage()
    assert run.get(timeout=30) == [
        [{"address": "0.0.1", "exception": "ValueError", "message": "x"}, 2]
    ]
    lab.settle()
    assert "0.0.2" not in lab.ran(run)
    status = run.status()
    assert (status.state, status.done, status.total) == (State.SUCCEEDED, 5, 5)


def test_a_tolerant_parallel_that_is_last_and_one_where_all_die(lab: Runs) -> None:
    run = parallel(fail.s("a"), fail.s("b"), allow_failures=True).engage()
    found = run.get(timeout=30)
    assert found == [Failed("0.0", "ValueError", "a"), Failed("0.1", "ValueError", "b")]
    assert not any(found)


def test_tolerance_in_a_narrow_parallel(lab: Runs) -> None:
    branches = [series(picky.s(n, 1, 3), seen.s()) for n in range(5)]
    run = series(parallel(branches, max_concurrency=2, allow_failures=2), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert [each if isinstance(each, list) else each["message"] for each in found] == [
        [0],
        "1 is refused",
        [2],
        "3 is refused",
        [4],
    ]


def test_tolerance_in_a_map(lab: Runs) -> None:
    clutch = Clutch(value.s(list(range(10)))).map(series(picky.s(3), seen.s()), allow_failures=0.1)
    run = clutch.add(seen).engage()
    (found,) = run.get(timeout=30)
    assert [each for each in found if isinstance(each, dict)] == [
        {"address": "1.3.0", "exception": "ValueError", "message": "3 is refused"}
    ]
    clutch = Clutch(value.s(list(range(10)))).map(picky.s(3, 4), allow_failures=0.1)
    assert lab.finish(clutch.engage()) is State.FAILED


def test_what_a_map_gets_of_a_branch_that_is_dead_or_skipped(lab: Runs) -> None:
    before = parallel(fail.s("a"), value.s(1), allow_failures=1)
    run = Clutch(before).map(value).add(seen).engage()
    dead = {"address": "0.0", "exception": "ValueError", "message": "a"}
    assert run.get(timeout=30) == [[dead, 1]]
    assert run.results("1.0") == dead

    skipped = Clutch(value.s(1)).when(value.s(0))
    inner = parallel(fail.s("b"), value.s(2), allow_failures=True)
    run = Clutch(parallel(skipped, inner)).map(value).engage()
    dead = {"address": "0.1.0", "exception": "ValueError", "message": "b"}
    assert run.get(timeout=30) == [{"address": "0.0"}, [dead, 2]]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("kind", ["datetime", "unknown"])
def test_an_element_that_celery_would_take_for_another_value(
    lab: Runs, kind: str, limit: int | None
) -> None:
    for first in (tagged_list.s(kind), parallel(value.s(1), tagged_list.s(kind))):
        run = Clutch(first).map(value, max_concurrency=limit).engage()
        assert lab.finish(run) is State.FAILED
        (failure,) = run.failures()
        assert failure.address == "1.1"
        assert "NotAList" in failure.exception and "element 1 of the map at 1" in failure.message


def test_the_parallel_around_goes_on_without_one_that_fails(lab: Runs) -> None:
    inner = parallel(fail.s("a"), fail.s("b"), value.s(1), allow_failures=1)
    run = series(parallel(series(inner, seen.s()), value.s(2), allow_failures=1), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert found[1] == 2 and found[0]["exception"] == "ValueError"


@pytest.mark.parametrize("again", [False, True])
def test_tolerated_deaths_are_tried_again_where_that_is_asked_for(lab: Runs, again: bool) -> None:
    one, two = new_tag(), new_tag()
    steps = parallel(fail_unless.s(one, 1), fail_unless.s(two, 2), value.s(3), allow_failures=1)
    run = series(steps, seen.s()).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(one)
    lab.raise_flag(two)
    assert run.resume(retry_tolerated=again)
    (found,) = run.get(timeout=30)
    assert sum(isinstance(each, dict) for each in found) == (0 if again else 1)


# --- enough ----------------------------------------------------------------------------------------


def test_one_is_enough(lab: Runs) -> None:
    branches = [fail.s(), value.s(1), *(series(value.s(n), seen.s()) for n in range(2, 9))]
    run = series(parallel(branches, need=1, max_concurrency=1), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert found[1] == 1
    lab.settle()
    assert "0.8.0" not in lab.ran(run)
    assert run.state is State.SUCCEEDED


def test_more_deaths_than_can_be_spared(lab: Runs) -> None:
    run = series(parallel(fail.s(), fail.s(), value.s(1), need=2), seen.s()).engage()
    assert lab.finish(run) is State.FAILED
