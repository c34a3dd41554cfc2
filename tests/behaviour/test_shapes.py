"""Shapes: what is composed runs in order, and results arrive where they should."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from integration.app import (
    add,
    gather,
    noop,
    seen,
    seen_bit_by_bit,
    seen_unbound,
    total,
    value,
)
from integration.lab import Runs, handlers

from celery_clutch import Clutch, ClutchResult, State, parallel, series


def get(clutch: Clutch) -> list[object]:
    return clutch.engage().get(timeout=30)


def test_series(lab: Runs) -> None:
    run = series(value.s(1), seen.s("b"), seen.s("c")).engage()
    assert run.get(timeout=30) == [["c", [["b", [1]]]]]
    assert lab.order(run) == ["0", "1", "2"]
    assert run.state is State.SUCCEEDED


def test_parallel(lab: Runs) -> None:
    clutch = series(value.s(7), parallel(seen.s(i) for i in range(3)), seen.s())
    assert get(clutch) == [[[0, [7]], [1, [7]], [2, [7]]]]


def test_block_syntax(lab: Runs) -> None:
    clutch = Clutch(name="blocks")
    clutch << value.s("first")
    with clutch.parallel():
        clutch << seen.s(1)
        clutch.add(seen, 2)
        with clutch.series():
            clutch << (value, "inner")
            clutch << seen.s("branch")
    clutch << seen
    assert get(clutch) == [[[1, ["first"]], [2, ["first"]], ["branch", ["inner"]]]]


def test_series_in_parallel_in_series_in_parallel(lab: Runs) -> None:
    inner = parallel(value.s("x"), series(value.s("y"), seen.s("z")))
    clutch = series(
        value.s(0),
        parallel(series(value.s(1), inner, seen.s("joined")), series(seen.s(2), seen.s(3))),
        seen.s("end"),
    )
    joined = ["joined", ["x", ["z", ["y"]]]]
    assert get(clutch) == [["end", [joined, [3, [[2, [0]]]]]]]


def test_parallel_directly_in_parallel(lab: Runs) -> None:
    clutch = series(parallel(parallel(value.s(1), value.s(2)), value.s(3)), seen.s())
    assert get(clutch) == [[[1, 2], 3]]


def test_branch_ending_in_parallel(lab: Runs) -> None:
    branch = series(value.s("a"), parallel(seen.s(1), seen.s(2)))
    clutch = series(parallel(branch, value.s("b")), seen.s())
    assert get(clutch) == [[[[1, ["a"]], [2, ["a"]]], "b"]]


def test_parallel_at_the_end(lab: Runs) -> None:
    run = series(value.s(1), parallel(seen.s("a"), seen.s("b"))).engage()
    assert run.get(timeout=30) == [["a", [1]], ["b", [1]]]


def test_nested_parallel_at_the_end(lab: Runs) -> None:
    clutch = parallel(series(value.s(1), parallel(seen.s("a"), seen.s("b"))), value.s(2))
    assert get(clutch) == [[["a", [1]], ["b", [1]]], 2]


def test_parallel_after_parallel(lab: Runs) -> None:
    clutch = series(
        parallel(value.s(1), value.s(2)), parallel(seen.s("a"), seen.s("b")), seen.s("end")
    )
    assert get(clutch) == [["end", [["a", [1, 2]], ["b", [1, 2]]]]]


def test_parallel_of_one_gives_a_list_of_one(lab: Runs) -> None:
    run = series(parallel(value.s(5)), seen.s()).engage()
    assert run.get(timeout=30) == [[5]]
    assert run.results("0") == [5]


def test_empty_blocks_add_nothing(lab: Runs) -> None:
    clutch = Clutch()
    with clutch.parallel():
        pass
    clutch << value.s(1)
    with clutch.series(), clutch.parallel():
        pass
    clutch << seen.s()
    assert len(clutch) == 2
    assert get(clutch) == [[1]]


def test_empty_clutch_sends_nothing_and_has_succeeded(lab: Runs, tag: str) -> None:
    told = handlers(tag, "on_failure", "on_death", "on_success", "on_end")
    run = Clutch(app=lab.app, **told).engage()
    assert run.state is State.SUCCEEDED
    assert run.get(timeout=1) == []
    assert lab.sent(run) == {}
    assert run.record().due == {}  # nor does the sweep send anything


def test_engaging_again_is_another_run(lab: Runs) -> None:
    clutch = series(value.s(1), parallel(value.s(2), value.s(3)), total.s())
    first, second = clutch.engage(), clutch.engage()
    clutch << total.s(10)
    third = clutch.engage()
    assert len({first.id, second.id, third.id}) == 3
    assert [run.get(timeout=30) for run in (first, second, third)] == [[5], [5], [15]]
    assert clutch.clear().engage().get(timeout=1) == []


def test_wide_fan_in_keeps_the_order_of_definition(lab: Runs) -> None:
    run = series(parallel(value.s(i) for i in range(1000)), seen.s()).engage()
    assert run.get(timeout=60) == [list(range(1000))]


def test_wide_in_many_places(lab: Runs) -> None:
    run = series(
        parallel(value.s(1) for _ in range(600)),
        parallel(value.s(i) for i in range(600)),
        seen.s(),
        parallel(series(value.s(i) for i in range(n, n + 50)) for n in range(3)),
        parallel(total.s(i) for i in range(300)),
    ).engage()
    result = run.get(timeout=100)
    assert result == [49 + 50 + 51 + i for i in range(300)]
    assert run.results("2") == list(range(600))


def test_wide_in_wide(lab: Runs) -> None:
    branches = [
        series(value.s(n), parallel(total.s(i) for i in range(12)), *[total.s()] * 14)
        for n in range(12)
    ]
    ending = [parallel(parallel(value.s(i) for i in range(11)) for _ in range(11))]
    run = series(parallel(*branches, *ending), seen.s()).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[*(12 * n + 66 for n in range(12)), [list(range(11))] * 11]]
    assert set(lab.ran(run).values()) == {1}


def test_long_series_of_wide_parallels(lab: Runs) -> None:
    clutch = Clutch()
    for n in range(5):
        with clutch.parallel():
            for i in range(50):
                clutch << value.s(n * i)
        clutch << total.s()
    run = clutch.engage()
    assert run.get(timeout=60) == [4 * 1225]
    assert [run.results(str(2 * n + 1)) for n in range(5)] == [n * 1225 for n in range(5)]


def test_long_series(lab: Runs) -> None:
    run = series(value.s(0), *(total.s(1) for _ in range(60))).engage()
    assert run.get(timeout=60) == [60]
    assert lab.order(run) == [str(i) for i in range(61)]


@pytest.mark.parametrize("nothing", [None, False, 0, "", [], {}])
def test_values_that_mean_nothing_are_results(lab: Runs, nothing: object) -> None:
    clutch = series(
        value.s(nothing), seen.s(), parallel(value.s(nothing), value.s(nothing)), seen.s("end")
    )
    run = clutch.engage()
    assert run.get(timeout=30) == [["end", [nothing, nothing]]]
    assert run.results("0") == nothing
    assert run.results("1") == [nothing]


def test_previous_results_of_the_first_job_are_empty(lab: Runs) -> None:
    assert get(series(seen.s())) == [[]]
    assert get(parallel(seen.s(), seen.s())) == [[], []]
    assert get(series(seen_bit_by_bit.s(2))) == [[]]


def test_previous_results_outside_a_run_are_empty(lab: Runs) -> None:
    assert seen.delay().get(timeout=30) == []
    assert seen_unbound.delay().get(timeout=30) == []


def test_previous_results_without_bind(lab: Runs) -> None:
    clutch = series(parallel(value.s(1), value.s(2)), seen_unbound.s())
    assert get(clutch) == [[1, 2]]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_previous_results_bit_by_bit(lab: Runs, chunk: int) -> None:
    clutch = series(parallel(value.s(i) for i in range(10)), seen_bit_by_bit.s(chunk))
    assert get(clutch) == [list(range(10))]


def test_every_job_runs_once(lab: Runs) -> None:
    clutch = series(
        value.s(1), parallel(value.s(i) for i in range(150)), value.s(2), *[value.s(3)] * 30
    )
    run = clutch.engage()
    run.get(timeout=60)
    lab.settle()
    ran = lab.ran(run)
    assert set(ran.values()) == {1}
    assert len(ran) == 182


def test_noop_jobs_have_none_for_results(lab: Runs) -> None:
    assert get(parallel(noop.s(), noop.s())) == [None, None]


# --- a clutch in a clutch -------------------------------------------------------------------


def test_clutch_in_a_clutch(lab: Runs, tag: str) -> None:
    inner = Clutch(value.s(1), parallel(seen.s("a"), seen.s("b")), **handlers(tag, "on_success"))
    outer = series(value.s(0), parallel(inner, value.s("side")), seen.s("end"))
    run = outer.engage()
    lab.settle()
    assert run.get(timeout=1) == [["end", [[["a", [1]], ["b", [1]]], "side"]]]
    assert lab.kinds(tag) == {"on_success": 1}


def test_clutch_in_a_series_tells_of_its_own_success(lab: Runs, tag: str) -> None:
    inner = Clutch(value.s(1), value.s(2), **handlers(f"{tag} inner"))
    run = Clutch(inner, seen.s("after"), **handlers(f"{tag} outer")).engage()
    lab.settle()
    assert run.get(timeout=1) == [["after", [2]]]
    assert lab.kinds(f"{tag} inner") == {"on_success": 1}
    assert lab.kinds(f"{tag} outer") == {"on_success": 1}


# --- from_canvas ----------------------------------------------------------------------------


def test_from_canvas_mutable_gets_the_previous_result(lab: Runs) -> None:
    assert get(Clutch.from_canvas(add.s(1, 2) | add.s(10) | add.si(0, 5) | add.s(20))) == [25]


def test_from_canvas_group_and_chord(lab: Runs) -> None:
    canvas = chain(add.si(1, 1), group(add.s(10), add.s(20)), gather.s("end"))
    assert get(Clutch.from_canvas(canvas)) == [[[12, 22], "end"]]
    assert get(Clutch.from_canvas(chord([add.s(1, 1), add.s(2, 2)], gather.s()))) == [[[2, 4]]]
    assert get(Clutch.from_canvas(group(add.s(1, 1), add.s(2, 2)))) == [2, 4]


def test_from_canvas_immutable_does_not(lab: Runs) -> None:
    canvas = chain(group(add.si(1, 1), add.si(2, 2)), gather.si("alone"))
    assert get(Clutch.from_canvas(canvas)) == [["alone"]]


def test_from_canvas_is_what_celery_does(lab: Runs) -> None:
    def canvas() -> object:
        return chain(
            add.s(1, 2), group(add.s(3), chain(add.s(4), add.s(5))), gather.s(), gather.s("end")
        )

    assert get(Clutch.from_canvas(canvas())) == [canvas().apply_async().get(timeout=30)]


def test_a_canvas_as_a_step(lab: Runs) -> None:
    assert get(series(value.s(1), add.s(2) | add.s(3), seen.s())) == [[6]]


def test_results_by_address(lab: Runs) -> None:
    run = series(
        value.s("a"),
        parallel(series(value.s("b"), value.s("c")), parallel(value.s("d"), value.s("e"))),
        value.s("f"),
    ).engage()
    run.get(timeout=30)
    results = {
        at: run.results(at) for at in ("0", "1", "1.0", "1.0.0", "1.0.1", "1.1", "1.1.1", "2")
    }
    assert results == {
        "0": "a",
        "1": ["c", ["d", "e"]],
        "1.0": "c",
        "1.0.0": "b",
        "1.0.1": "c",
        "1.1": ["d", "e"],
        "1.1.1": "e",
        "2": "f",
    }
    assert run.results() == ["f"]
    with pytest.raises(LookupError):
        run.results("1.7")
    assert ClutchResult(run.id).results("0") == "a"
