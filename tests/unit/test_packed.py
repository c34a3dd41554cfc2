"""Long lists of steps take little memory, and are what they were."""

from __future__ import annotations

import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, parallel, series
from celery_clutch.compile import cut
from celery_clutch.errors import NonJSONArgument
from celery_clutch.model import packed, plan
from celery_clutch.model.plan import Branches, Job, Parallel

from .conftest import make_app
from .strategies import plans


def collected(nodes: list[plan.Node], together: int = 3) -> Branches:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "TOGETHER", together)
        branches = Branches()
        for node in nodes:
            branches.append(node)
        return branches


@given(st.lists(plans(max_leaves=4), max_size=20))
def test_packed_branches_are_what_they_were(nodes: list[plan.Node]) -> None:
    wanted = plan.parallel(nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "TOGETHER", 3)
        branches = collected(nodes)
        found = Parallel(branches)
        assert list(branches) == list(wanted.branches)
        assert branches == wanted.branches
        assert [branches[index] for index in range(len(branches))] == list(wanted.branches)
        assert branches[1:5] == list(wanted.branches[1:5])
        assert (found.size, found.depth) == (wanted.size, wanted.depth)
        assert plan.loads(plan.dumps(found)) == wanted
        assert plan.to_dict(found) == plan.to_dict(wanted)
        one, other = (cut.paginate(plan.series([node])) for node in (found, wanted))
        assert (one.pages, one.last) == (other.pages, other.last)


def test_there_is_nothing_behind_the_end() -> None:
    branches = collected([Job("t")] * 4)
    with pytest.raises(IndexError):
        branches[4]
    assert branches[-1] == Job("t")
    assert branches != [Job("t")] * 3
    assert branches != 4


def test_the_same_encoder_does_not_mistake_a_new_job_for_one_that_is_gone() -> None:
    encode = plan.JobEncoder()
    for number in range(1000):
        assert orjson.loads(orjson.dumps(encode(Job("t", (number,)))))[1] == [number]


def test_what_json_cannot_carry_is_named_at_engage() -> None:
    app = make_app(task_always_eager=True)

    @app.task(name="t")
    def t(value: Any) -> None: ...

    wide = parallel(t.s(object() if number == 1500 else number) for number in range(3000))
    with pytest.raises(NonJSONArgument, match=r"job 0\.1500 \(t\), args: \$\[0\]"):
        Clutch(wide, app=app).engage()


def test_a_wide_parallel_takes_little_memory_while_it_is_composed() -> None:
    app = make_app(task_always_eager=True)

    @app.task(name="t")
    def t(value: int) -> None: ...

    tracemalloc.start()
    try:
        clutch = series(parallel(t.s(number) for number in range(50_000)), t.s(0))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(clutch) == 50_001
    assert most < 5_000_000, "100 bytes a job"
