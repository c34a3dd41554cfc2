"""What Laravel's batches of jobs promise, as a clutch of one parallel step does it.

There ``then`` is called when all jobs have succeeded, ``catch`` at the first failure, ``finally``
when all jobs are through, and ``allowFailures`` says that a failure does not cancel the batch. Here
those are ``on_success``, ``on_failure`` or ``on_death``, ``on_end``, and ``allow_failures=True``.
"""

from __future__ import annotations

from typing import Any

from integration.app import fail, spread, value
from integration.lab import Runs, handlers

from celery_clutch import Clutch, Failed, State, Status, parallel, series

EVERY = ("on_failure", "on_success", "on_death", "on_end")


def told(lab: Runs, tag: str, kind: str) -> Status:
    """What the one message of this kind said."""
    (status,) = lab.notes(tag, kind)
    return Status.from_dict(status)


def order(lab: Runs, tag: str) -> list[tuple[str, int, int]]:
    """How many jobs were done and dead when which handler was sent."""
    kinds = {kind: lab.notes(tag, kind) for kind in EVERY}
    return [(kind, status["done"], status["dead"]) for kind in EVERY for status in kinds[kind]]


def test_then_and_finally_when_all_have_succeeded(lab: Runs, tag: str) -> None:
    batch = Clutch(parallel(value.s(n) for n in range(3)), name="import", **handlers(tag, *EVERY))
    run = batch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert order(lab, tag) == [("on_success", 3, 0), ("on_end", 3, 0)]
    end = told(lab, tag, "on_end")
    assert (end.name, end.total, end.failure_count) == ("import", 3, 0)


def test_catch_and_finally_when_one_fails(lab: Runs, tag: str) -> None:
    batch = Clutch(parallel(value.s(1), fail.s("broken"), fail.s("too")), **handlers(tag, *EVERY))
    run = batch.engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1, "on_end": 1}, "each once"
    assert told(lab, tag, "on_death").failures[0].message in ("broken", "too")
    assert told(lab, tag, "on_end").state is State.FAILED


def test_allow_failures(lab: Runs, tag: str) -> None:
    steps = parallel(value.s(1), fail.s("broken"), value.s(3), allow_failures=True)
    run = Clutch(steps, **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1, "on_end": 1}
    assert told(lab, tag, "on_failure").failures[0].message == "broken", "caught all the same"
    end = told(lab, tag, "on_end")
    assert (end.state, end.done, end.total) == (State.SUCCEEDED, 3, 3)
    assert run.get(timeout=30) == [1, Failed("0.1", "ValueError", "broken"), 3]


def test_allow_failures_where_all_fail(lab: Runs, tag: str) -> None:
    steps = parallel((fail.s(str(n)) for n in range(3)), allow_failures=True)
    run = Clutch(steps, **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1, "on_end": 1}
    assert not any(run.get())


def test_a_job_adds_to_its_batch(lab: Runs, tag: str) -> None:
    """``$this->batch()->add(...)``: what is added counts, and ``then`` waits for it."""
    loads = spread.s("loaded", *(value.s(n) for n in range(4)))
    run = Clutch(parallel(loads, value.s("x")), **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert order(lab, tag) == [("on_success", 6, 0), ("on_end", 6, 0)]
    assert run.get(timeout=30) == ["loaded", "x", *range(4)]


def test_what_was_added_fails(lab: Runs, tag: str) -> None:
    for allow, state in ((False, State.FAILED), (True, State.SUCCEEDED)):
        steps: Any = parallel(spread.s("a", fail.s()), value.s("b"), allow_failures=allow)
        run = Clutch(steps, **handlers(f"{tag} {allow}", *EVERY)).engage()
        assert lab.finish(run) is state
        assert lab.kinds(f"{tag} {allow}")["on_death"] == (not allow)


def test_a_chain_in_a_batch(lab: Runs, tag: str) -> None:
    """An array in a batch is a chain: its jobs run one after another, and stop at a failure."""
    chains = [series(value.s(1), value.s(2)), series(fail.s(), value.s("never"))]
    run = Clutch(parallel(chains, allow_failures=True), **handlers(tag, *EVERY)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert not lab.ran(run)["0.1.1"]
    assert run.get(timeout=30) == [2, Failed("0.1.0", "ValueError", "broken")]


def test_a_batch_of_nothing_and_batches_in_a_chain(lab: Runs) -> None:
    steps = [parallel(value.s(1), fail.s(), allow_failures=1), parallel([]), parallel(value.s(3))]
    run = Clutch(*steps).engage()
    assert run.get(timeout=30) == [3]
