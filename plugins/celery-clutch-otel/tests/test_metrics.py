"""The metrics, on an embedded worker."""

from __future__ import annotations

import pytest
from celery_clutch import Clutch, ClutchError, parallel

from . import app as tasks
from .conftest import Points, until

FLAKY, BROKEN, FETCH = (f"{tasks.__name__}.{each}" for each in ("flaky", "broken", "fetch"))


def test_runs_and_jobs_are_counted(points: Points) -> None:
    good = Clutch(parallel(tasks.fetch.s(1), tasks.fetch.s(2)), tasks.flaky.s(1), app=tasks.app)
    bad = Clutch(tasks.broken.s(), tasks.fetch.s(3), app=tasks.app)
    good.engage().get(timeout=60)
    with pytest.raises(ClutchError):
        bad.engage().get(timeout=60)
    until(lambda: points.count("clutch.run.duration") == 2)

    assert points.count("clutch.runs", clutch_run_state="RUNNING") == 2
    assert points.count("clutch.runs", clutch_run_state="SUCCEEDED") == 1
    assert points.count("clutch.runs", clutch_run_state="FAILED") == 1

    def jobs(task: str) -> dict[str, float]:
        states = "started", "done", "failing", "dead"
        counts = {
            s: points.count("clutch.jobs", **{"clutch.job.task": task, "clutch.job.state": s})
            for s in states
        }
        return {state: count for state, count in counts.items() if count}

    assert jobs(FETCH) == {"started": 2, "done": 2}
    assert jobs(FLAKY) == {"started": 2, "failing": 1, "done": 1}
    assert jobs(BROKEN) == {"started": 1, "dead": 1}

    assert points.count("clutch.failures") == 2
    assert points.count("clutch.failures", error_type="ConnectionError") == 1
    assert points.count("clutch.failures", error_type="ValueError") == 1


def test_durations_and_delays(points: Points) -> None:
    run = Clutch(tasks.waiting.s(), tasks.flaky.s(1), app=tasks.app).engage()
    assert tasks.entered.wait(60)
    tasks.gate.set()
    run.get(timeout=60)
    until(lambda: points.count("clutch.run.duration") == 1)
    assert points.count("clutch.job.duration") == 3  # each attempt
    assert points.count("clutch.job.duration", clutch_job_state="failing") == 1
    assert points.count("clutch.job.delay") == 2  # each job
    assert 0 < points.sum("clutch.job.duration") < 60
    assert 0 <= points.sum("clutch.job.delay") < 120
    assert 0 < points.sum("clutch.run.duration") < 60


def test_a_nested_job_is_timed_once(points: Points) -> None:
    Clutch(tasks.nesting.s(), app=tasks.app).engage().get(timeout=60)
    until(lambda: points.count("clutch.run.duration") == 2)
    task = f"{tasks.__name__}.nesting"
    assert points.count("clutch.job.duration", clutch_job_task=task) == 1
    assert points.count("clutch.jobs", clutch_job_task=task, clutch_job_state="done") == 1
