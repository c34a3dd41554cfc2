"""Runs as trees."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from celery_clutch.compile.record import Held, Meta
from celery_clutch.handle import lines, tree, words
from celery_clutch.handle.decided import NOTHING, Decided
from celery_clutch.handle.lines import lines as draw_lines
from celery_clutch.model import graph, plan
from celery_clutch.model.absent import Failed
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
    known: Decided = NOTHING,
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
    return tree.build(root, Record(**values), executions or {}, nested, known)


def begun(at: float) -> Execution:
    return Execution(Lease("owner.boot.7", started_at=at))


def states(found: tree.Tree) -> dict[str, str]:
    return {node.address: node.state for node in found.walk()}


def shown(line: lines.Line, indent: str = "") -> list[str]:
    found = [f"{indent}{lines.MARKS.get(line.state, '')} {line.text}".rstrip()]
    return found + [each for below in line.below for each in shown(below, indent + "  ")]


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
    assert shown(draw_lines(found, NOW)) == [
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
    assert draw_lines(found, NOW, traceback=True).below[2].more == "Trace\n  back"


def test_a_wide_parallel_shows_what_is_in_trouble_or_running() -> None:
    wide = plan.series([plan.parallel([Job("a")] * 3000)])
    executions = {f"0.{index}": done() for index in range(2990)}
    executions["0.2991"] = begun(NOW)
    failures = {f"0.{index}": failure(f"0.{index}") for index in (2995, 2996)}
    found = build(wide, executions, failures=failures)
    assert [line.strip() for line in shown(draw_lines(found, NOW))[1:]] == [
        f"! 0 parallel {graph.TIMES} 3,000  2,990 done, 7 waiting, 1 running, 2 failing",
        "! 0.2995 a  OSError: no (attempt 1; it is retried)",
        "! 0.2996 a  OSError: no (attempt 1; it is retried)",
        "▸ 0.2991 a  running for 0 ms  @owner",
        "… and 2,997 more",
    ]
    assert len(shown(draw_lines(found, NOW, wide=3000))) == 3002
    del executions["0.2991"]
    assert len(shown(draw_lines(build(wide, executions), NOW))) == 2


def test_nested_runs_are_inside_the_job_that_waits_for_them() -> None:
    inner = build(plan.series([Job("send")]), run="run-2", meta=Meta(1, "", "letters").dumps())
    held = {"0": Held(b"1", runs=("run-2",)).dumps(), "2": Held(b"1").dumps()}
    found = build(held=held, nested={"0": [inner]})
    assert states(found)["0"] == "running"
    assert shown(draw_lines(found, NOW))[:4] == [
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
    assert words.headline(found.status) == line


def test_a_run_that_has_failed_and_still_runs_is_draining() -> None:
    root = plan.series([plan.parallel([Job("a")] * 3)])
    running = {f"0.{index}": begun(NOW) for index in (1, 2)}
    found = build(root, running, state=State.FAILED, dead=1)
    assert "FAILED (draining: 2 running)" in words.headline(found.status)
    assert found.to_dict()["draining"] == 2
    assert "draining" not in words.headline(build(root, running).status)


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
    assert len(shown(draw_lines(found, NOW))) == 2


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
    assert words.duration(seconds) == text


def test_pace() -> None:
    pace = words.Pace(window=10)
    pace.add(0, 100)
    assert (pace.rate(), pace.left(200)) == (0, None)
    pace.add(5, 110)
    assert (pace.rate(), pace.left(200)) == (2, 45)
    pace.add(20, 140)
    pace.add(30, 140)  # what was before its window counts no longer
    assert (pace.rate(), pace.left(200)) == (0, None)
    pace.add(31, 100)  # resumed runs do not go backwards, but forgotten ones may
    assert pace.rate() == 0


# --- what is decided while a run runs -----------------------------------------------------------

CHOICE = plan.Choose(
    Job("route"),
    (('"eu"', plan.series([Job("ship"), Job("bill")])), ('"us"', Job("fly"))),
    Job("drop"),
)
BRANCH = plan.series([Job("resize"), Job("store")])


def test_an_option_that_was_not_chosen_is_skipped() -> None:
    root = plan.series([CHOICE, Job("end")])
    assert set(states(build(root)).values()) == {"waiting"}
    known = Decided(values={"0.0": "us"})
    found = build(root, {"0.0": done(), "0.2": begun(NOW)}, known=known)
    assert states(found) == {
        "0": "running",
        "0.0": "done",
        "0.1": "skipped",
        "0.1.0": "skipped",
        "0.1.1": "skipped",
        "0.2": "running",
        "0.3": "skipped",
        "1": "waiting",
    }
    assert [node.key for node in found.root.below[0].below] == ["", "eu", "us", "else"]
    assert shown(draw_lines(found, NOW))[1:7] == [
        "  ▸ 0 choose  1 done, 3 skipped, 1 running",
        "    ✓ 0.0 route",
        "    ○ eu: 0.1 series  2 skipped",
        "      ○ 0.1.0 ship",
        "      ○ 0.1.1 bill",
        "    ▸ us: 0.2 fly  running for 0 ms  @owner",
    ]


@pytest.mark.parametrize(("value", "state"), [(1, "waiting"), ([], "skipped")])
def test_a_step_that_runs_only_when_a_task_says_so(value: Any, state: str) -> None:
    root = plan.series([plan.Choose(Job("paid"), (("true", Job("refund")),), truth=True)])
    found = build(root, {"0.0": done()}, known=Decided(values={"0.0": value}))
    assert states(found)["0.1"] == state
    assert found.root.below[0].kind == "when"


def test_a_map_has_a_template_and_then_its_branches() -> None:
    root = plan.series([Job("list"), plan.Map(BRANCH, name="all")])
    found = build(root)
    assert list(states(found)) == ["0", "1", "1.%", "1.%.0", "1.%.1"]
    executions = {"0": done(), "1.1.0": done(), "1.1.1": begun(NOW)}
    found = build(root, executions, known=Decided(widths={"1": 2}))
    assert states(found) == {
        "0": "done",
        "1": "running",
        "1.0": "waiting",
        "1.0.0": "waiting",
        "1.0.1": "waiting",
        "1.1": "running",
        "1.1.0": "done",
        "1.1.1": "running",
    }
    node = found.root.below[1]
    assert (node.kind, node.name) == ("map", "all")
    empty = build(root, {"0": done()}, known=Decided(widths={"1": 0}))
    assert empty.root.below[1].below == () and empty.root.state == "done"


def test_maps_in_a_map_have_widths_of_their_own() -> None:
    root = plan.series([Job("list"), plan.Map(plan.series([Job("list"), plan.Map(Job("a"))]))])
    found = build(root, known=Decided(widths={"1": 2, "1.1.1": 2}))
    assert list(states(found)) == [
        *("0", "1", "1.0", "1.0.0", "1.0.1", "1.0.1.%"),
        *("1.1", "1.1.0", "1.1.1", "1.1.1.0", "1.1.1.1"),
    ]


def test_a_wide_map_shows_what_is_in_trouble() -> None:
    root = plan.series([Job("list"), plan.Map(Job("a"), allow=True)])
    executions = {f"1.{index}": done() for index in range(30)} | {"0": done(), "1.3": begun(NOW)}
    del executions["1.7"]
    known = Decided(widths={"1": 40}, given_up={"1.7": Failed("1.7", "OSError", "no")})
    found = build(root, executions, known=known)
    assert shown(draw_lines(found, NOW))[2:] == [
        f"  ▸ 1 map {graph.TIMES} 40  28 done, 1 tolerated, 10 waiting, 1 running",
        "    ~ 1.7 a  OSError: no",
        "    ▸ 1.3 a  running for 0 ms  @owner",
        "     … and 38 more",
    ]


def test_what_is_left_of_a_branch_that_was_given_up_is_skipped_when_the_others_are_done() -> None:
    root = plan.series([plan.parallel([BRANCH, BRANCH], allow=1), Job("end")])
    failures = {"0.0.0": failure("0.0.0", final=True)}
    known = Decided(given_up={"0.0": Failed("0.0.0", "OSError", "no")})
    common: Any = {"failures": failures, "tolerated": frozenset(failures), "known": known}
    found = build(root, {"0.1.0": done()}, **common)
    assert states(found) == {
        "0": "running",
        "0.0": "tolerated",
        "0.0.0": "tolerated",
        "0.0.1": "waiting",
        "0.1": "running",
        "0.1.0": "done",
        "0.1.1": "waiting",
        "1": "waiting",
    }
    found = build(root, {"0.1.0": done(), "0.1.1": done()}, **common)
    assert states(found) == {
        **dict.fromkeys(("0.1", "0.1.0", "0.1.1"), "done"),
        **dict.fromkeys(("0", "0.0", "0.0.0"), "tolerated"),
        "0.0.1": "skipped",
        "1": "waiting",
    }
    assert found.status.tolerated == 1


def test_a_death_that_the_outer_parallel_tolerates_leaves_the_inner_one_open() -> None:
    inner = plan.parallel([Job("a"), Job("b"), Job("c")], allow=1)
    root = plan.series([plan.parallel([plan.series([inner, Job("d")]), Job("e")], allow=1)])
    dead = {at: failure(at, final=True) for at in ("0.0.0.0", "0.0.0.1")}
    one, other = (Failed(at, "OSError", "no") for at in dead)
    known = Decided(given_up={"0.0.0.0": one, "0.0": other})
    found = build(root, failures=dead, tolerated=frozenset(dead), known=known)
    assert states(found)["0.0.0.2"] == "waiting"
    assert states(build(root, {"0.1": done()}, failures=dead, known=known))["0.0.0.2"] == "skipped"


def test_branches_that_need_not_begin_are_skipped() -> None:
    root = plan.series([plan.parallel([BRANCH, BRANCH, BRANCH], need=1), Job("end")])
    executions = {"0.0.0": done(), "0.0.1": done(), "0.1.0": done()}
    found = states(build(root, executions))
    assert (found["0.1.1"], found["0.2.0"], found["0.2.1"]) == ("waiting", "skipped", "skipped")
    found = states(build(root, executions, state=State.SUCCEEDED))
    assert (found["0.1.1"], found["1"]) == ("skipped", "skipped")


def test_what_a_run_that_has_succeeded_did_not_need_is_skipped() -> None:
    failures = {"1.0": failure("1.0"), "1.1.0": failure("1.1.0", final=True)}
    executions = {"0": done()}
    found = build(executions=executions, state=State.SUCCEEDED, failures=failures)
    assert states(found) == {
        "0": "done",
        "1": "dead",
        "1.0": "skipped",
        "1.1": "dead",
        "1.1.0": "dead",
        "1.1.1": "skipped",
        "2": "skipped",
    }


def test_branches_that_were_added() -> None:
    root = plan.series([Job("list"), plan.parallel([Job("a"), Job("b")]), Job("end")])
    known = Decided(added={"1": [("0+0", "1.0+0"), ("0+1", "1.0+1.1")]})
    executions = {"1.0+0": done(), "1.0+1.0": begun(NOW)}
    found = build(root, executions, known=known)
    assert {at: state for at, state in states(found).items() if "+" in at} == {
        "1.0+0": "done",
        "1.0+1": "running",
        "1.0+1.0": "running",
        "1.0+1.1": "waiting",
    }
    assert found.root.below[1].states == {"waiting": 3, "done": 1, "running": 1}
    assert "2 branches added" in graph.text(found.plan, states=found.states())
    for draw in (graph.mermaid, graph.dot, graph.text, graph.page, graph.html):
        draw(found.plan, "", found.states())


def test_a_tree_of_a_wide_map_is_made_as_fast_as_of_a_wide_parallel() -> None:
    width = 20_000
    mapped = plan.series([Job("list"), plan.Map(BRANCH)])
    parallel = plan.series([Job("list"), plan.parallel([BRANCH] * width)])

    def took(root: plan.Series, known: Decided) -> float:
        start = time.perf_counter()
        found = build(root, known=known)
        graph.mermaid(found.plan, "", found.states())
        assert sum(found.root.states.values()) == 2 * width + 1
        return time.perf_counter() - start

    one = min(took(parallel, NOTHING) for _ in range(2))
    other = min(took(mapped, Decided(widths={"1": width})) for _ in range(2))
    assert other < 2 * one
