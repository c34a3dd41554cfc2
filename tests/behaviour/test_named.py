"""Named steps: their results are read from anywhere behind them, and from nowhere else."""

from __future__ import annotations

from typing import Any

from integration.app import every_named, fail_unless, nest_named, plain, read_named, seen, value
from integration.lab import Runs

from celery_clutch import Clutch, State, named, parallel, series


def test_a_result_is_read_from_anywhere_behind(lab: Runs) -> None:
    clutch = Clutch()
    clutch.add(value, {"a": None}).named("photo")
    with clutch.parallel(name="sizes"):
        for number in range(3):
            clutch.add(value, number)
    with clutch.series(name="both"):
        clutch.add(value, "first").named("first")
        clutch.add(value, "second")
    clutch << plain.s("plain") << named(plain.s("named"), "plain")
    clutch.add(every_named)
    run = clutch.engage()
    expected = {
        "photo": {"a": None},
        "sizes": [0, 1, 2],
        "both": "second",
        "first": "first",
        "plain": "named",
    }
    assert run.get(timeout=30) == [expected]
    assert {name: run.results(name) for name in expected} == expected
    assert run.results("0") == {"a": None}


def test_a_branch_reads_what_is_before_its_parallel_and_in_itself(lab: Runs) -> None:
    branches = [series(value.s(n), named(seen.s(), f"seen {n}"), every_named) for n in range(2)]
    run = series(named(value.s("x"), "start"), parallel(branches), every_named).engage()
    one, two = {"seen 0": [0]}, {"seen 1": [1]}
    start = {"start": "x"}
    assert run.get(timeout=30) == [{**start, **one, **two}]
    assert run.results("1") == [{**start, **one}, {**start, **two}]


def test_what_does_not_certainly_precede_is_an_error_that_says_why(lab: Runs) -> None:
    reads = read_named.s("me", "whole", "side", "later", "branch", "phoot", "photo")
    clutch = Clutch()
    clutch.add(value, 1).named("photo")
    with clutch.parallel(name="whole"):
        clutch << series(named(reads, "me"), value.s(2), name="branch")
        clutch.add(value, 3).named("side")
    clutch.add(value, 4).named("later")
    run = clutch.engage()
    assert lab.finish(run) is State.SUCCEEDED
    told = run.results("me")
    cannot = "NotPreceding: job 1.0.0 cannot read the result of"
    assert told.pop("photo") == 1
    assert (
        told.pop("phoot") == "UnknownName: no step is named 'phoot'; is it 'photo' that is meant?"
    )
    assert {name: text.partition(", so that")[0] for name, text in told.items()} == {
        "me": f"{cannot} 'me', the step at 1.0.0: it is the job itself",
        "whole": f"{cannot} 'whole', the step at 1: the job is one of its own",
        "branch": f"{cannot} 'branch', the step at 1.0: the job is one of its own",
        "side": f"{cannot} 'side', the step at 1.1: both are in the parallel 1, in branches that "
        "run side by side",
        "later": f"{cannot} 'later', the step at 2: it comes later",
    }


def test_a_nested_run_has_names_of_its_own(lab: Runs) -> None:
    run = series(named(value.s("outside"), "photo"), nest_named, every_named).engage()
    assert run.get(timeout=30) == [{"photo": "outside"}]
    assert run.results("1") == {"photo": "outside"}
    (inner,) = lab.nested(run)
    assert inner.get(timeout=30) == [
        {"inner": "inside", "photo": "UnknownName: no step is named 'photo'; there are 'inner'"}
    ]


def test_names_last_through_a_failure_and_a_resume(lab: Runs, tag: str) -> None:
    clutch = Clutch().add(value, 1).named("one")
    clutch.add(fail_unless, tag, 2).named("two")
    clutch.add(every_named)
    run = clutch.engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(tag)
    assert run.resume()
    assert run.get(timeout=30) == [{"one": 1, "two": 2}]


def test_names_in_json(lab: Runs) -> None:
    clutch = parallel(
        named(value.s(1), "one"), series(value.s(2), value.s(3), name="two"), name="all"
    )
    again = Clutch.from_json(series(clutch, every_named).to_json())
    assert str(again) == str(series(clutch, every_named))
    assert again.engage().get(timeout=30) == [{"all": [1, 3], "one": 1, "two": 3}]


def test_a_narrow_parallel_and_a_wide_one(lab: Runs) -> None:
    clutch = Clutch(named(value.s("start"), "start"))
    with clutch.parallel(max_concurrency=2, name="narrow"):
        for number in range(5):
            clutch.add(every_named).named(f"branch {number}")
    with clutch.parallel(name="wide"):
        for number in range(1100):
            clutch.add(value, number)
    clutch.add(every_named)
    run = clutch.engage()
    (found,) = run.get(timeout=60)
    start: dict[str, Any] = {"start": "start"}
    assert found == {
        **start,
        "narrow": [start] * 5,
        **{f"branch {number}": start for number in range(5)},
        "wide": list(range(1100)),
    }
