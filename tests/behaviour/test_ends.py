"""However a job ends: the handlers are sent once, the run ends in the right state, nothing hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from integration.app import (
    add,
    autoretry,
    exhaust,
    fail,
    fail_unless,
    gather,
    ignore,
    large,
    needs,
    plain,
    plain_exhaust,
    plain_fail,
    plain_ignore,
    plain_reject,
    plain_retry,
    plain_set,
    reject,
    replace,
    retry,
    total,
    unserialisable,
    value,
)
from integration.lab import Runs
from integration.places import ERRORS, PLACES, check, check_nested, engage

from celery_clutch import State, series

# How a job can die: what to send, and the exception recorded for it.
QUICK: dict[str, tuple[Callable[[Runs], Any], str]] = {
    "raises": (lambda lab: fail.s(), "ValueError"),
    "exhausts its retries": (lambda lab: exhaust.s(), "ValueError"),
    "exhausts its autoretries": (lambda lab: autoretry.s(False), "KeyError"),
    "is unknown": (
        lambda lab: lab.app.signature("it.no_such_task"),
        "celery.exceptions.NotRegistered",
    ),
    "ignores itself": (lambda lab: ignore.s(), f"{ERRORS}.JobLost"),
    "rejects itself": (lambda lab: reject.s(), f"{ERRORS}.JobLost"),
    "requeues itself for ever": (lambda lab: reject.s(True), f"{ERRORS}.JobLost"),
    "replaces itself in vain": (lambda lab: replace.s(fail.s()), "ValueError"),
    "replaces itself by a failing chain": (
        lambda lab: replace.s(chain(add.s(1, 1), fail.si(), add.s(1))),
        "ValueError",
    ),
    "replaces itself by a failing group": (
        lambda lab: replace.s(group(add.s(1, 1), fail.s())),
        "ValueError",
    ),
    "returns a set": (lambda lab: unserialisable.s(), f"{ERRORS}.NonJSONResult"),
    "returns too much": (lambda lab: large.s(), f"{ERRORS}.ResultTooLarge"),
    "has bad arguments": (lambda lab: needs.s(1, 2, 3), "TypeError"),
    "raises, plain": (lambda lab: plain_fail.s(), "ValueError"),
    "exhausts its retries, plain": (lambda lab: plain_exhaust.s(), "ValueError"),
    "ignores itself, plain": (lambda lab: plain_ignore.s(), f"{ERRORS}.JobLost"),
    "rejects itself, plain": (lambda lab: plain_reject.s(), f"{ERRORS}.JobLost"),
    "returns no JSON, plain": (lambda lab: plain_set.s(), f"{ERRORS}.NonJSONResult"),
}
TWO_ATTEMPTS = {
    "exhausts its retries",
    "exhausts its autoretries",
    "exhausts its retries, plain",
}


@pytest.mark.parametrize("end", QUICK)
def test_a_job(lab: Runs, end: str) -> None:
    victim, exception = QUICK[end]
    everywhere(lab, victim(lab), exception, attempts=2 if end in TWO_ATTEMPTS else 1)


@pytest.mark.not_eager
def test_a_job_that_has_expired(lab: Runs) -> None:
    everywhere(lab, value.s().set(expires=-1), "celery.exceptions.TaskRevokedError")


def everywhere(lab: Runs, victim: Any, exception: str, attempts: int = 1) -> None:
    """Have *victim* end, wherever it may stand."""
    found = engage(lab, victim)
    lab.settle()
    for name, place in PLACES.items():
        check(found[name], exception, place, attempts)
    check_nested(found["nested"], exception)


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        (unserialisable, ["job 0 ", "$['inner'][1]"]),
        (large, ["200,002 bytes", "100,000"]),
    ],
)
def test_a_result_that_cannot_be_stored_is_explained(
    lab: Runs, victim: Any, words: list[str]
) -> None:
    run = series(victim.s()).engage()
    lab.settle()
    (failure,) = run.failures()
    assert all(word in failure.message for word in words), failure.message


def test_a_replacement_that_has_failed_runs_again_after_a_resume(lab: Runs, tag: str) -> None:
    run = series(replace.s(fail_unless.s(tag, 5)), total.s(1)).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [6]


# --- ends that are none ---------------------------------------------------------------------

# What looks like an end and is not: what to send, the value of the job, and whether on_failure fires.
HEALED: dict[str, tuple[Callable[[], Any], Any, bool]] = {
    "retry": (lambda: retry.s(2, "x"), "x", True),
    "autoretry": (lambda: autoretry.s(True, "x"), "x", True),
    "retry, plain": (lambda: plain_retry.s(2, "x"), "x", True),
    "replaced by a task": (lambda: replace.s(add.s(1, 2)), 3, False),
    "replaced by a job": (lambda: replace.s(value.s("x")), "x", False),
    "replaced by a plain task": (lambda: replace.s(plain.s("x")), "x", False),
    "replaced by a chain": (lambda: replace.s(chain(add.s(1, 2), add.s(3))), 6, False),
    "replaced by a group": (lambda: replace.s(group(add.s(1, 2), add.s(3, 4))), [3, 7], False),
    "replaced by a chord": (
        lambda: replace.s(chord([add.s(1, 2), add.s(3, 4)], gather.s("end"))),
        [[3, 7], "end"],
        False,
    ),
    "replaced twice": (lambda: replace.s(replace.s(value.s("x"))), "x", False),
    "replaced by what retries": (lambda: replace.s(retry.s(1, "x")), "x", False),
}


def in_order(value: Any) -> Any:
    """*value* with numbers sorted: Celery's groups are not always in order inside a chord (5.3 to 5.5)."""
    if not isinstance(value, list):
        return value
    return sorted(map(in_order, value), key=str)


@pytest.mark.parametrize("end", HEALED)
def test_a_job_that_heals(lab: Runs, end: str) -> None:
    victim, result, fails = HEALED[end]
    found = engage(lab, victim())
    lab.settle()
    for name, outcome in found.items():
        run = outcome.run
        assert run.state is State.SUCCEEDED
        assert lab.kinds(outcome.tag) == {"on_success": 1} | ({"on_failure": 1} if fails else {})
        assert run.failures() == []
        where, at = (outcome.nested, "0") if name == "nested" else (run, PLACES[name].at)
        assert in_order(where.results(at)) == in_order(result)
        assert run.status().done == run.status().total
