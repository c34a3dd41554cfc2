"""Narrow parallels and deadlines, on real workers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from celery_clutch import Clutch, State, parallel, series
from celery_clutch.errors import ClutchExpired

from .app import crowd, most, plain, seen, value
from .lab import Gate, Lab, handlers, until


@pytest.fixture(scope="module")
def wide(make_lab: Any) -> Any:
    """Six threads, so that more than three could be under way."""
    with make_lab("wide", pool="threads", concurrency=6) as lab:
        lab.app.set_current()
        yield lab


def test_never_more_than_so_many_at_once(wide: Lab, tag: str) -> None:
    run = Clutch(
        value.s("first"),
        parallel((crowd.s(tag, i) for i in range(25)), max_concurrency=3),
        seen.s("end"),
        **handlers(tag),
    ).engage()
    assert wide.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", list(range(25))]], "the order of results is the same"
    assert 2 <= most(tag) <= 3
    assert set(wide.ran(run).values()) == {1}
    assert wide.kinds(tag) == {"on_success": 1}


def test_narrow_in_narrow_and_at_the_end(wide: Lab, tag: str) -> None:
    inner = [parallel(*(crowd.s(tag, i) for i in range(4)), max_concurrency=2) for _ in range(5)]
    run = Clutch(parallel(inner, max_concurrency=2)).engage()
    assert wide.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[0, 1, 2, 3]] * 5
    assert 2 <= most(tag) <= 4


def test_bytes_are_linear(lab: Lab) -> None:
    def cost(width: int) -> float:
        branches = (value.s() for _ in range(width))
        run = series(parallel(branches, max_concurrency=4), value.s()).engage()
        assert lab.finish(run) is State.SUCCEEDED
        sent = lab.sent(run)
        assert sent["it.value"] == width + 1
        return sent["bytes"] / width

    few, many = cost(50), cost(300)
    assert many < few * 1.1


def test_a_message_that_comes_twice_widens_nothing(lab: Lab, gate: Gate, tag: str) -> None:
    branches = [crowd.s(tag, i) for i in range(9)]
    run = Clutch(parallel(branches, max_concurrency=1), seen.s(), queue=gate.queue).engage()
    gate.send(gate.copies())
    gate.open()
    assert run.state is State.SUCCEEDED
    assert run.get(timeout=1) == [list(range(9))]


# --- deadlines ------------------------------------------------------------------------------


def test_what_has_not_started_by_then_does_not_start(lab: Lab, gate: Gate, tag: str) -> None:
    later = value.s(2).set(queue=gate.queue)
    run = Clutch(value.s(1), later, value.s(3), expires=0.5, **handlers(tag)).engage()
    until(lambda: run.status().done == 1)
    over = time.monotonic() + 0.6
    until(lambda: time.monotonic() > over)
    gate.open(run.ready)
    assert run.state is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.final) == ("1", True)
    assert failure.exception == "celery_clutch.errors.ClutchExpired"
    with pytest.raises(ClutchExpired, match="had not started by"):
        run.get(timeout=1)
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert lab.ran(run) == {"0": 1}


def test_pages_and_plain_tasks_know_the_deadline(lab: Lab, gate: Gate, tag: str) -> None:
    wide = Clutch(parallel(value.s(i) for i in range(120)), value.s(), queue=gate.queue)
    alien = Clutch(plain.s(1), queue=gate.queue)
    runs = []
    for number, clutch in enumerate((wide, alien)):
        clutch.expires = 0.3
        clutch.on_death = handlers(f"{tag} {number}", "on_death")["on_death"]
        runs.append(clutch.engage())
    over = time.monotonic() + 0.5
    until(lambda: time.monotonic() > over)
    gate.open(lambda: all(run.ready() for run in runs))
    for number, run in enumerate(runs):
        assert run.state is State.FAILED
        with pytest.raises(ClutchExpired):
            run.get(timeout=1)
        assert not lab.ran(run)
        assert lab.kinds(f"{tag} {number}") == {"on_death": 1}
