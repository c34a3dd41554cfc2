"""Early ends where something is made of what a job returns."""

from __future__ import annotations

from integration.app import double, seen, stop, value
from integration.lab import Runs

from celery_clutch import Clutch, State


def test_what_decides_ends_the_run(lab: Runs) -> None:
    run = Clutch().choose(stop.s("enough"), {"a": value.s(1)}).add(seen).engage()
    assert run.get(timeout=30) == ["enough"]
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0.0": 1}


def test_a_when_ends_the_run(lab: Runs) -> None:
    run = Clutch(value.s(1), Clutch(value.s(2)).when(stop.s(True)), seen.s()).engage()
    assert run.get(timeout=30) == [True]
    lab.settle()
    assert set(lab.ran(run)) == {"0", "1.0"}


def test_what_a_map_is_made_of_ends_the_run(lab: Runs) -> None:
    run = Clutch(stop.s("enough")).map(double).add(seen).engage()
    assert run.get(timeout=30) == ["enough"]
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1}
