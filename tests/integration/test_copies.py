"""Every message comes twice, or while its job runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from behaviour import deciding
from behaviour.deciding import Given
from hypothesis import HealthCheck, Phase, given, settings

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.model import plan
from celery_clutch.model.plan import Series

from . import app as tasks
from .app import (
    append,
    countdown,
    crowd,
    double,
    fail,
    hold,
    nests,
    retry,
    seen,
    total,
    value,
)
from .conftest import MakeLab
from .lab import Gate, Lab, handlers, one_redis, until


@pytest.fixture(scope="module", params=["two-redis", "one-redis"])
def doubled(make_lab: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A worker that sends every message of a run twice; the store is another Redis than the broker,
    or the same."""
    conf = one_redis() if request.param == "one-redis" else {}
    options = {"clutch_it_double": True, "clutch_lease": 2.0, **conf}
    with make_lab(f"doubled-{request.param}", concurrency=4, **options) as lab:
        lab.app.set_current()
        yield lab


SHAPES = {
    "series": lambda: series(*[total.s(1) for _ in range(6)]),
    "fan-in": lambda: series(value.s(1), parallel(value.s(i) for i in range(20)), total.s()),
    "wide": lambda: series(parallel(value.s(1) for _ in range(250)), total.s()),
    "nested run": lambda: series(parallel(nests.s(value.s(1), total.s(1)), value.s(2)), seen.s()),
    "map": lambda: Clutch(value.s([1, 2, 3])).map(series(double.s(), total.s())).add(total),
    "wide map": lambda: Clutch(value.s([1] * 250)).map(double).add(total),
    "narrow map": lambda: Clutch(value.s([1] * 9)).map(double, max_concurrency=2).add(total),
    "choice": lambda: Clutch().choose(value.s("a"), {"a": parallel(value.s(1), value.s(2))}),
    "growth": lambda: series(parallel(countdown.s(5), value.s(2)), total.s()),
    "tolerance": lambda: series(
        parallel(fail.s(), series(value.s(1), total.s()), allow_failures=1), seen.s()
    ),
    "retry": lambda: series(parallel(retry.s(1, 1), value.s(2)), total.s()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_doubled(doubled: Lab, tag: str, shape: str) -> None:
    run = Clutch(SHAPES[shape](), **handlers(tag)).engage()
    assert doubled.finish(run) is State.SUCCEEDED
    ran = doubled.ran(run)
    attempts = 3 if shape == "retry" else 2  # nothing but the attempts of a retry
    assert len(ran) == run.status().total
    assert max(ran.values()) < attempts
    for nested in set(doubled.nested(run)):
        assert set(doubled.ran(nested).values()) == {1}
    assert doubled.kinds(tag)["on_success"] == 1


def test_max_concurrency_holds(doubled: Lab, tag: str) -> None:
    jobs = (crowd.s(tag, number) for number in range(6))
    run = series(parallel(jobs, max_concurrency=1), seen.s()).engage()
    assert doubled.finish(run) is State.SUCCEEDED
    assert tasks.notebook().get(f"it:most:{tag}") == "1"
    assert set(doubled.ran(run).values()) == {1}


def test_a_copy_of_a_running_job_waits(lab: Lab, gate: Gate, tag: str) -> None:
    run = Clutch(hold.s(tag, 1).set(queue=gate.queue), total.s(1), **handlers(tag)).engage()
    copies = gate.copies()
    gate.open_only()
    until(lambda: lab.ran(run)["0"], "for the job to run")
    before = lab.ever()
    for _ in range(5):
        gate.send(copies)
    until(lambda: lab.ever() >= before + 5, "for the copies")
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1, "1": 1}
    assert lab.kinds(tag) == {"on_success": 1}


def test_a_step_that_comes_twice_changes_the_data_once(lab: Lab, gate: Gate) -> None:
    first = append.s("once")
    run = Clutch(first, append.s("then"), queue=gate.queue, data={"list": {"items": []}}).engage()
    copies = gate.copies()
    gate.send(copies)
    gate.open()
    assert run.state is State.SUCCEEDED
    assert run.data() == {"list": {"items": ["once", "then"]}}


def test_plans_of_all_kinds_when_every_message_comes_twice(doubled: Lab, tag: str) -> None:
    expected: list[tuple[ClutchResult, list[object], set[str]]] = []

    @settings(
        max_examples=12,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(deciding.plans())
    def engage(root: Series) -> None:
        known = Given()
        wanted = deciding.evaluate(root, known)
        clutch = Clutch.from_json(
            {"clutch": plan.to_dict(root)}, id=f"{tag}-{len(expected)}", app=doubled.app
        )
        expected.append((clutch.engage(), wanted, set(known.values)))

    engage()
    doubled.settle()
    for run, wanted, jobs in expected:
        assert run.state is State.SUCCEEDED
        assert deciding.plain(run.get(timeout=1)) == wanted
        assert doubled.ran(run) == dict.fromkeys(jobs, 1)
