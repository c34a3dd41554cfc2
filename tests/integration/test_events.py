"""Observers, told by real workers; and watching a run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from celery_clutch import Clutch, State, parallel, series, signals
from celery_clutch.errors import ClutchTimeout

from .app import fail, hold, nests, plain, replace, retry, total, value
from .lab import Lab, until


@pytest.fixture(scope="module")
def observed(make_lab: Any) -> Any:
    """A lab whose workers, and this process, write down what observers are told."""
    with make_lab("observed", clutch_it_observe=True) as lab:
        lab.app.set_current()
        lab.tasks.observe(lab.app)
        yield lab
        lab.tasks.stop_observing()


def told(lab: Lab, run: Any) -> list[dict[str, Any]]:
    lines = lab.tasks.notebook().lrange(f"it:events:{run.id}", 0, -1)
    return [json.loads(line) for line in lines]


def kinds(events: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((each["kind"], each.get("address") or each.get("step") or "") for each in events)


def test_a_run_from_engage_to_end(observed: Lab) -> None:
    run = Clutch(value.s(1), parallel(total.s(1), plain.s(2)), name="n", tags=["t"]).engage()
    assert observed.finish(run) is State.SUCCEEDED
    events = told(observed, run)
    assert kinds(events) == {
        ("engaged", ""): 1,
        ("job_started", "0"): 1,
        ("job_finished", "0"): 1,
        ("job_started", "1.0"): 1,
        ("job_finished", "1.0"): 1,
        ("job_finished", "1.1"): 1,
        ("step_settled", "0"): 1,
        ("step_settled", "1"): 1,
        ("finished", ""): 1,
    }
    by = {(each["kind"], each.get("address")): each for each in events}
    assert by["engaged", None]["jobs"] == 3
    assert (by["engaged", None]["name"], by["engaged", None]["tags"]) == ("n", ["t"])
    assert by["job_started", "0"]["task"] == "it.value"
    assert by["job_finished", "1.1"]["task"] == "it.plain"
    assert by["job_finished", "0"]["attempt"] == 1
    assert 0 <= by["job_finished", "0"]["seconds"] < 30
    assert by["finished", None]["state"] == "SUCCEEDED"
    assert by["finished", None]["ended_at"] >= by["finished", None]["created_at"]
    assert {each["context"].get("from") for each in events} == {"engage"}


def test_retries_and_deaths(observed: Lab) -> None:
    run = Clutch(retry.s(1, 1), parallel(fail.s(), value.s(2)), value.s()).engage()
    assert observed.finish(run) is State.FAILED
    events = told(observed, run)
    found = kinds(events)
    assert found["job_started", "0"] == 2
    assert found["job_failed", "0"] == found["job_finished", "0"] == 1
    assert found["job_failed", "1.0"] == 1
    assert found["step_settled", "0"] == found["step_settled", "1"] == 1
    failures = {each["address"]: each["failure"] for each in events if each["kind"] == "job_failed"}
    assert (failures["0"]["final"], failures["1.0"]["final"]) == (False, True)
    assert [each["state"] for each in events if each["kind"] == "finished"] == ["FAILED"]
    steps = {each["step"]: each["failed"] for each in events if each["kind"] == "step_settled"}
    assert steps == {"0": True, "1": True}


def test_nested_replaced_and_cancelled(observed: Lab, tag: str) -> None:
    run = Clutch(nests.s(value.s(1)), replace.s(value.s("instead")), hold.s(tag)).engage()
    until(lambda: observed.ran(run)["2"])
    assert run.cancel()
    observed.raise_flag(tag)
    observed.settle()
    found = kinds(told(observed, run))
    assert found["job_finished", "0"] == found["job_finished", "1"] == 1
    ends = [each["state"] for each in told(observed, run) if each["kind"] == "finished"]
    assert ends == ["CANCELLED"]
    tasks = {each["task"] for each in told(observed, run) if each["kind"] == "job_finished"}
    assert tasks == {"it.nests", "it.replace", "it.hold"}
    (nested,) = observed.nested(run)
    (engaged,) = (each for each in told(observed, nested) if each["kind"] == "engaged")
    assert engaged["parent"] == {"run": run.id, "address": "0"}


def test_an_observer_that_raises_harms_nothing(observed: Lab) -> None:
    @signals.clutch_engaged.connect
    def broken(sender: Any, event: Any, **_: Any) -> None:
        raise RuntimeError("broken observer")

    try:
        run = series(value.s(1)).engage()
    finally:
        signals.clutch_engaged.disconnect(broken)
    assert observed.finish(run) is State.SUCCEEDED
    assert kinds(told(observed, run))["finished", ""] == 1


# --- watching -------------------------------------------------------------------------------


def test_watch_yields_every_change_until_the_end(lab: Lab, tag: str) -> None:
    run = Clutch(value.s(1), hold.s(tag), retry.s(1, 2)).engage()
    seen = []
    for status in run.watch(timeout=60):
        seen.append((status.done, status.failing))
        lab.raise_flag(tag)
    assert seen[-1] == (3, 0)
    assert seen == sorted(seen, key=lambda each: each[0])
    assert run.state is State.SUCCEEDED
    assert [status.done for status in run.watch()] == [3], "what has ended is told once"


def test_watch_has_a_timeout(lab: Lab, tag: str) -> None:
    run = Clutch(hold.s(tag)).engage()
    with pytest.raises(ClutchTimeout):
        for _ in run.watch(timeout=0.3):
            pass
    lab.raise_flag(tag)
    assert run.get(timeout=30) == [None]


def test_awatch(lab: Lab) -> None:
    run = series(value.s(i) for i in range(5)).engage()

    async def watch() -> list[int]:
        return [status.done async for status in run.awatch(timeout=60)]

    assert asyncio.run(watch())[-1] == 5
