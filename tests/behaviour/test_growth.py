"""Branches that jobs add to the parallel they are in."""

from __future__ import annotations

import pytest
from integration.app import countdown, fail_unless, picky, seen, spread, spread_list, value
from integration.lab import Runs, new_tag

from celery_clutch import Clutch, State, parallel, series


def test_a_job_adds_branches(lab: Runs) -> None:
    adds = spread.s(1, value.s("a"), series_of(value.s("b"), seen.s()))
    run = series(value.s(0), parallel(adds, value.s(2)), seen.s()).engage()
    assert run.get(timeout=30) == [[1, 2, "a", ["b"]]]
    status = run.status()
    assert (status.done, status.total) == (7, 7)
    assert run.results("1") == [1, 2, "a", ["b"]]


def test_a_job_adds_a_list_of_branches_as_parallel_takes_one(lab: Runs) -> None:
    branches = [value.s("a"), value.s("b")]
    run = parallel(spread_list.s(1, branches)).engage()
    assert run.get(timeout=30) == [1, "a", "b"]
    assert parallel([value.s(1), *branches]).engage().get(timeout=30) == [1, "a", "b"]


def series_of(*steps: object) -> object:
    from celery import chain

    return chain(*[step.set(immutable=True) for step in steps])  # type: ignore[attr-defined]


def test_a_retry_adds_nothing_twice(lab: Runs) -> None:
    run = series(parallel(spread.s(1, value.s("a"), fails=2), value.s(2)), seen.s()).engage()
    assert run.get(timeout=30) == [[1, 2, "a"]]


def test_branches_that_are_added_add_branches(lab: Runs) -> None:
    run = series(parallel(countdown.s(4), value.s("x")), seen.s()).engage()
    assert run.get(timeout=30) == [[4, "x", 3, 2, 1, 0]]


def test_a_parallel_that_is_last_or_of_one_branch_grows(lab: Runs) -> None:
    assert parallel(countdown.s(3)).engage().get(timeout=30) == [3, 2, 1, 0]
    assert series(parallel(countdown.s(1)), seen.s()).engage().get(timeout=30) == [[1, 0]]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_added_branches_take_their_turn(lab: Runs, limit: int) -> None:
    steps = [spread.s(1, value.s("a"), value.s("b")), value.s(2), countdown.s(2)]
    run = series(parallel(steps, max_concurrency=limit), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert found[:3] == [1, 2, 2]
    assert sorted(map(str, found[3:])) == ["0", "1", "a", "b"]
    lab.settle()
    assert set(lab.ran(run).values()) == {1}


def test_a_job_in_the_middle_of_a_branch_adds_branches(lab: Runs) -> None:
    branch = series(spread.s(1, value.s("a")), parallel(value.s(2), value.s(3)), seen.s())
    run = series(parallel(branch, value.s(4)), seen.s()).engage()
    assert run.get(timeout=30) == [[[2, 3], 4, "a"]] or run.get(timeout=1) == [[[[2, 3]], 4, "a"]]


def test_a_parallel_in_a_parallel_grows(lab: Runs) -> None:
    inner = parallel(spread.s(1, value.s("a")), value.s(2))
    run = series(parallel(inner, value.s(3)), seen.s()).engage()
    assert run.get(timeout=30) == [[[1, 2, "a"], 3]]


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 9])
def test_a_map_grows(lab: Runs, limit: int | None) -> None:
    run = Clutch(value.s([2, 0])).map(countdown, max_concurrency=limit).add(seen).engage()
    assert run.get(timeout=30) == [[2, 0, 1, 0]]


def test_a_tolerant_parallel_grows(lab: Runs) -> None:
    steps = parallel(spread.s(1, picky.s("x", "x")), value.s(2), allow_failures=1)
    run = series(steps, seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert (found[:2], found[2]["message"]) == ([1, 2], "x is refused")


def test_what_was_added_is_resumed(lab: Runs) -> None:
    flag = new_tag()
    steps = parallel(spread.s(1, fail_unless.s(flag, "a")), value.s(2))
    run = series(steps, seen.s()).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(flag)
    assert run.resume()
    assert run.get(timeout=30) == [[1, 2, "a"]]
    assert lab.ran(run)["0.0"] == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9])
def test_branches_are_added_to_a_run_that_was_resumed(lab: Runs, limit: int) -> None:
    flag = new_tag()
    late = [fail_unless.s(flag, name) for name in "ab"]
    branch = series(spread.s(1, *late), fail_unless.s(flag), countdown.s(2))
    steps = parallel(branch, fail_unless.s(flag, "c"), max_concurrency=limit)
    run = series(steps, seen.s()).engage()
    assert lab.finish(run) is State.FAILED
    lab.settle()
    lab.raise_flag(flag)
    assert run.resume()
    assert run.get(timeout=30) == [[2, "c", "a", "b", 1, 0]]


def test_a_job_in_no_parallel_cannot_add(lab: Runs) -> None:
    run = series(spread.s(1, value.s(2))).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert failure.exception == "celery_clutch.errors.BuildError"
    assert "is in no parallel" in failure.message


def test_a_hundred_and_fifty_branches_are_added(lab: Runs) -> None:
    steps = parallel(spread.s(0, *(value.s(n) for n in range(150))))
    run = series(steps, seen.s()).engage()
    assert run.get(timeout=60) == [[0, *range(150)]]
