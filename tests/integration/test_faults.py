"""A worker killed at every point between a store call and the messages that follow from it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from behaviour import deciding
from behaviour.deciding import Given
from hypothesis import HealthCheck, Phase, given, settings

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.build.clutch import _NESTED
from celery_clutch.errors import RunNotFound
from celery_clutch.model import plan
from celery_clutch.model.plan import Series
from celery_clutch.sweep import sweep

from . import app as tasks
from .app import double, fail, nests, picky, retry, seen, sees, spread, stop, total, value
from .conftest import MakeLab
from .lab import Lab, handlers, one_redis, until

PATIENCE = 240.0
EVERY = ("on_failure", "on_death", "on_success", "on_end")


@pytest.fixture(scope="module", params=["early", "late", "one-redis"])
def faulty(make_lab: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A worker whose children are killed; messages are acknowledged early, or late; the store is
    the broker, and sends messages, or is not."""
    late = request.param == "late"
    conf: dict[str, Any] = {
        "clutch_it_faults": True,
        "clutch_lease": 1.5,
        "clutch_max_starts": 10,
        "task_acks_late": late,
        "task_reject_on_worker_lost": late,
    }
    if request.param == "one-redis":
        conf.update(one_redis())
    with make_lab(f"faults-{request.param}", **conf) as lab:
        lab.app.set_current()
        yield lab


def simple(run: str, tag: str) -> Clutch:
    """Everything that ends well: chains, fan-ins, a nested run, a retry, handlers."""
    nested = nests.s(value.s(1), value.s(2), returns=2)
    branches = parallel(value.s(1), nested, retry.s(1, 3))
    narrow = parallel((value.s(i) for i in (4, 5, 6)), max_concurrency=1)
    told = handlers(tag, *EVERY)
    return Clutch(value.s(0), branches, total.s(), narrow, total.s(), id=run, **told)


def deadly(run: str, tag: str) -> Clutch:
    """A death in a nested run, whose handlers and outer run are to be told."""
    nested = nests.s(value.s(1), fail.s())
    told = handlers(tag, *EVERY)
    return Clutch(value.s(0), parallel(nested, value.s(1)), total.s(), id=run, **told)


def decides(run: str, tag: str) -> Clutch:
    """Everything that is decided while the run runs, and an early end."""
    clutch = Clutch(value.s([1, 2, 3]), id=run, **handlers(tag, *EVERY))
    clutch.map(series(picky.s(2), total.s()), allow_failures=1)
    chosen = parallel(spread.s(1, value.s(5)), value.s(2))
    clutch.choose(value.s("b"), {"a": value.s(0), "b": series(chosen, seen.s())})
    clutch.add(value, 9).when(sees.s("no"))
    clutch.map(double, max_concurrency=1)
    return clutch << seen.s() << stop.s("over") << value.s("never")


DECIDED = [2, 4, 10]
"""What the last map of `decides` gives."""


def points_of(lab: Lab, run: str) -> int:
    return int(tasks.notebook().hget("it:faults:points", run) or 0)


def nested_id(run: str, address: str) -> str:
    return str(uuid.uuid5(_NESTED, f"{run} {address} 0"))


def until_ended(lab: Lab, runs: list[ClutchResult], state: State) -> None:
    """Sweep until all have ended so and nobody is left to be told."""
    deadline = time.monotonic() + PATIENCE
    while True:
        sweep(lab.app, grace=2.0)
        left = [run for run in runs if run.state is not state or run.record().due.keys() - {"look"}]
        if not left:
            return
        told = [(run.id, run.state, dict(run.record().due)) for run in left[:5]]
        assert time.monotonic() < deadline, f"{len(left)} runs have not ended: {told}"
        time.sleep(0.2)  # between two sweeps, as beat would


@pytest.mark.parametrize("make", [simple, deadly, decides])
def test_killed_at_every_point(faulty: Lab, tag: str, make: Any) -> None:
    ends_well = make is not deadly
    state = State.SUCCEEDED if ends_well else State.FAILED
    first = make(f"{tag}-undisturbed", f"{tag} 0").engage()
    until_ended(faulty, [first], state)
    faulty.settle()
    inner = "1.1" if ends_well else "1.0"
    total_points = points_of(faulty, first.id)
    nested_points = points_of(faulty, nested_id(first.id, inner))
    assert total_points > 20
    assert nested_points > 5 or make is decides
    runs: list[ClutchResult] = []
    numbers = range(1, total_points + nested_points + 1)
    if (
        make is decides
    ):  # there are many: every fourth, and others where messages are acknowledged late
        numbers = numbers[2 * int(bool(faulty.app.conf.task_acks_late)) :: 4]
    for number in numbers:
        run, victim = f"{tag}-{number}", f"{tag}-{number}"
        if number > total_points:
            victim = nested_id(run, inner)
        point = number if number <= total_points else number - total_points
        tasks.notebook().hset("it:faults:kill", victim, str(point))
        runs.append(make(run, f"{tag} {number}").engage())
    until_ended(faulty, runs, state)
    faulty.settle()
    for number, run in zip(numbers, runs, strict=True):
        kinds = faulty.kinds(f"{tag} {number}")
        if ends_well:
            if make is simple:
                assert run.get(timeout=1) == [15], number
            else:
                assert (run.get(timeout=1), run.results("5")) == (["over"], DECIDED), number
            assert kinds["on_success"] >= 1, number
            assert faulty.ran(run).keys() == faulty.ran(first).keys()
        else:
            assert kinds["on_death"] >= 1, number
            assert run.failures(), number
        assert kinds["on_failure"] >= 1, number
        assert kinds["on_end"] >= 1, number


def test_killed_at_every_point_of_a_launch(faulty: Lab, tag: str) -> None:
    clutch = Clutch(parallel(value.s(1), value.s(2)), total.s(), **handlers(tag))
    text = clutch.to_json()

    def launch(run: str) -> ClutchResult:
        faulty.app.send_task("celery_clutch.launch", (text,), {"id": run})
        return ClutchResult(run, faulty.app)

    first = launch(f"{tag}-undisturbed")
    until(lambda: exists(first), "for the launch")
    until_ended(faulty, [first], State.SUCCEEDED)
    faulty.settle()
    total_points = points_of(faulty, first.id)
    assert total_points > 10
    runs: list[ClutchResult] = []
    for number in range(1, total_points + 1):
        tasks.notebook().hset("it:faults:kill", f"{tag}-{number}", str(number))
        runs.append(launch(f"{tag}-{number}"))
    faulty.settle()
    created = [run for run in runs if exists(run)]
    # Killed before it was created: the message comes again if it was not acknowledged.
    assert runs[1:] == created[-len(runs) + 1 :]
    assert len(created) == len(runs) or not faulty.conf["task_acks_late"]
    until_ended(faulty, created, State.SUCCEEDED)
    faulty.settle()
    for run in created:
        assert run.get(timeout=1) == [3], run.id
        assert faulty.ran(run).keys() == {"0.0", "0.1", "1"}, run.id
    assert faulty.kinds(tag)["on_success"] >= len(created)


def exists(run: ClutchResult) -> bool:
    try:
        return bool(run.state)
    except RunNotFound:
        return False


def test_plans_of_all_kinds_killed_somewhere(faulty: Lab, tag: str) -> None:
    """Where messages are acknowledged early, the message of what was killed is lost."""
    expected: list[tuple[ClutchResult, list[Any]]] = []

    @settings(
        max_examples=12,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(deciding.plans())
    def engage(root: Series) -> None:
        run, point = f"{tag}-{len(expected)}", 1 + 5 * len(expected) % 23
        tasks.notebook().hset("it:faults:kill", run, str(point))
        clutch = Clutch.from_json({"clutch": plan.to_dict(root)}, id=run, app=faulty.app)
        expected.append((clutch.engage(), deciding.evaluate(root, Given())))

    engage()
    until_ended(faulty, [run for run, _ in expected], State.SUCCEEDED)
    for run, wanted in expected:
        assert deciding.plain(run.get(timeout=1)) == wanted
