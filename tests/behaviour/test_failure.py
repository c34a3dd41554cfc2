"""When handlers are sent: on_failure at the first failed attempt, once per step, and the others once."""

from __future__ import annotations

import pytest
from integration.app import (
    autoretry,
    bad_note,
    exhaust,
    fail,
    hold,
    note,
    plain_retry,
    retry,
    retry_as,
    seen,
    value,
)
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, State, Status, parallel, series


@pytest.mark.not_eager
@pytest.mark.parametrize("task", [retry, plain_retry], ids=["job", "plain"])
def test_on_failure_is_sent_while_retries_go_on(lab: Runs, tag: str, task: object) -> None:
    clutch = Clutch(task.s(1, "x", tag), seen.s("end"), **handlers(tag))  # type: ignore[attr-defined]
    run = clutch.engage()
    (told,) = until(lambda: lab.notes(tag), "for on_failure")
    # The second attempt waits for the flag, so this is before it has succeeded.
    assert run.state is State.RUNNING
    assert run.progress().failing == 1
    status = Status.from_dict(told)
    assert (status.id, status.state, status.step) == (run.id, State.RUNNING, "0")
    (failure,) = status.failures
    assert (failure.attempt, failure.final, failure.exception) == (1, False, "ValueError")
    assert (failure.message, failure.task) == ("not yet", task.name)  # type: ignore[attr-defined]
    assert "ValueError" in failure.traceback
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["end", ["x"]]]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}
    assert run.failures() == []


def test_several_failed_attempts_of_a_step_are_told_of_once(lab: Runs, tag: str) -> None:
    run = Clutch(retry.s(4, "x"), value.s("y"), **handlers(tag)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}
    assert lab.ran(run) == {"0": 5, "1": 1}


@pytest.mark.parametrize("how", ["bare", "raised by hand", "eta", "delayed"])
def test_however_a_retry_is_asked_for(lab: Runs, tag: str, how: str) -> None:
    run = Clutch(retry_as.s(how), seen.s(), **handlers(tag)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[how]]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}
    assert lab.ran(run) == {"0": 2, "1": 1}
    assert run.record().due == {}
    (failure,) = lab.notes(tag, "on_failure")[0]["failures"]
    assert failure["exception"] == ("celery.exceptions.Retry" if how == "bare" else "ValueError")
    assert "in retry_as" in failure["traceback"]


def test_a_job_that_asks_for_a_retry_and_returns(lab: Runs, tag: str) -> None:
    """The attempt has failed; what it returns is the result all the same."""
    run = Clutch(retry_as.s("kept on"), seen.s(), **handlers(tag)).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [["kept on"]]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}
    assert run.status().failing == 0
    assert lab.ran(run) == {"0": 1, "1": 1}


def test_every_failing_step_is_told_of(lab: Runs, tag: str) -> None:
    clutch = Clutch(**handlers(tag))
    clutch << retry.s(1, "a") << value.s("b") << autoretry.s(True, "c")
    clutch << parallel(retry.s(2), retry.s(1), value.s("d")) << plain_retry.s(1)
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    told = lab.notes(tag, "on_failure")
    assert sorted(each["step"] for each in told) == ["0", "2", "3", "4"]
    assert lab.kinds(tag)["on_success"] == 1


@pytest.mark.not_eager
def test_a_parallel_step_is_told_of_when_all_members_have_settled(lab: Runs, tag: str) -> None:
    clutch = Clutch(**handlers(tag))
    with clutch.parallel():
        clutch << retry.s(1, "healed") << hold.s(tag, "held")
    clutch << seen.s("end")
    run = clutch.engage()
    until(lambda: run.progress().done == 1, "for the first job to heal")
    until(lambda: lab.ran(run) == {"0.0": 2, "0.1": 1}, "for the second job to begin")
    assert lab.sent(run)["n"] == 3
    assert not lab.kinds(tag), "the second member has not settled"
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    (told,) = lab.notes(tag, "on_failure")
    assert told["step"] == "0"
    assert [each["address"] for each in told["failures"]] == ["0.0"]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_a_parallel_step_is_told_of_with_all_its_failures(lab: Runs, tag: str) -> None:
    clutch = Clutch(
        value.s(0),
        parallel(fail.s("one"), retry.s(1), series(value.s(1), fail.s("two")), value.s(2)),
        value.s(3),
        **handlers(tag),
    )
    run = clutch.engage()
    assert lab.finish(run) is State.FAILED
    (told,) = lab.notes(tag, "on_failure")
    assert told["step"] == "1"
    failures = {each["address"]: each["message"] for each in told["failures"]}
    assert failures == {"1.0": "one", "1.1": "not yet", "1.2.1": "two"}
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert run.status().dead == 2
    assert not lab.ran(run)["2"]


def test_a_wide_step_is_told_of_once(lab: Runs, tag: str) -> None:
    clutch = Clutch(**handlers(tag))
    with clutch.parallel():
        for i in range(150):
            clutch << (retry.s(1, i) if i % 10 == 3 else value.s(i))
    clutch << seen.s()
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [list(range(150))]
    assert lab.kinds(tag) == {"on_failure": 1, "on_success": 1}


def test_death_is_told_of_once_however_many_die(lab: Runs, tag: str) -> None:
    run = Clutch(parallel(fail.s(i) for i in range(20)), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert run.progress().dead == 20


def test_an_inner_clutch_has_handlers_of_its_own(lab: Runs, tag: str) -> None:
    inner = Clutch(retry.s(1), value.s(1), **handlers(f"{tag} inner"))
    run = Clutch(parallel(inner, value.s(2)), retry.s(1), **handlers(f"{tag} outer")).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.kinds(f"{tag} inner") == {"on_failure": 1, "on_success": 1}
    assert lab.kinds(f"{tag} outer") == {"on_failure": 1, "on_success": 1}
    assert [each["step"] for each in lab.notes(f"{tag} outer", "on_failure")] == ["1"]
    assert [each["step"] for each in lab.notes(f"{tag} inner", "on_failure")] == ["0.0.0"]


def test_an_inner_clutch_inherits_what_it_does_not_set(lab: Runs, tag: str) -> None:
    inner = Clutch(value.s(1), exhaust.s(), on_success=note.s(tag, "inner success"))
    run = Clutch(value.s(0), inner, value.s(2), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_the_death_of_an_inner_clutch_is_its_own_handlers(lab: Runs, tag: str) -> None:
    inner = Clutch(fail.s(), **handlers(f"{tag} inner", "on_death"))
    run = Clutch(value.s(0), inner, **handlers(f"{tag} outer", "on_death", "on_failure")).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(f"{tag} inner") == {"on_death": 1}
    assert lab.kinds(f"{tag} outer") == {"on_failure": 1}


@pytest.mark.parametrize("handler", ["broken", "unknown", "bad arguments", "unknown queue"])
def test_a_handler_that_fails_harms_nothing(lab: Runs, tag: str, handler: str) -> None:
    signature = {
        "broken": bad_note.s(tag, "told"),
        "unknown": lab.app.signature("it.no_such_handler", args=(tag,)),
        "bad arguments": note.s(),
        "unknown queue": note.s(tag, "told").set(queue="no such", exchange="no such"),
    }[handler]
    kinds = dict.fromkeys(("on_failure", "on_death", "on_success"), signature)
    healed = Clutch(retry.s(1, 1), parallel(retry.s(1, 2), value.s(3)), seen.s(), **kinds).engage()
    dead = Clutch(value.s(1), parallel(fail.s(), value.s(2)), value.s(3), **kinds).engage()
    assert lab.finish(healed) is State.SUCCEEDED
    assert healed.get(timeout=1) == [[2, 3]]
    assert dead.state is State.FAILED
    assert lab.ran(dead) == {"0": 1, "1.0": 1, "1.1": 1}


def test_handlers_get_their_own_arguments_behind_the_status(lab: Runs, tag: str) -> None:
    clutch = Clutch(value.s(1), name="named", tags=["a", "b"], on_success=note.s(tag, kind="kw"))
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    (told,) = lab.notes(tag, "kw")
    status = Status.from_dict(told)
    assert (status.name, status.tags, status.state) == ("named", ("a", "b"), State.SUCCEEDED)
    assert (status.total, status.done, status.step, status.parent) == (1, 1, None, None)
    assert status.created_at <= (status.ended_at or "") <= status.updated_at


def test_an_immutable_handler_gets_its_own_arguments_alone(lab: Runs, tag: str) -> None:
    run = Clutch(fail.s(), on_failure=note.si("alone", tag, "immutable")).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.notes(tag, "immutable") == ["alone"]
