"""Steps whose tasks are not ClutchTasks, or are known by their names only."""

from __future__ import annotations

import pytest

from celery_clutch import Clutch, State, parallel, series

from .app import add, gather, nests, plain, plain_retry, plain_seen, seen, value
from .lab import Lab, handlers


def test_plain_tasks_everywhere(lab: Lab, tag: str) -> None:
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
def test_plain_values_that_mean_nothing(lab: Lab, nothing: object) -> None:
    run = series(plain.s(nothing), seen.s(), parallel(plain.s(nothing)), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("1") == [nothing]
    assert run.results("3") == [nothing]


def test_plain_at_the_end(lab: Lab) -> None:
    run = series(value.s(1), parallel(plain.s("a"), plain.s("b"))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == ["a", "b"]


def test_wide_plain(lab: Lab) -> None:
    run = series(parallel(plain.s(i) for i in range(150)), plain_seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [list(range(150))]


def test_previous_results_are_prepended_as_in_celery(lab: Lab) -> None:
    clutch = Clutch.from_canvas(plain.s(1) | add.s(1) | add.s(1))
    assert clutch.engage().get(timeout=30) == [3]
    behind = Clutch.from_canvas(parallel_of_two() | gather.s("end"))
    assert behind.engage().get(timeout=30) == [[[1, 2], "end"]]


def parallel_of_two() -> object:
    from celery import group

    return group(plain.s(1), plain.s(2))


@pytest.mark.parametrize("name", ["it.worker_only_plain", "it.worker_only"])
def test_known_by_name_only(lab: Lab, tag: str, name: str) -> None:
    assert name not in lab.app.tasks

    def job(x: object) -> object:
        return lab.app.signature(name, args=(x,))

    clutch = Clutch(
        value.s(0),
        job(1),
        parallel(job(2), series(job(3), seen.s()), series(seen.s(), job(4))),
        job(5),
        **handlers(tag),
    )
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    if name == "it.worker_only_plain":
        assert run.results("1") == 1
        assert run.results("2") == [2, [3], 4]
        assert run.results("3") == 5
    else:  # a ClutchTask after all: it sees the previous results
        assert run.results("1") == [1, [0]]
        assert run.results("2") == [[2, [[1, [0]]]], [[3, [[1, [0]]]]], [4, [[[1, [0]]]]]]
        assert run.results("3")[0] == 5
    assert set(lab.ran(run).values()) == {1}
    assert lab.kinds(tag) == {"on_success": 1}


def test_known_by_name_only_and_failing(lab: Lab, tag: str) -> None:
    job = lab.app.signature("it.worker_only_fail")
    run = Clutch(value.s(1), parallel(job, value.s(2)), value.s(3), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.message) == ("1.0", "only here")
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_plain_with_options(lab: Lab) -> None:
    run = Clutch(
        plain.s(1).set(countdown=0.2, headers={"shop": "x"}, priority=2), seen.s(), queue=lab.side
    ).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[1]]


def test_plain_inside_a_nested_clutch(lab: Lab) -> None:
    run = series(nests.s(plain.s("x"), plain_retry.s(1, "y"), seen.s()), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["y"]]
