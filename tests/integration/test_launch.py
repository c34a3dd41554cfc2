"""Clutches started by a message, on real workers."""

from __future__ import annotations

import json
import uuid

import pytest
from celery import chain, chord, group

from celery_clutch import Clutch, ClutchResult, State, parallel

from .app import add, fail, gather, plain, retry, seen, total, value
from .lab import Lab, handlers, until


def build(tag: str) -> Clutch:
    """1, then 1 + 1 beside 1 + 2, then their sum."""
    return Clutch(value.s(1), parallel(total.s(1), total.s(2)), total.s(), **handlers(tag))


def test_a_message_starts_a_clutch(lab: Lab, tag: str) -> None:
    clutch = Clutch(
        retry.s(1, 1), plain.s(2), seen.s(), name="nightly", tags=["t"], data={"a": 1}, expires=60
    )
    text = clutch.to_json()
    for payload in (text, json.loads(text)):
        sent = lab.app.send_task("celery_clutch.launch", (payload,))
        run = ClutchResult(sent.get(timeout=30), lab.app)
        assert run.id == sent.id
        assert lab.finish(run) is State.SUCCEEDED
        assert run.get(timeout=1) == [[2]]
        status = run.status()
        assert (status.name, status.tags, status.total) == ("nightly", ("t",), 3)
        assert run.data() == {"a": 1}


def test_a_clutch_written_by_hand(lab: Lab, tag: str) -> None:
    clutch = {
        "clutch": {
            "series": [
                {"task": "it.value", "args": [5]},
                {
                    "parallel": [{"task": "it.total", "args": [n]} for n in range(5)],
                    "limit": 2,
                },
                {"task": "it.total", "kwargs": {"more": 1}, "options": {"queue": lab.side}},
            ]
        },
        "name": "by hand",
    }
    run_id = f"hand-{tag}"
    for _ in range(2):  # a message that comes twice starts one run
        sent = lab.app.send_task("celery_clutch.launch", (clutch,), {"id": run_id})
        assert sent.get(timeout=30) == run_id
    run = ClutchResult(run_id, lab.app)
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [36]
    assert set(lab.ran(run).values()) == {1}


def test_as_a_step_of_other_canvas_it_waits(lab: Lab, tag: str) -> None:
    launch = lab.app.tasks["celery_clutch.launch"]
    text = build(tag).to_json()
    wide = Clutch(parallel(value.s(i) for i in range(150))).to_json()
    in_chain = chain(launch.si(text), add.s([0])).apply_async()
    in_chord = chord([launch.si(text), launch.si(wide), value.si(1)], gather.s()).apply_async()
    empty = chain(launch.si(Clutch().to_json()), add.s([0])).apply_async()
    assert in_chain.get(timeout=30) == [5, 0]
    ((first, second, _),) = in_chord.get(timeout=60)
    assert (first, second) == ([5], list(range(150)))
    assert empty.get(timeout=30) == [0]
    lab.settle()
    assert lab.kinds(tag) == {"on_success": 2}


def test_what_waits_for_a_clutch_that_dies_does_not_run(lab: Lab, tag: str) -> None:
    launch = lab.app.tasks["celery_clutch.launch"]
    run_id = str(uuid.uuid4())
    dying = Clutch(fail.s(), value.s(), **handlers(tag)).to_json()
    after = value.si("after").set(task_id=f"after-{run_id}")
    chain(launch.si(dying, id=run_id), after).apply_async()
    run = ClutchResult(run_id, lab.app)
    until(lambda: lab.kinds(tag)["on_death"])
    lab.settle()
    assert run.state is State.FAILED
    assert not lab.app.AsyncResult(f"after-{run_id}").successful()


def test_a_group_of_launches(lab: Lab, tag: str) -> None:
    launch = lab.app.tasks["celery_clutch.launch"]
    started = group(launch.si(build(tag).to_json()) for _ in range(3)).apply_async()
    runs = [ClutchResult(run, lab.app) for run in started.get(timeout=30)]
    assert len({run.id for run in runs}) == 3
    assert [run.get(timeout=30) for run in runs] == [[5]] * 3


@pytest.mark.parametrize("bad", ["{}", "nonsense", '{"clutch": {"task": 1}}', '{"clutch": {}}'])
def test_what_is_no_clutch_is_refused(lab: Lab, bad: str) -> None:
    sent = lab.app.send_task("celery_clutch.launch", (bad,))
    with pytest.raises(Exception, match="not the JSON of a clutch"):
        sent.get(timeout=30)
