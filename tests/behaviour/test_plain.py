"""Steps whose tasks are not ClutchTasks, or are known by their names only."""

from __future__ import annotations

import pytest
from integration.app import (
    add,
    gather,
    nests,
    plain,
    plain_replace,
    plain_retry,
    plain_seen,
    seen,
    value,
)
from integration.lab import Runs, handlers

from celery_clutch import Clutch, State, parallel, series


def test_plain_tasks_everywhere(lab: Runs, tag: str) -> None:
    clutch = Clutch(plain.s(1), add.s(2, 3), **handlers(tag))
    with clutch.parallel():
        clutch << plain.s("a") << plain_seen.s()
        with clutch.series():
            clutch << plain.s("b") << plain_seen.s()
        with clutch.series(), clutch.parallel():
            clutch << plain.s("c") << value.s("d")
    clutch << plain_seen.s() << seen.s("end")
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == 1
    assert run.results("2") == ["a", [5], ["b"], ["c", "d"]]
    assert run.get(timeout=1) == [["end", [["a", [5], ["b"], ["c", "d"]]]]]
    assert lab.kinds(tag) == {"on_success": 1}


@pytest.mark.parametrize("nothing", [None, False, 0, "", []])
def test_plain_values_that_mean_nothing(lab: Runs, nothing: object) -> None:
    run = series(plain.s(nothing), seen.s(), parallel(plain.s(nothing)), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("1") == [nothing]
    assert run.results("3") == [nothing]


def test_plain_at_the_end(lab: Runs) -> None:
    run = series(value.s(1), parallel(plain.s("a"), plain.s("b"))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == ["a", "b"]


def test_wide_plain(lab: Runs) -> None:
    run = series(parallel(plain.s(i) for i in range(150)), plain_seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [list(range(150))]


def test_previous_results_are_prepended_as_in_celery(lab: Runs) -> None:
    clutch = Clutch.from_canvas(plain.s(1) | add.s(1) | add.s(1))
    assert clutch.engage().get(timeout=30) == [3]
    behind = Clutch.from_canvas(parallel_of_two() | gather.s("end"))
    assert behind.engage().get(timeout=30) == [[[1, 2], "end"]]


def parallel_of_two() -> object:
    from celery import group

    return group(plain.s(1), plain.s(2))


def test_plain_with_options(lab: Runs) -> None:
    run = Clutch(
        plain.s(1).set(countdown=0.2, headers={"shop": "x"}, priority=2), seen.s(), queue=lab.side
    ).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[1]]


def test_plain_inside_a_nested_clutch(lab: Runs) -> None:
    run = series(nests.s(plain.s("x"), plain_retry.s(1, "y"), seen.s()), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["y"]]


def test_plain_that_is_replaced(lab: Runs) -> None:
    """Celery raises Ignore there as well, and it is no end of the job."""
    run = series(plain_replace.s(plain.si("other")), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == "other"
    assert run.failures() == []
