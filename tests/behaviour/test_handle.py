"""The handle of a run: looking at it, waiting for it, and steering it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from integration.app import cancels, fail, fail_unless, get_inside, hold, retry, seen, total, value
from integration.lab import Runs, handlers, new_tag, until

from celery_clutch import Clutch, ClutchResult, Progress, State, Status, parallel, series
from celery_clutch.errors import (
    AlreadyEngaged,
    ClutchCancelled,
    ClutchFailed,
    ClutchTimeout,
    MissingResult,
    RunNotFound,
)


@pytest.mark.not_eager
def test_a_run_from_running_to_succeeded(lab: Runs, tag: str) -> None:
    clutch = Clutch(value.s(1), hold.s(tag), name="nightly", tags=["eu", "big"])
    run = clutch.engage()
    until(lambda: lab.ran(run)["1"], "for the second job")
    assert run.state is State.RUNNING
    assert (run.ready(), run.successful(), run.failed()) == (False, False, False)
    assert run.progress() == Progress(done=1, total=2, failing=0, dead=0)
    assert run.progress().fraction == 0.5
    assert run.status().ended_at is None
    with pytest.raises(MissingResult):
        run.results("1")
    lab.raise_flag(tag)
    assert run.get(timeout=30) == [None]
    assert (run.ready(), run.successful(), run.failed()) == (True, True, False)
    status = run.status()
    assert (status.name, status.tags, status.total, status.done) == ("nightly", ("eu", "big"), 2, 2)
    assert status.ended_at is not None


def test_a_failed_run(lab: Runs) -> None:
    run = series(
        value.s(1), parallel(value.s(2), fail.s("one"), fail.s("two")), value.s(3)
    ).engage()
    assert lab.finish(run) is State.FAILED
    assert (run.ready(), run.successful(), run.failed()) == (True, False, True)
    with pytest.raises(ClutchFailed, match="one") as caught:
        run.get(timeout=1)
    assert [(each.address, each.message) for each in caught.value.failures] == [
        ("1.1", "one"),
        ("1.2", "two"),
    ]
    assert run.get(timeout=1, propagate=False) == [None]
    assert run.results("0") == 1
    assert run.progress() == Progress(done=2, total=5, failing=0, dead=2)


def test_what_is_missing_is_none_without_propagate(lab: Runs) -> None:
    run = parallel(value.s(1), fail.s(), value.s(3)).engage()
    lab.settle()
    assert run.get(timeout=1, propagate=False) == [1, None, 3]


@pytest.mark.not_eager
def test_status_survives_json(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(retry.s(1, flag=tag), fail.s("\u20ac"))).engage()
    until(lambda: len(run.failures()) == 2, "for both failures")
    status = run.status()
    assert Status.from_dict(json.loads(json.dumps(status.to_dict()))) == status
    assert (status.failing, status.dead) == (1, 1)
    assert [(each.attempt, each.final) for each in status.failures] == [(1, False), (1, True)]
    lab.raise_flag(tag)
    lab.settle()


def test_a_handle_restored_by_id(lab: Runs) -> None:
    run = Clutch(value.s(1), total.s(1), id=f"order/{new_tag()}").engage()
    restored = ClutchResult(run.id)
    assert restored.get(timeout=30) == [2]
    assert restored == run
    assert restored.status() == run.status()
    assert len({restored, run}) == 1
    assert str(restored.plan()) == str(run.plan())


def test_a_run_that_never_was(lab: Runs) -> None:
    run = ClutchResult("no-such-run")
    for ask in (lambda: run.state, run.status, run.get, run.cancel, run.resume, run.plan):
        with pytest.raises(RunNotFound, match="no-such-run"):
            ask()
    assert run.forget() is False


def test_two_engages_with_one_id(lab: Runs) -> None:
    clutch = Clutch(value.s(1), id=new_tag())
    run = clutch.engage()
    with pytest.raises(AlreadyEngaged):
        clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1}


@pytest.mark.not_eager
def test_get_gives_up(lab: Runs, tag: str) -> None:
    run = series(hold.s(tag)).engage()
    start = time.monotonic()
    with pytest.raises(ClutchTimeout, match=r"0\.2 seconds"):
        run.get(timeout=0.2)
    assert 0.15 < time.monotonic() - start < 2
    lab.raise_flag(tag)
    assert run.get(timeout=30) == [None]


def test_get_inside_a_task_is_refused(lab: Runs) -> None:
    other = series(value.s(1)).engage()
    run = series(get_inside.s(other.id)).engage()
    assert run.get(timeout=30) == ["GetInsideTask"]
    assert get_inside.delay(other.id).get(timeout=30) == "GetInsideTask"


@pytest.mark.not_eager
def test_aget_does_not_block_the_loop(lab: Runs, tag: str) -> None:
    run = series(hold.s(tag, "held")).engage()

    async def main() -> tuple[list[object], int]:
        ticks = 0
        waiting = asyncio.ensure_future(run.aget(timeout=30))
        while not waiting.done():
            ticks += 1
            if ticks == 20:
                lab.raise_flag(tag)
            await asyncio.sleep(0.01)
        return waiting.result(), ticks

    result, ticks = asyncio.run(main())
    assert result == ["held"]
    assert ticks >= 20


def test_aget_many_at_once(lab: Runs) -> None:
    runs = [series(value.s(i)).engage() for i in range(20)]

    async def main() -> list[list[object]]:
        return list(await asyncio.gather(*(run.aget(timeout=30) for run in runs)))

    assert asyncio.run(main()) == [[i] for i in range(20)]


@pytest.mark.not_eager
def test_aget_of_a_failed_run_and_of_a_slow_one(lab: Runs, tag: str) -> None:
    failed, slow = series(fail.s()).engage(), series(hold.s(tag)).engage()
    with pytest.raises(ClutchFailed):
        asyncio.run(failed.aget(timeout=30))
    with pytest.raises(ClutchTimeout):
        asyncio.run(slow.aget(timeout=0.1))
    lab.raise_flag(tag)
    lab.settle()


@pytest.mark.not_eager
def test_cancel_while_a_job_runs(lab: Runs, tag: str) -> None:
    run = Clutch(
        parallel(hold.s(tag, "held"), value.s(1)), value.s("never"), **handlers(tag)
    ).engage()
    until(lambda: lab.ran(run)["0.0"] and run.progress().done == 1, "for the job to start")
    assert run.cancel()
    lab.raise_flag(tag)
    lab.settle()
    assert run.state is State.CANCELLED
    assert run.results("0") == ["held", 1]
    assert not lab.ran(run)["1"]
    assert lab.kinds(tag) == {}


def test_a_job_that_cancels_its_run_has_its_result(lab: Runs, tag: str) -> None:
    run = Clutch(cancels.s(), value.s(1), **handlers(tag)).engage()
    assert lab.finish(run) is State.CANCELLED
    assert run.results("0") is True
    assert lab.ran(run) == {"0": 1}
    with pytest.raises(ClutchCancelled):
        run.get(timeout=1)
    assert run.cancel() is False
    assert run.resume() is True
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [1]


def test_cancel_of_what_has_ended(lab: Runs) -> None:
    run = series(value.s(1)).engage()
    lab.settle()
    assert run.cancel() is False
    assert run.state is State.SUCCEEDED


def test_resume_runs_only_what_has_no_result(lab: Runs, tag: str) -> None:
    clutch = Clutch(value.s(1), **handlers(tag))
    with clutch.parallel():
        clutch << value.s(2)
        clutch << fail_unless.s(tag, 3)
        with clutch.series():
            clutch << value.s(4) << fail_unless.s(tag, 5) << total.s(1)
        with clutch.series():
            clutch << value.s(7) << parallel(value.s(8), value.s(9))
    clutch << seen.s("end")
    run = clutch.engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", [2, 3, 6, [8, 9]]]]
    again = {"1.1": 2, "1.2.1": 2}
    assert {at: n for at, n in lab.ran(run).items() if n != 1} == again
    status = run.status()
    assert (status.generation, status.done, status.failures) == (1, 10, ())
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1, "on_success": 1}


def test_resume_of_a_long_and_wide_run(lab: Runs, tag: str) -> None:
    clutch = Clutch()
    for i in range(20):
        clutch << value.s(i)
    with clutch.parallel():
        for i in range(250):
            clutch << (fail_unless.s(tag, i) if i % 50 == 7 else value.s(i))
    for _ in range(20):
        clutch << seen.s()
    run = clutch.engage()
    assert lab.finish(run) is State.FAILED
    assert run.progress().dead == 5
    lab.raise_flag(tag)
    run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("20") == list(range(250))
    twice = {at for at, n in lab.ran(run).items() if n == 2}
    assert twice == {f"20.{i}" for i in range(7, 250, 50)}
    assert set(lab.ran(run).values()) == {1, 2}


def test_resume_in_vain_tells_the_handlers_again(lab: Runs, tag: str) -> None:
    run = Clutch(value.s(1), fail.s(), **handlers(tag)).engage()
    lab.settle()
    run.resume()
    assert lab.finish(run) is State.FAILED
    assert lab.ran(run) == {"0": 1, "1": 2}
    assert lab.kinds(tag) == {"on_failure": 2, "on_death": 2}
    assert [each["generation"] for each in lab.notes(tag, "on_failure")] == [0, 1]


def test_resume_of_what_has_succeeded(lab: Runs) -> None:
    run = series(value.s(1)).engage()
    lab.settle()
    assert run.resume() is False
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.ran(run) == {"0": 1}


def test_resume_while_a_sibling_has_failed(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(fail_unless.s(tag, 1), value.s(2)), total.s(0)).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    handle = ClutchResult(run.id)
    assert [handle.resume(), run.get(timeout=30)] == [True, [3]]


def test_a_forgotten_id_can_be_used_again(lab: Runs) -> None:
    clutch = Clutch(value.s(1), id=new_tag())
    assert clutch.engage().get(timeout=30) == [1]
    lab.settle()
    ClutchResult(clutch.id).forget()
    assert clutch.engage().get(timeout=30) == [1]
