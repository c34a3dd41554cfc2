"""Data that jobs share, and sequences, on real workers."""

from __future__ import annotations

import pytest
from integration.app import (
    append,
    change,
    change_and_replace,
    drop,
    fail_unless,
    nests_sharing,
    plain,
    shared,
    spoil,
    spoil_and_replace,
    value,
)
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, Sequence, State, parallel, series
from celery_clutch.errors import ClutchFailed


def test_steps_run_in_order_and_see_what_those_before_changed(lab: Runs, tag: str) -> None:
    class Form(Sequence):
        steps = [
            change.s("message", {"text": "hi"}),
            parallel(change.s("mail", True), change.s("sms", True), plain.s(1)),
            append.s("end"),
            shared,
        ]
        on_success = lab.tasks.note.s(tag, "on_success")

    run = Form(name="Joel", list={"items": []}).start()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.order(run)[0] == "0"
    assert lab.order(run)[-2:] == ["2", "3"]
    final = {
        "name": "Joel",
        "list": {"items": ["end"]},
        "message": {"text": "hi"},
        "mail": True,
        "sms": True,
    }
    assert run.get(timeout=1) == [final]
    assert run.data() == final
    assert lab.kinds(tag) == {"on_success": 1}


def test_a_failing_step_stops_the_sequence_until_its_retry_succeeds(lab: Runs, tag: str) -> None:
    class Shaky(Sequence):
        steps = [change.s("a", 1), append.s("x", 2), change.s("b", 2)]
        on_failure = lab.tasks.note.s(tag, "on_failure")

    run = Shaky(list={"items": ["first"]}).start()
    assert lab.finish(run) is State.SUCCEEDED
    assert lab.order(run) == ["0", "1", "1", "1", "2"]
    assert run.results("1") == ["first", "x"], "a failed attempt leaves no trace"
    assert run.data() == {"list": {"items": ["first", "x"]}, "a": 1, "b": 2}
    assert lab.kinds(tag) == {"on_failure": 1}


def test_a_dead_step_leaves_no_trace_and_resume_goes_on(lab: Runs, tag: str) -> None:
    steps = (append.s("one"), fail_unless.s(tag), append.s("two"))
    run = Clutch(*steps, data={"list": {"items": []}}).engage()
    assert lab.finish(run) is State.FAILED
    assert run.data() == {"list": {"items": ["one"]}}
    lab.raise_flag(tag)
    assert run.resume()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.data() == {"list": {"items": ["one", "two"]}}


@pytest.mark.not_eager
def test_branches_merge_by_key_and_the_last_to_complete_wins(lab: Runs, tag: str) -> None:
    late = change.s("same", "late", flag=tag)
    branches = [change.s("same", "early"), *(change.s(f"own {n}", n) for n in range(20))]
    run = Clutch(parallel(late, *branches), shared.s(), data={"same": "", "kept": 1}).engage()
    until(lambda: run.status().done == 21)
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    expected = {"same": "late", "kept": 1, **{f"own {n}": n for n in range(20)}}
    assert run.get(timeout=1) == [expected]


def test_a_key_can_be_taken_out(lab: Runs) -> None:
    run = series(drop.s("gone"), shared.s())
    run.data = {"gone": [1], "stays": None}
    found = run.engage()
    assert lab.finish(found) is State.SUCCEEDED
    assert found.results("0") == [1]
    assert found.data() == found.get(timeout=1)[0] == {"stays": None}


def test_data_that_cannot_be_stored_fails_the_job(lab: Runs, tag: str) -> None:
    run = Clutch(spoil.s(), value.s(1), data={"before": 1}, **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    with pytest.raises(ClutchFailed, match=r"NonJSONData: data\['bad'\]"):
        run.get(timeout=1)
    assert run.data() == {"before": 1}
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}


def test_data_that_cannot_be_stored_fails_a_job_that_is_replaced(lab: Runs, tag: str) -> None:
    run = Clutch(spoil_and_replace.s(value.s(1)), value.s(2), **handlers(tag)).engage()
    assert lab.finish(run) is State.FAILED
    assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
    assert lab.ran(run) == {"0": 1}


def test_a_job_that_is_replaced_keeps_its_changes(lab: Runs) -> None:
    run = Clutch(change_and_replace.s(value.s("instead")), shared.s(), data={"a": 1}).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.results("0") == "instead"
    assert run.get(timeout=1) == [{"a": 1, "replaced": True}]


def test_a_nested_clutch_has_data_of_its_own(lab: Runs) -> None:
    inner = change.s("inner", 1), shared.s()
    run = Clutch(nests_sharing.s(*inner, shares=False, own={"x": 0}), shared.s(), data={"a": 1})
    found = run.engage()
    assert lab.finish(found) is State.SUCCEEDED
    (nested,) = lab.nested(found)
    assert nested.data() == {"x": 0, "inner": 1}
    assert found.get(timeout=1) == [{"a": 1, "nesting": "changed after engage"}]


def test_a_nested_clutch_shares_data_it_is_given(lab: Runs) -> None:
    inner = (shared.s(), drop.s("gone"), append.s("in", 1), change.s("b", 1))
    run = Clutch(
        nests_sharing.s(*inner),
        shared.s(),
        data={"a": 1, "gone": 2, "list": {"items": ["out"]}},
    ).engage()
    assert lab.finish(run) is State.SUCCEEDED
    (nested,) = lab.nested(run)
    started = {"a": 1, "gone": 2, "list": {"items": ["out"]}, "nesting": "changed after engage"}
    assert nested.results("0") == started, "it starts with the data as the job has left it"
    after = {"a": 1, "b": 1, "list": {"items": ["out", "in"]}, "nesting": "changed after engage"}
    assert run.get(timeout=1) == [after], "what it changed is saved with the job's result"
    assert run.results("0") == started


@pytest.mark.not_eager
def test_what_a_nested_clutch_does_not_change_is_not_set_back(lab: Runs, tag: str) -> None:
    nesting = nests_sharing.s(change.s("inner", 1, flag=tag))
    run = Clutch(parallel(nesting, change.s("a", 2)), shared.s(), data={"a": 1}).engage()
    until(lambda: lab.nested(run) and run.data()["a"] == 2)
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [{"a": 2, "inner": 1, "nesting": "changed after engage"}]
