"""Clients that are killed, or lose their connection, at every point of `engage` and `resume`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from celery_clutch import Clutch, ClutchResult, State, parallel
from celery_clutch.errors import AlreadyEngaged, RunNotFound, StoreUnavailable
from celery_clutch.extend.plugins import runtime
from celery_clutch.operate import doctor
from celery_clutch.stores.base import listed
from celery_clutch.sweep import sweep

from . import app as tasks
from .app import fail_unless, total, value
from .conftest import MakeLab
from .lab import MODULE, ROOT, Lab, Proxy, one_redis, until

POINTS = 60
"""More than `engage` or `resume` has."""


@pytest.fixture(scope="module")
def clients(make_lab: MakeLab) -> Iterator[Lab]:
    with make_lab("clients", concurrency=2) as lab:
        lab.app.set_current()
        yield lab


def killed(lab: Lab, what: str, runs: list[str], points: int = 5) -> list[ClutchResult]:
    """The runs of clients that were killed at every point, and of one that was not; there are so
    many *points* at least."""
    command = [sys.executable, "-m", MODULE.replace(".app", ".faults"), what, json.dumps(runs)]
    environ = {**os.environ, "CLUTCH_IT_CONF": json.dumps(lab.conf), "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    found = json.loads(said.stdout)
    assert len(found) > points, "there are store calls and messages to be killed at"
    return [ClutchResult(run, lab.app) for run, _ in found]


def known(lab: Lab) -> set[str]:
    """The runs that a listing shows."""
    return {summary.run for summary in listed(runtime(lab.app).store)}


def end(lab: Lab, runs: list[ClutchResult]) -> None:
    """Sweep, as beat would, until all have succeeded."""

    def over() -> bool:
        sweep(lab.app, grace=1.0)
        return all(run.state is State.SUCCEEDED for run in runs)

    until(over, "for the runs to succeed", 60)
    lab.settle()


@pytest.mark.parametrize(
    ("what", "named", "result"), [("engage", True, 3), ("engage", False, 3), ("wide", True, 120)]
)
def test_a_client_killed_at_every_point_of_engage(
    clients: Lab, tag: str, what: str, named: bool, result: int
) -> None:
    given = [f"{tag}-{number}" if named else "" for number in range(POINTS)]
    runs = killed(clients, what, given)
    there = known(clients)
    created = [run for run in runs if run.id in there]
    assert len(created) >= len(runs) - 2, "killed before or after all of it was created"
    for run in runs:
        if run not in created:
            with pytest.raises(RunNotFound):
                run.state
    end(clients, created)
    for run in created:
        assert run.get(timeout=1) == [result]
        assert set(clients.ran(run).values()) == {1}


def test_a_client_killed_at_every_point_where_the_store_sends_the_only_message(
    make_lab: MakeLab,
) -> None:
    with make_lab("only", **one_redis()) as lab:
        runs = killed(lab, "one", [""] * POINTS, points=4)
        # Before and after the message is made, before the step; behind it, and not at all.
        assert [run.id in known(lab) for run in runs] == [False] * 3 + [True] * 2
        until(lambda: all(run.ready() for run in runs[3:]), "for the runs, without a sweep")
        for run in runs[3:]:
            assert run.get(timeout=1) == [1]
            assert set(lab.ran(run).values()) == {1}


def test_a_client_killed_at_every_point_of_resume(clients: Lab, tag: str) -> None:
    made = [
        Clutch(
            value.s(1),
            parallel(fail_unless.s(tag, 2), value.s(3), max_concurrency=1),
            total.s(),
        ).engage()
        for _ in range(20)
    ]
    until(lambda: all(run.state is State.FAILED for run in made), "for the runs to fail")
    clients.settle()
    clients.raise_flag(tag)
    runs = killed(clients, "resume", [run.id for run in made])
    before = [run for run in runs if run.state is State.FAILED]
    assert before == runs[: len(before)]
    assert len(before) < len(runs) - 3, "killed after it was resumed, too"
    end(clients, runs[len(before) :])
    for run in before:
        assert run.resume()
    end(clients, before)
    for run in runs:
        assert run.get(timeout=1) == [5]
        assert clients.ran(run) == {"0": 1, "1.0": 2, "1.1": 1, "2": 1}


@pytest.mark.parametrize("answered", [False, True], ids=["question lost", "answer lost"])
def test_a_connection_lost_at_every_point_of_engage(clients: Lab, tag: str, answered: bool) -> None:
    """What may be repeated is: the run is there, is found by listings and runs once."""
    if "CLUTCH_TEST_STORE" in os.environ:
        pytest.skip("speaks the protocol of Redis")
    runs: list[ClutchResult] = []
    unanswered: list[bool] = []
    with Proxy(tasks.database(1)) as proxy:
        lost = True
        while lost:
            app = tasks.make_app({**clients.conf, "clutch_store": proxy.url})
            clutch = Clutch(
                parallel(value.s(1), value.s(2)), total.s(), app=app, id=f"{tag}-{len(runs)}"
            )
            proxy.cut_at(len(runs) + 1, answered=answered)
            runs.append(engaged(clients, clutch, unanswered))
            lost = proxy.cuts > 0
            app.close()
            runtime(app).store.close()
    assert len(runs) > 3, "there are commands to be lost"
    assert any(unanswered) is answered, "one that was created, and whose client does not know it"
    until(lambda: all(run.ready() for run in runs), "for the runs, without a sweep")
    clients.settle()
    for run in runs:
        assert run.get(timeout=1) == [3]
        assert set(clients.ran(run).values()) == {1}


def engaged(lab: Lab, clutch: Clutch, unanswered: list[bool]) -> ClutchResult:
    """Engage, again if the store was lost; the run. Notes whether it was there already then."""
    run = ClutchResult(str(clutch.id), lab.app)
    for _ in range(3):
        try:
            clutch.engage()
            return run
        except StoreUnavailable:
            found = runtime(lab.app).store.peek(run.id) is not None
            assert found == (run.id in known(lab))
            unanswered.append(found)
        except AlreadyEngaged:  # somebody else has started it meanwhile
            return run
    raise AssertionError("the store is lost again and again")


@pytest.mark.parametrize("answered", [False, True], ids=["message lost", "answer lost"])
def test_rabbitmq_has_what_was_engaged(
    make_lab: MakeLab, rabbitmq: str, tag: str, answered: bool
) -> None:
    """Once `engage` has returned, whatever the connection went through."""
    queues: list[str] = []
    with make_lab("confirmed", start=False, broker_url=rabbitmq) as lab, Proxy(rabbitmq) as proxy:
        lost = True
        while lost:
            app = tasks.make_app({**lab.conf, "broker_url": proxy.url})
            queue = f"{lab.queue}-{len(queues)}"
            proxy.cut_at(len(queues) + 1, answered=answered)
            queues.append(queue)
            run = Clutch(parallel(value.s(1), value.s(2)), total.s(), queue=queue, app=app).engage()
            lost = proxy.cuts > 0
            app.close()
            assert lab.length(queue) >= 2, f"cut at {len(queues)}"
            assert run.state is State.RUNNING
        lab.delete(*queues)
    assert len(queues) > 5, "there is something to be lost"


@pytest.mark.parametrize(
    ("options", "warned"),
    [({}, False), ({"confirm_publish": True}, False), ({"confirm_publish": False}, True)],
)
def test_the_doctor_says_where_a_broker_confirms_nothing(
    make_lab: MakeLab, rabbitmq: str, options: dict[str, bool], warned: bool
) -> None:
    conf = {"broker_url": rabbitmq, "broker_transport_options": options}
    with make_lab("doctor", start=False, **conf) as lab:
        found = [each.what for each in doctor.examine(lab.app, timeout=0.1)]
    assert any("can be reached" in what and "broker" in what for what in found)
    assert any("does not confirm" in what for what in found) is warned
