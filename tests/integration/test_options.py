"""Celery's options of a job are kept; the clutch's queue goes before all others."""

from __future__ import annotations

import pytest
from celery import group

from celery_clutch import Clutch, State, parallel, series

from .app import (
    fail,
    gather,
    linked,
    nests,
    note_queue,
    plain,
    replace,
    request,
    retry,
    seen,
    sends_itself,
    value,
    where,
)
from .lab import Lab

# Each is looked at as the first job, the second, in a parallel step, and behind one.
PLACES = {
    "first": (lambda job: series(job, value.s(0)), "0"),
    "second": (lambda job: series(value.s(0), job), "1"),
    "in parallel": (lambda job: series(parallel(job, value.s(0)), value.s(0)), "0.0"),
    "in parallel at the end": (lambda job: parallel(value.s(0), job), "0.1"),
    "behind parallel": (lambda job: series(parallel(value.s(0), value.s(0)), job, value.s(1)), "1"),
    "in another page": (lambda job: series(*[value.s(0)] * 30, job), "30"),
}

everywhere = pytest.mark.parametrize("place", PLACES)


@everywhere
def test_options_are_kept(lab: Lab, tag: str, place: str) -> None:
    build, at = PLACES[place]
    job = request.s().set(
        priority=3,
        headers={"shop": "Berlin"},
        time_limit=77,
        soft_time_limit=66,
        expires=300,
        queue=lab.side,
        link=[linked.s(tag)],
    )
    run = build(job).engage()
    assert lab.finish(run) is State.SUCCEEDED
    found = run.results(at)
    assert found["priority"] == 3
    assert found["shop"] == "Berlin"
    assert sorted(found["timelimit"]) == [66, 77]
    assert found["queue"] == lab.side
    assert [each["shop"] for each in lab.notes(tag, "link")] == ["Berlin"]


@everywhere
def test_countdown_is_kept(lab: Lab, place: str) -> None:
    build, at = PLACES[place]
    run = build(request.s().set(countdown=0.3)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results(at)["eta"]


@everywhere
def test_a_task_that_sends_itself_is_asked_to(lab: Lab, place: str) -> None:
    build, at = PLACES[place]
    run = build(sends_itself.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results(at) == "Trier"


@everywhere
def test_own_link_error_is_called(lab: Lab, tag: str, place: str) -> None:
    build, at = PLACES[place]
    errback = lab.app.signature("it.link_failed", kwargs={"tag": tag})
    run = build(fail.s().set(link_error=errback)).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.notes(tag, "link_error") == ["ValueError"]
    assert [failure.address for failure in run.failures()] == [at]


@pytest.mark.parametrize("where", ["series", "parallel"])
@pytest.mark.parametrize("kind", ["replaced", "replaced by a group", "nests", "plain"])
def test_own_link_gets_the_value_whatever_the_job_does(
    lab: Lab, tag: str, kind: str, where: str
) -> None:
    job, value_of = {
        "replaced": (replace.s(gather.s(1)), [1]),
        "replaced by a group": (replace.s(group(gather.s(1), gather.s(1))), [[1], [1]]),
        "nests": (nests.s(value.s(1)), "outer"),
        "plain": (plain.s(1), 1),
    }[kind]
    job.set(link=linked.s(tag))
    clutch = series(job if where == "series" else parallel(job, value.s(0)), seen.s())
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[value_of] if where == "series" else [value_of, 0]]
    assert lab.notes(tag, "link") == [value_of]


def test_own_headers_survive_a_retry(lab: Lab, tag: str) -> None:
    run = series(retry.s(1, "x").set(headers={"shop": "Bonn"}, link=linked.s(tag))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.notes(tag, "link") == ["x"]


def test_options_of_engage_are_for_the_start(lab: Lab) -> None:
    run = series(request.s(), request.s()).engage(countdown=0.3, headers={"shop": "Ulm"})
    assert lab.finish(run) is State.SUCCEEDED
    first, second = run.results("0"), run.results("1")
    assert first["eta"] and first["shop"] == "Ulm"
    assert not second["eta"]


def test_options_of_engage_delay_every_first_job(lab: Lab) -> None:
    run = series(parallel(request.s(), request.s()), value.s(1)).engage(countdown=0.3)
    assert lab.finish(run) is State.SUCCEEDED
    assert [each["eta"] for each in run.results("0")] == [True, True]


def queues(lab: Lab, run: object) -> set[str]:
    """The queues that the messages of *run* went through."""
    sent = lab.sent(run)  # type: ignore[arg-type]
    return {key.partition(" ")[2] for key in sent if key.startswith("queue ")}


def test_the_queue_of_a_clutch_is_that_of_every_job(lab: Lab, tag: str) -> None:
    def notes(kind: str) -> object:
        return note_queue.s(tag, kind).set(queue=lab.queue)

    clutch = Clutch(queue=lab.side, on_failure=notes("failure"), on_success=notes("success"))
    clutch << where.s() << where.s().set(queue=lab.queue)
    with clutch.parallel():
        clutch << where.s()
        clutch << where.s().set(queue=lab.queue, routing_key=lab.queue)
        with clutch.series():
            clutch << where.s() << plain.s("plain") << retry.s(1, "retried") << where.s()
        with clutch.series(), clutch.parallel():
            clutch << where.s()
    clutch << seen.s()
    for _ in range(15):
        clutch << where.s()
    with clutch.parallel():
        for _ in range(120):
            clutch << where.s()
    clutch << where.s()
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    side = lab.side
    assert [run.results(at) for at in ("0", "1", "18", "20")] == [side] * 4
    assert run.results("2") == [side, side, side, [side]]
    assert run.results("19") == [side] * 120
    assert queues(lab, run) == {side}
    assert lab.notes(tag) == [{"queue": side}] * 2


def test_the_queue_of_a_clutch_is_that_of_its_death_notice(lab: Lab, tag: str) -> None:
    clutch = Clutch(
        fail.s(),
        queue=lab.side,
        on_failure=note_queue.s(tag, "failure"),
        on_death=note_queue.s(tag, "death"),
    )
    assert lab.finish(clutch.engage()) is State.FAILED
    assert lab.notes(tag) == [{"queue": lab.side}] * 2


def test_an_inner_clutch_has_its_own_queue(lab: Lab) -> None:
    inner = Clutch(where.s(), parallel(where.s(), where.s()), where.s(), queue=lab.side)
    run = series(where.s(), parallel(inner, where.s()), where.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    side, main = lab.side, lab.queue
    assert [run.results(at) for at in ("0", "1", "2")] == [main, [side, main], main]
    assert run.results("1.0.1") == [side, side]


def test_an_inner_clutch_inherits_the_queue(lab: Lab) -> None:
    run = Clutch(
        series(where.s(), where.s()), Clutch(where.s(), name="inner"), queue=lab.side
    ).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert {run.results(str(at)) for at in range(3)} == {lab.side}


def test_a_clutch_nested_at_run_time_inherits_the_queue(lab: Lab) -> None:
    run = Clutch(nests.s(where.s(), where.s()), where.s(), queue=lab.side).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert [inner.results("0"), inner.results("1"), run.results("1")] == [lab.side] * 3
    assert queues(lab, run) == queues(lab, inner) == {lab.side}


def test_a_clutch_nested_at_run_time_has_its_own_queue(lab: Lab) -> None:
    run = Clutch(nests.s(where.s(), queue=lab.side), where.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (inner,) = lab.nested(run)
    assert inner.results("0") == lab.side
    assert run.results("1") == lab.queue


def test_what_follows_a_replacement_stays_in_the_queue(lab: Lab) -> None:
    run = Clutch(replace.s(gather.s(1)), where.s(), queue=lab.side).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == [1]
    assert run.results("1") == lab.side
    assert queues(lab, run) == {lab.side}
