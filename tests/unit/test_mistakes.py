"""Mistakes that people make, and what they are told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_clutch import Clutch, ClutchTask, series
from celery_clutch.compile.canvas import read_members
from celery_clutch.errors import MissingResult, UnknownAddress
from celery_clutch.extend.plugins import runtime
from celery_clutch.testing import embedded

from .conftest import make_app

# --- results that are not there -----------------------------------------------------------


class Gate:
    """An app with a job that waits until it is let go."""

    def __init__(self) -> None:
        self.app = make_app()
        self.open = threading.Event()

        @self.app.task(name="wait")
        def wait() -> str:
            self.open.wait(30)
            return "waited"

        @self.app.task(name="die")
        def die() -> None:
            raise ValueError("no money")

        @self.app.task(name="tell", bind=True)
        def tell(job: ClutchTask) -> list[Any]:
            return job.previous_results

        self.wait, self.die, self.tell = wait, die, tell


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    with embedded(gate.app):
        yield gate
        gate.open.set()


def test_a_result_of_a_job_that_has_not_ended(gate: Gate) -> None:
    run = series(gate.wait, gate.tell).engage()
    for address in ("0", "1", None):
        with pytest.raises(MissingResult, match="has no result yet: the run is RUNNING"):
            run.results(address)
    gate.open.set()
    assert run.get(timeout=10) == [["waited"]]
    assert run.results("0") == "waited"


def test_a_result_of_a_job_that_is_dead(gate: Gate) -> None:
    run = series(gate.die, gate.tell).engage()
    run.get(timeout=10, propagate=False)
    with pytest.raises(MissingResult, match=r"0 .* has no result: it died of ValueError: no money"):
        run.results("0")
    with pytest.raises(MissingResult, match=r"1 .* has no result: the run is FAILED"):
        run.results("1")


def test_a_result_of_a_run_that_is_gone(gate: Gate) -> None:
    gate.open.set()
    run = series(gate.wait, gate.tell).engage()
    run.get(timeout=10)
    run.forget()
    store = runtime(gate.app).store
    with pytest.raises(MissingResult, match=f"run {run.id} is gone: it was forgotten, or has exp"):
        read_members(store, run.id, ["0"])


def test_a_result_that_was_evicted(gate: Gate) -> None:
    gate.open.set()
    run = series(gate.wait, gate.tell).engage()
    run.get(timeout=10)
    lose_results(runtime(gate.app).store, run.id)
    for read in (lambda: run.results("0"), run.results, run.get):
        with pytest.raises(MissingResult, match="had a result that is no longer in the store"):
            read()


def lose_results(store: Any, run: str) -> None:
    """What a server does that evicts keys."""
    with store.transaction(run) as rows:
        for address in ("0", "1"):
            rows.put("result", address, None)


@pytest.mark.parametrize("address", [0, 1.0, "", "x", "5", ("0",), True])
def test_an_address_that_the_plan_does_not_have(eager: Celery, address: Any) -> None:
    @eager.task(name="one")
    def one() -> int:
        return 1

    run = Clutch(one).engage()
    with pytest.raises(UnknownAddress, match="an address is a string such as"):
        run.results(address)
    assert run.results("0") == 1
