"""Every pool, two workers at once, and another broker: the main shapes are right on all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from celery import chain

from celery_clutch import Clutch, State, parallel, series

from .app import (
    add,
    exhaust,
    fail_unless,
    nests,
    nests_deep,
    nests_many,
    plain,
    replace,
    retry,
    seen,
    total,
    value,
    where,
)
from .conftest import MakeLab
from .lab import Gate, Lab, handlers, until

SETUPS = {
    "prefork": {"pool": "prefork", "concurrency": 2},
    "threads": {"pool": "threads", "concurrency": 4},
    "solo": {"pool": "solo", "concurrency": 1},
    "gevent": {"pool": "gevent", "concurrency": 10},
    "two workers": {"workers": 2},
    "rabbitmq": {},
}


@pytest.fixture(scope="module", params=SETUPS)
def setup(make_lab: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    options = dict(SETUPS[request.param])
    if request.param == "gevent":
        pytest.importorskip("gevent")
    if request.param == "rabbitmq":
        options["broker_url"] = request.getfixturevalue("rabbitmq")
    with make_lab(request.param.replace(" ", "-"), **options) as lab:
        lab.app.set_current()
        yield lab


def test_series_and_parallels(setup: Lab, tag: str) -> None:
    clutch = Clutch(value.s(1), **handlers(tag))
    with clutch.parallel():
        clutch << total.s(1) << total.s(2)
        with clutch.series():
            clutch << total.s(3) << parallel(total.s(4), plain.s(5)) << total.s(0)
        with clutch.series(), clutch.parallel():
            clutch << value.s("a") << value.s("b")
    clutch << seen.s("end") << parallel(value.s("c"), value.s("d"))
    run = clutch.engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.results("2") == ["end", [2, 3, 13, ["a", "b"]]]
    assert run.get(timeout=1) == ["c", "d"]
    assert setup.kinds(tag) == {"on_success": 1}
    assert set(setup.ran(run).values()) == {1}


def test_wide_and_long(setup: Lab) -> None:
    run = series(
        parallel(value.s(i) for i in range(250)), total.s(), *[total.s(1) for _ in range(25)]
    ).engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [249 * 125 + 25]
    assert set(setup.ran(run).values()) == {1}


def test_retries(setup: Lab, tag: str) -> None:
    run = Clutch(
        retry.s(1, 1), parallel(retry.s(2, 2), value.s(3)), total.s(), **handlers(tag)
    ).engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [5]
    assert setup.kinds(tag) == {"on_failure": 2, "on_success": 1}


def test_death_and_resume(setup: Lab, tag: str) -> None:
    run = Clutch(
        value.s(1), parallel(fail_unless.s(tag, 2), value.s(3)), total.s(), **handlers(tag)
    ).engage()
    assert setup.finish(run) is State.FAILED
    assert setup.kinds(tag) == {"on_failure": 1, "on_death": 1}
    setup.raise_flag(tag)
    assert run.resume()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [5]
    assert setup.ran(run) == {"0": 1, "1.0": 2, "1.1": 1, "2": 1}


def test_unknown_and_expired(setup: Lab, tag: str) -> None:
    unknown = setup.app.signature("it.no_such_task")
    expired = value.s().set(expires=-1)
    runs = [
        Clutch(parallel(victim, value.s(1)), value.s(2), **handlers(f"{tag} {index}")).engage()
        for index, victim in enumerate((unknown, expired))
    ]
    setup.settle()
    for index, run in enumerate(runs):
        assert run.state is State.FAILED
        assert setup.kinds(f"{tag} {index}") == {"on_failure": 1, "on_death": 1}
        assert run.status().done == 1


def test_expired_in_the_queue(setup: Lab, tag: str) -> None:
    """RabbitMQ throws expired messages away if it knows that they expire: then nobody would tell."""
    gate = Gate(setup)
    expired = value.s().set(expires=0.5)
    clutch = Clutch(parallel(expired, value.s(1)), value.s(2), queue=gate.queue, **handlers(tag))
    run = clutch.engage()
    deadline = time.monotonic() + 0.6
    until(lambda: time.monotonic() > deadline)
    gate.open()
    gate.close()
    assert run.state is State.FAILED
    assert setup.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_replace(setup: Lab) -> None:
    run = series(
        replace.s(add.s(1, 2)),
        parallel(replace.s(chain(add.s(3, 4), add.s(5))), plain.s(1)),
        total.s(),
    ).engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [13]


def test_nested_at_run_time(setup: Lab, tag: str) -> None:
    run = Clutch(
        value.s(1),
        parallel(nests_deep.s(3, retry.s(1, "leaf")), nests_many.s(value.s(1), value.s(2))),
        seen.s("end"),
        **handlers(tag),
    ).engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", ["level 3", "outer"]]]
    assert setup.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_nested_death(setup: Lab, tag: str) -> None:
    run = Clutch(parallel(nests.s(exhaust.s()), value.s(1)), value.s(2), **handlers(tag)).engage()
    assert setup.finish(run) is State.FAILED
    assert setup.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_queues(setup: Lab) -> None:
    run = Clutch(where.s(), parallel(where.s(), where.s()), where.s(), queue=setup.side).engage()
    assert setup.finish(run) is State.SUCCEEDED
    assert run.results("0") == run.results("2") == setup.side
    assert run.results("1") == [setup.side] * 2


def test_cancel(setup: Lab) -> None:
    run = series(value.s(1).set(countdown=1), value.s(2)).engage()
    assert run.cancel()
    setup.settle()
    assert run.state is State.CANCELLED
    assert not setup.ran(run)


def test_many_runs_at_once(setup: Lab) -> None:
    runs = [
        series(value.s(i), parallel(total.s(1), total.s(2)), total.s()).engage() for i in range(20)
    ]
    assert [run.get(timeout=60) for run in runs] == [[2 * i + 3] for i in range(20)]
    assert {run.state for run in runs} == {State.SUCCEEDED}
