"""Runs as trees."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from celery_clutch.compile.record import Held, Meta
from celery_clutch.handle import tree
from celery_clutch.model import graph, plan
from celery_clutch.model.plan import Job
from celery_clutch.model.status import Failure, State
from celery_clutch.stores.base import NOBODY, Execution, Lease, Record

PLAN = plan.series(
    [
        Job("fetch"),
        plan.parallel([Job("resize"), plan.series([Job("scan"), Job("report")])]),
        Job("archive"),
    ]
)
NOW = 1_000_000.0


def failure(address: str, *, attempt: int = 1, final: bool = False, message: str = "no") -> bytes:
    values = Failure(
        address, "task", "id", "OSError", message, "Trace\n  back", attempt, final, "2024-01-01"
    )
    return orjson.dumps(values.to_dict())


def done(**info: Any) -> Execution:
    return Execution(info=orjson.dumps(info))


def build(
    root: plan.Series = PLAN,
    executions: dict[str, Execution] | None = None,
    nested: Any = None,
    **changes: Any,
) -> tree.Tree:
    left = max(root.size - changes.pop("done", 0), 0)
    values: dict[str, Any] = {
        "run": "run-1",
        "meta": Meta(root.size, "", "photos").dumps(),
        "state": State.RUNNING,
        "generation": 0,
        "jobs": root.size,
        "remaining": left,
        "failing": 0,
        "dead": 0,
        "created_at": NOW,
        "updated_at": NOW,
        "ended_at": None,
        **changes,
    }
    return tree.build(root, Record(**values), executions or {}, nested)


def begun(at: float) -> Execution:
    return Execution(Lease("owner.boot.7", started_at=at))


def states(found: tree.Tree) -> dict[str, str]:
    return {node.address: node.state for node in found.walk()}


def shown(line: tree.Line, indent: str = "") -> list[str]:
    lines = [f"{indent}{tree.MARKS.get(line.state, '')} {line.text}".rstrip()]
    return lines + [each for below in line.below for each in shown(below, indent + "  ")]


def test_the_state_of_every_node() -> None:
    executions = {
        "0": done(attempt=2, start=NOW, seconds=0.25),
        "1.0": begun(NOW),
        "1": Execution(info=b""),  # the internal step that ends a parallel
    }
    failures = {"0": failure("0"), "1.1.0": failure("1.1.0")}
    found = build(executions=executions, failures=failures, finished=frozenset("0"))
    assert states(found) == {
        "0": "done",
        "1": "failing",
        "1.0": "running",
        "1.1": "failing",
        "1.1.0": "failing",
        "1.1.1": "waiting",
        "2": "waiting",
    }
    assert found.states() == {k: v for k, v in states(found).items() if k not in ("1", "1.1")}
    assert found.root.states == {"done": 1, "running": 1, "failing": 1, "waiting": 2}


def test_a_cancelled_run() -> None:
    found = build(executions={"0": done()}, state=State.CANCELLED)
    assert states(found) == {**dict.fromkeys(states(found), "cancelled"), "0": "done"}


def test_what_is_known_of_an_attempt() -> None:
    def timing(execution: Execution, failures: dict[str, bytes] | None = None) -> Any:
        return next(build(executions={"0": execution}, failures=failures or {}).walk()).timing()

    assert timing(Execution()) == (None, None, None)
    assert timing(begun(NOW)) == (1, NOW, None)
    assert timing(Execution(), {"0": failure("0", attempt=2)}) == (2, None, None)
    assert timing(begun(NOW), {"0": failure("0", attempt=2)}) == (3, NOW, None)
    assert timing(done(attempt=2, start=NOW, seconds=1.5)) == (2, NOW, 1.5)
    for info in (b"", b"{}", b"[1]", b"nonsense"):
        assert timing(Execution(info=info)) == (None, None, None)


def test_lines() -> None:
    executions = {
        "0": done(attempt=2, start=NOW, seconds=0.25),
        "1.0": begun(NOW - 90),
        "1.1.0": begun(NOW),
    }
    failures = {
        "1.1.0": failure("1.1.0", message="first\nsecond"),
        "2": failure("2", final=True, attempt=3, message="\x1b[31mred"),
        "page 7": failure("page 7", final=True),
    }
    found = build(executions=executions, failures=failures, done=1, failing=1, dead=1)
    assert shown(tree.lines(found, NOW)) == [
        " photos run-1  RUNNING  1 of 5 jobs, 1 failing, 1 dead",
        "  ✓ 0 fetch  0.2 s  attempt 2",
        "  ! 1 parallel  1 waiting, 1 running, 1 failing",
        "    ▸ 1.0 resize  running for 1 min 30 s  @owner",
        "    ! 1.1 series  1 waiting, 1 failing",
        "      ! 1.1.0 scan  running for 0 ms  @owner  attempt 2  "
        "OSError: first (attempt 1; it is retried)",
        "      · 1.1.1 report",
        "  ✗ 2 archive  attempt 3  OSError: \\x1b[31mred",
        "  ✗ page 7  OSError: no",
    ]
    assert tree.lines(found, NOW, traceback=True).below[2].more == "Trace\n  back"


def test_a_wide_parallel_shows_what_is_in_trouble_or_running() -> None:
    wide = plan.series([plan.parallel([Job("a")] * 3000)])
    executions = {f"0.{index}": done() for index in range(2990)}
    executions["0.2991"] = begun(NOW)
    failures = {f"0.{index}": failure(f"0.{index}") for index in (2995, 2996)}
    found = build(wide, executions, failures=failures)
    assert [line.strip() for line in shown(tree.lines(found, NOW))[1:]] == [
        f"! 0 parallel {graph.TIMES} 3,000  2,990 done, 7 waiting, 1 running, 2 failing",
        "! 0.2995 a  OSError: no (attempt 1; it is retried)",
        "! 0.2996 a  OSError: no (attempt 1; it is retried)",
        "▸ 0.2991 a  running for 0 ms  @owner",
        "… and 2,997 more",
    ]
    assert len(shown(tree.lines(found, NOW, wide=3000))) == 3002
    del executions["0.2991"]
    assert len(shown(tree.lines(build(wide, executions), NOW))) == 2


def test_nested_runs_are_inside_the_job_that_waits_for_them() -> None:
    inner = build(plan.series([Job("send")]), run="run-2", meta=Meta(1, "", "letters").dumps())
    held = {"0": Held(b"1", runs=("run-2",)).dumps(), "2": Held(b"1").dumps()}
    found = build(held=held, nested={"0": [inner]})
    assert states(found)["0"] == "running"
    assert shown(tree.lines(found, NOW))[:4] == [
        " photos run-1  RUNNING  0 of 5 jobs",
        "  ▸ 0 fetch",
        "     nested letters run-2  RUNNING  0 of 1 jobs",
        "      · 0 send",
    ]
    nodes = found.to_dict()["nodes"]
    assert [each["id"] for each in nodes[0]["nested"]] == ["run-2"]
    orjson.dumps(found.to_dict())


def test_the_headline_of_a_run_that_was_resumed_and_has_ended() -> None:
    found = build(state=State.SUCCEEDED, generation=2, ended_at=NOW + 61, done=5)
    line = "photos run-1  SUCCEEDED  5 of 5 jobs  resumed 2 times  took 1 min 1 s"
    assert tree.headline(found.status) == line


def test_a_run_that_has_failed_and_still_runs_is_draining() -> None:
    root = plan.series([plan.parallel([Job("a")] * 3)])
    running = {f"0.{index}": begun(NOW) for index in (1, 2)}
    found = build(root, running, state=State.FAILED, dead=1)
    assert "FAILED (draining: 2 running)" in tree.headline(found.status)
    assert found.to_dict()["draining"] == 2
    assert "draining" not in tree.headline(build(root, running).status)


def test_a_job_that_was_given_back_in_a_run_that_was_cancelled_does_not_run() -> None:
    root = plan.series([Job("a")])
    given_back = {"0": Execution(Lease(NOBODY, started_at=NOW))}
    found = build(root, given_back, state=State.CANCELLED)
    (job,) = [node for node in found.walk() if node.kind == "job"]
    assert (job.state, job.host, found.status.draining) == ("cancelled", None, 0)


def test_the_tree_has_every_failure() -> None:
    root = plan.series([plan.parallel([Job("a")] * 30)])
    base = {"task": "a", "task_id": "", "exception": "E", "message": "", "traceback": ""}
    more = {"attempt": 1, "final": True, "at": ""}
    failures = {f"0.{i}": orjson.dumps({**base, **more, "address": f"0.{i}"}) for i in range(30)}
    found = build(root, state=State.FAILED, dead=30, failures=failures)
    assert found.root.states == {"dead": 30}


def test_a_hundred_thousand_jobs() -> None:
    huge = plan.series([plan.parallel([Job("a")] * 100_000)])
    executions = {f"0.{index}": Execution(info=b"") for index in range(99_999)}
    found = build(huge, executions)
    assert found.root.states == {"done": 99_999, "waiting": 1}
    assert len(shown(tree.lines(found, NOW))) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.0999, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86399.9, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert tree.duration(seconds) == text


def test_pace() -> None:
    pace = tree.Pace(window=10)
    pace.add(0, 100)
    assert (pace.rate(), pace.left(200)) == (0, None)
    pace.add(5, 110)
    assert (pace.rate(), pace.left(200)) == (2, 45)
    pace.add(20, 140)
    pace.add(30, 140)  # what was before its window counts no longer
    assert (pace.rate(), pace.left(200)) == (0, None)
    pace.add(31, 100)  # resumed runs do not go backwards, but forgotten ones may
    assert pace.rate() == 0
