"""Clutches engaged by running jobs: the job waits for them, and so does what follows it."""

from __future__ import annotations

import pytest
from integration.app import (
    exhaust,
    fail,
    fail_unless,
    hold,
    nest_then_fail,
    nest_then_retry,
    nests,
    nests_deep,
    nests_many,
    nests_parallel,
    plain,
    plain_nests,
    retry,
    retry_then_nest,
    seen,
    value,
)
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.errors import ClutchCancelled


def ended_before(inner: ClutchResult, outer: ClutchResult) -> bool:
    first, second = inner.status().ended_at, outer.status().ended_at
    return first is not None and second is not None and first <= second


def test_in_a_series(lab: Runs) -> None:
    run = series(value.s(1), nests.s(value.s("a"), seen.s("b")), seen.s("end")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", ["outer"]]]
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["b", ["a"]]]
    assert inner.status().parent == {"run": run.id, "address": "1"}
    assert ended_before(inner, run)


@pytest.mark.not_eager
def test_what_follows_waits(lab: Runs, tag: str) -> None:
    run = series(nests.s(hold.s(tag)), value.s("end")).engage()
    (inner,) = until(lambda: lab.nested(run), "for the nested run")
    until(lambda: lab.ran(inner)["0"], "for the nested job")
    assert lab.ran(run) == {"0": 1}
    assert run.state is inner.state is State.RUNNING
    assert run.progress().done == 0
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1, "1": 1}


@pytest.mark.parametrize("returns", [None, 0, "", [1], {"a": "\u20ac"}])
def test_the_job_keeps_its_value(lab: Runs, returns: object) -> None:
    run = series(nests.s(value.s(1), returns=returns), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[returns]]


def test_at_the_end_and_alone(lab: Runs) -> None:
    run = series(nests.s(value.s(1))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == ["outer"]
    assert ended_before(lab.nested(run)[0], run)


@pytest.mark.parametrize("follows", [True, False], ids=["barrier", "at the end"])
def test_in_a_parallel(lab: Runs, follows: bool) -> None:
    clutch = Clutch(parallel(nests.s(value.s(i), returns=i) for i in range(5)))
    if follows:
        clutch << seen.s()
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == [0, 1, 2, 3, 4]
    assert run.get(timeout=1) == ([[0, 1, 2, 3, 4]] if follows else [0, 1, 2, 3, 4])
    assert {inner.state for inner in lab.nested(run)} == {State.SUCCEEDED}
    assert len(lab.nested(run)) == 5


def test_in_a_branch(lab: Runs) -> None:
    branch = series(value.s(1), nests.s(value.s("x")), seen.s("after"))
    ending = series(value.s(2), nests_parallel.s(value.s("y"), value.s("z")))
    run = series(parallel(branch, ending), seen.s("end")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", [["after", ["outer"]], "outer"]]]


def test_parallel_inside(lab: Runs) -> None:
    run = series(nests_parallel.s(value.s(1), plain.s(2), value.s(3)), value.s("end")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["inner end", [1, 2, 3]]]


@pytest.mark.parametrize("where", ["series", "parallel", "parallel at the end"])
def test_several_in_one_job(lab: Runs, tag: str, where: str) -> None:
    job = nests_many.s(value.s(1), series_of_two(lab), value.s(3))
    clutch = {
        "series": series(job, seen.s("end")),
        "parallel": series(parallel(job, value.s("b")), seen.s("end")),
        "parallel at the end": parallel(job, value.s("b")),
    }[where]
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    inner = lab.nested(run)
    assert [each.get(timeout=1) for each in inner] == [[1], [[["x"]]], [3, 3]]
    assert all(ended_before(each, run) for each in inner)


def series_of_two(lab: Runs) -> object:
    return nests.s(value.s("deep"), returns=[["x"]])


@pytest.mark.parametrize("where", ["series", "parallel"])
def test_three_levels(lab: Runs, where: str) -> None:
    job = nests_deep.s(3, value.s("leaf"))
    beside = value.s("beside")
    clutch = series(job if where == "series" else parallel(job, beside), seen.s("end"))
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    expected = "level 3" if where == "series" else ["level 3", "beside"]
    assert run.results("0") == expected
    one = lab.nested(run)[0]
    two = lab.nested(one)[0]
    three = lab.nested(two)[0]
    assert [each.results("0") for each in (one, two, three)] == ["level 2", "level 1", "leaf"]
    assert ended_before(three, two) and ended_before(two, one) and ended_before(one, run)


def test_wide_inside(lab: Runs) -> None:
    run = series(nests_parallel.s(*[value.s(i) for i in range(130)]), value.s("end")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.results("0") == list(range(130))


def test_empty_inside(lab: Runs) -> None:
    run = series(nests.s(), parallel(nests.s(), value.s(1)), value.s("end")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == ["end"]


def test_nested_outside_a_run(lab: Runs) -> None:
    """A task that runs on its own engages a clutch of its own."""
    assert nests.delay(value.s(1)).get(timeout=30) == "outer"
    lab.settle()


# --- retries --------------------------------------------------------------------------------


@pytest.mark.parametrize("follows", [True, False], ids=["barrier", "at the end"])
def test_retry_before_the_nested_engage(lab: Runs, tag: str, follows: bool) -> None:
    clutch = Clutch(**handlers(tag))
    with clutch.parallel():
        clutch << retry_then_nest.s(value.s("x")) << value.s(1)
    if follows:
        clutch << value.s(2)
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == ["outer", 1]
    assert lab.ran(run)["0.0"] == 2
    (inner,) = lab.nested(run)
    assert lab.ran(inner) == {"0": 1}
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}


@pytest.mark.parametrize("where", ["series", "parallel"])
def test_retry_after_the_nested_engage(lab: Runs, tag: str, where: str) -> None:
    job = nest_then_retry.s(value.s("x"))
    first = job if where == "series" else parallel(job, value.s(1))
    run = Clutch(first, value.s(2), **handlers(tag)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    first_time, again = lab.nested(run)
    assert first_time == again, "a body that runs again engages the same nested run"
    assert lab.ran(again) == {"0": 1}
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_retries_inside(lab: Runs, tag: str) -> None:
    run = Clutch(value.s(0), nests.s(retry.s(2, "x"), seen.s()), seen.s(), **handlers(tag)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["x"]]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}
    assert lab.ran(run) == {"0": 1, "1": 1, "2": 1}


# --- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["series", "parallel"])
def test_raising_after_the_nested_engage_starts_nothing(lab: Runs, tag: str, where: str) -> None:
    job = nest_then_fail.s(value.s("x"))
    first = job if where == "series" else parallel(job, value.s(1))
    run = Clutch(first, value.s(2), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (inner,) = lab.nested(run)
    assert lab.ran(inner) == {}
    assert lab.sent(inner) == {}
    assert [each.exception for each in run.failures()] == ["ValueError"]
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


@pytest.mark.parametrize("where", ["series", "parallel", "parallel at the end"])
def test_a_nested_death_fails_the_outer_job(lab: Runs, tag: str, where: str) -> None:
    job = nests.s(value.s(1), exhaust.s(), value.s("never"))
    clutch = {
        "series": series(value.s(0), job, value.s("never")),
        "parallel": series(value.s(0), parallel(job, value.s(1)), value.s("never")),
        "parallel at the end": series(value.s(0), parallel(job, value.s(1))),
    }[where]
    run = Clutch(clutch, **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (inner,) = lab.nested(run)
    assert inner.state is State.FAILED
    assert lab.ran(inner) == {"0": 1, "1": 2}
    (failure,) = run.failures()
    assert failure.address == ("1" if where == "series" else "1.0")
    assert failure.exception == "celery_clutch.errors.NestedClutchFailed"
    assert inner.id in failure.message
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert not lab.ran(run)["2"]


def test_a_death_three_levels_down_fails_all_above(lab: Runs, tag: str) -> None:
    run = Clutch(nests_deep.s(3, fail.s("deep down")), value.s(1), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    (one,) = lab.nested(run)
    (two,) = lab.nested(one)
    (three,) = lab.nested(two)
    assert {each.state for each in (one, two, three)} == {State.FAILED}
    assert "deep down" in run.failures()[0].message
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_one_of_several_nested_dies(lab: Runs, tag: str) -> None:
    run = Clutch(nests_many.s(value.s(1), fail.s()), value.s("never"), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    first, second = lab.nested(run)
    assert (first.state, second.state) == (State.SUCCEEDED, State.FAILED)
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert lab.ran(run) == {"0": 1}


def test_a_plain_task_cannot_nest(lab: Runs) -> None:
    run = series(plain_nests.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == ["InvalidParent"]


# --- cancel and resume ----------------------------------------------------------------------


def test_resume_after_a_nested_death(lab: Runs, tag: str) -> None:
    job = nests.s(value.s(1), fail_unless.s(tag, "healed"), seen.s("inner end"))
    run = Clutch(value.s(0), job, seen.s("end"), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.get(timeout=1) == [["inner end", ["healed"]]]
    assert run.get(timeout=1) == [["end", ["outer"]]]
    # The function of the outer job has returned before, and is not called again.
    assert lab.ran(run) == {"0": 1, "1": 1, "2": 1}
    assert lab.ran(inner) == {"0": 1, "1": 2, "2": 1}


def test_resume_of_the_nested_run_is_that_of_the_outer(lab: Runs, tag: str) -> None:
    job = nests.s(fail_unless.s(tag, "healed"))
    run = series(parallel(job, value.s("b")), seen.s("end")).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    (inner,) = lab.nested(run)
    assert inner.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", ["outer", "b"]]]


def test_a_nested_run_that_fails_again_fails_the_outer_again(lab: Runs, tag: str) -> None:
    run = Clutch(nests.s(fail_unless.s(tag)), value.s("after")).engage()
    for generation in range(2):
        assert lab.finish(run) is State.FAILED
        assert run.status().generation == generation
        assert run.resume()
    assert lab.finish(run) is State.FAILED
    assert not lab.ran(run)["1"]
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED


@pytest.mark.not_eager
def test_cancel_goes_down_and_resume_goes_on(lab: Runs, tag: str) -> None:
    job = nests.s(value.s(1), hold.s(tag, "held"), value.s(2))
    run = series(parallel(job, value.s("b")), seen.s("end")).engage()
    (inner,) = until(lambda: lab.nested(run), "for the nested run")
    until(lambda: lab.ran(inner)["1"], "for the nested job to be held")
    assert run.cancel()
    assert (run.state, inner.state) == (State.CANCELLED, State.CANCELLED)
    lab.raise_flag(tag)
    lab.settle()
    assert lab.ran(inner) == {"0": 1, "1": 1}
    assert not lab.ran(run)["1"]
    with pytest.raises(ClutchCancelled):
        run.get(timeout=1)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", ["outer", "b"]]]
    assert lab.ran(inner) == {"0": 1, "1": 1, "2": 1}
    assert lab.ran(run) == {"0.0": 1, "0.1": 1, "1": 1}


def test_forget_takes_what_has_ended_along(lab: Runs) -> None:
    run = series(nests_deep.s(2, value.s(0)), nests_many.s(value.s(1), value.s(2))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    inner = lab.nested(run)
    assert len(inner) == 3
    deepest = lab.nested(inner[0])
    assert [each.state for each in (*inner, *deepest)] == [State.SUCCEEDED] * 4
    assert run.forget()
    for gone in (run, *inner, *deepest):
        with pytest.raises(LookupError):
            gone.state


@pytest.mark.not_eager
def test_forget_goes_down(lab: Runs, tag: str) -> None:
    run = series(nests.s(hold.s(tag), value.s(2)), value.s("end")).engage()
    (inner,) = until(lambda: lab.nested(run), "for the nested run")
    until(lambda: lab.ran(inner)["0"], "for the nested job to be held")
    assert run.forget()
    lab.raise_flag(tag)
    lab.settle()
    assert lab.ran(run) == {"0": 1}
    assert lab.ran(inner) == {"0": 1}
    for gone in (run, inner):
        with pytest.raises(LookupError):
            gone.state
