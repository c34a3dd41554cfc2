"""Steps that the process which engages knows by their names only."""

from __future__ import annotations

import pytest

from celery_clutch import Clutch, State, parallel, series

from .app import seen, value
from .lab import Lab, handlers


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
