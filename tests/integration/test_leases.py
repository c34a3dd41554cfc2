"""Who has a job: a worker that is killed gives its jobs back, one that lives keeps them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from celery_clutch import Clutch, ClutchResult, State, parallel
from celery_clutch.extend.plugins import runtime
from celery_clutch.sweep import sweep

from .app import hold, total, value
from .conftest import MakeLab
from .lab import Lab, Worker, handlers, until

LEASE = 1.0


def owner_of(lab: Lab, run: ClutchResult, address: str) -> Worker:
    """The worker that has a job."""
    lease = runtime(lab.app).store.leases(run.id)[address]
    group = os.getpgid(int(lease.owner.rpartition(".")[2]))
    (worker,) = (each for each in lab.workers if each.process and each.process.pid == group)
    return worker


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_the_jobs_of_a_killed_worker_go_to_another(make_lab: MakeLab, tag: str, late: bool) -> None:
    """Those that it ran within the lease and a sweep; those that it had fetched after the grace period."""
    conf = {"clutch_lease": LEASE, "task_acks_late": late}
    with make_lab("two", workers=2, concurrency=1, **conf) as lab:
        lab.app.set_current()
        branches = [hold.s(tag, 1), hold.s(tag, 2), *(value.s(0) for _ in range(8))]
        run = Clutch(parallel(branches), total.s(), **handlers(tag)).engage()
        until(lambda: lab.ran(run)["0.0"] and lab.ran(run)["0.1"], "for both to be at work")
        worker = owner_of(lab, run, "0.0")
        lab.workers.remove(worker)
        assert worker.process is not None
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait(10)
        killed = time.monotonic()
        until(lambda: run.id in sweep(lab.app, grace=60.0), "for the lease to run out")
        assert time.monotonic() - killed < 3 * LEASE
        assert lab.ran(run)["0.1"] == 1, "the other worker lives"
        lab.raise_flag(tag)

        def over() -> bool:
            sweep(lab.app, grace=1.0)
            return run.ready()

        until(over, "for the run to end")
        assert run.get(timeout=1) == [3]
        until(lambda: lab.kinds(tag) == {"on_success": 1}, "for on_success")
        assert lab.ran(run) == {at: 2 if at == "0.0" else 1 for at in lab.ran(run)}
        assert len(lab.ran(run)) == 11


POOLS = {"prefork": 1, "threads": 2, "solo": 1, "gevent": 5, "eventlet": 5}


@pytest.fixture(params=POOLS)
def pool(make_lab: MakeLab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A worker whose leases are short."""
    name = request.param
    if name in ("gevent", "eventlet"):
        pytest.importorskip(name)
    conf = {"clutch_lease": LEASE, "worker_prefetch_multiplier": 1}
    with make_lab(f"leases-{name}", pool=name, concurrency=POOLS[name], **conf) as lab:
        lab.app.set_current()
        yield lab


def test_a_job_that_lives_longer_than_its_lease(pool: Lab, tag: str) -> None:
    run = Clutch(hold.s(tag, 1), total.s(), **handlers(tag)).engage()
    until(lambda: pool.ran(run)["0"], "for the job to start")
    begun = time.monotonic()

    def long_over() -> bool:
        assert sweep(pool.app, grace=0.0) == []
        return time.monotonic() - begun > 2.5 * LEASE

    until(long_over)
    pool.raise_flag(tag)
    assert pool.finish(run) is State.SUCCEEDED
    assert pool.ran(run) == {"0": 1, "1": 1}
    assert pool.kinds(tag) == {"on_success": 1}
