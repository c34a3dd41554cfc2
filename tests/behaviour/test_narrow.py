"""Narrow parallels and deadlines."""

from __future__ import annotations

import time

import pytest
from integration.app import crowd, fail, fail_unless, most, nests, plain, retry, seen, total, value
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, State, parallel, series
from celery_clutch.errors import ClutchExpired, ClutchFailed


def test_branches_of_every_kind(lab: Runs) -> None:
    branches = [
        retry.s(1, "retried"),
        series(value.s(1), total.s(1)),
        plain.s("plain"),
        parallel(value.s(1), value.s(2)),
        nests.s(value.s("inner")),
        series(value.s(3), parallel(total.s(1), total.s(2))),
    ]
    run = Clutch(parallel(*branches, max_concurrency=2), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    expected = ["retried", 2, "plain", [1, 2], "outer", [4, 5]]
    assert run.get(timeout=1) == [expected]
    assert run.results("0") == expected


def test_a_dead_branch_does_not_stop_the_others(lab: Runs, tag: str) -> None:
    branches = [value.s(i) for i in range(8)]
    branches[1] = fail_unless.s(tag, 1)
    branches[2] = parallel(fail_unless.s(tag, "a"), fail_unless.s(tag, "b"))
    run = Clutch(parallel(branches, max_concurrency=2), seen.s(), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    assert {f.address for f in run.failures()} == {"0.1", "0.2.0", "0.2.1"}
    assert set(lab.ran(run).values()) == {1}
    assert run.status().done == 6, "like the other branches of a parallel, those after it run"
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[0, 1, ["a", "b"], *range(3, 8)]]
    ran = lab.ran(run)
    assert {at for at, times in ran.items() if times > 1} == {"0.1", "0.2.0", "0.2.1"}


@pytest.mark.not_eager
def test_cancel_and_resume(lab: Runs, tag: str) -> None:
    branches = [crowd.s(tag, i, tag) for i in range(12)]
    run = Clutch(parallel(branches, max_concurrency=2), seen.s()).engage()
    until(lambda: len(lab.ran(run)) == 2)
    assert run.cancel()
    lab.raise_flag(tag)
    lab.settle()
    assert len(lab.ran(run)) == 2
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [list(range(12))]
    assert set(lab.ran(run).values()) == {1}
    assert most(tag) == 2


@pytest.mark.not_eager
def test_what_has_started_goes_on(lab: Runs, tag: str) -> None:
    run = Clutch(retry.s(3, "late", tag), expires=1).engage()
    until(lambda: lab.ran(run)["0"] == 4)
    over = time.monotonic() + 1.1
    until(lambda: time.monotonic() > over)
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED


def test_other_failures_are_no_expiry(lab: Runs) -> None:
    run = Clutch(fail.s(), expires=60).engage()
    assert lab.finish(run) is State.FAILED
    with pytest.raises(ClutchFailed) as caught:
        run.get(timeout=1)
    assert not isinstance(caught.value, ClutchExpired)
