"""Branches that are chosen or need not all arrive: the patterns 6, 7, 9, 28 and 30 of the catalogue
at workflowpatterns.com."""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import fail, hold, picky, seen, value
from integration.lab import Runs, handlers, until

from celery_clutch import Clutch, Skipped, State, parallel, series

ORDERS: list[list[str]] = [["a"], ["a", "c"], ["b", "c"], ["a", "b", "c"], []]


def wants(part: str, order: list[str], branch: Any) -> Clutch:
    """*branch*, if the order has this part in it."""
    return Clutch(branch).when(value.s(part in order))


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_6_multi_choice(lab: Runs, order: list[str]) -> None:
    """Each of several branches is taken or not, as data says; any number of them may be.

    A parallel of branches that have a `Clutch.when` each decides so, of each by itself.
    """
    branches = [wants(part, order, value.s(part)) for part in "abc"]
    run = Clutch(value.s("none"), parallel(branches)).engage()
    lab.settle()
    assert run.state is State.SUCCEEDED
    taken = {part for index, part in enumerate("abc") if lab.ran(run)[f"1.{index}.1"]}
    assert taken == set(order)


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_7_structured_synchronizing_merge(lab: Runs, order: list[str]) -> None:
    """What follows a multi-choice waits for the branches that were taken, and for no others.

    So does the step after such a parallel. In the place of a branch that was not taken it gets what
    is false: a `Skipped`, whose JSON is its address.
    """
    branches = [wants(part, order, series(value.s(1), value.s(part))) for part in "abc"]
    run = Clutch(value.s("-"), parallel(branches), seen.s()).engage()
    skipped = [{"address": f"1.{index}"} for index in range(3)]
    wanted = [part if part in order else skipped[index] for index, part in enumerate("abc")]
    assert run.get(timeout=30) == [wanted]
    assert [bool(each) for each in run.results("1")] == [part in order for part in "abc"]
    lab.settle()
    assert lab.ran(run)["2"] == 1


@pytest.mark.not_eager
def test_7_structured_synchronizing_merge_waits(lab: Runs, tag: str) -> None:
    branches = [wants(part, ["a", "b"], hold.s(f"{tag} {part}", part)) for part in "abc"]
    run = Clutch(value.s("-"), parallel(branches), seen.s()).engage()
    lab.raise_flag(f"{tag} a")
    # The first job, three decisions, what was not taken, and one of the branches that were.
    until(lambda: run.status().done == 6, "for all but one branch")
    assert not lab.ran(run)["2"]
    lab.raise_flag(f"{tag} b")
    assert run.get(timeout=30) == [["a", "b", {"address": "1.2"}]]


# --- so many of so many ---------------------------------------------------------------------------


def held(tag: str, names: str) -> list[Any]:
    """A branch of each name, which waits for its flag."""
    return [series(value.s("started"), hold.s(f"{tag} {name}", name)) for name in names]


@pytest.mark.not_eager
def test_9_structured_discriminator(lab: Runs, tag: str) -> None:
    """Of several branches the first that arrives lets what follows start. The others come to their
    end, and start nothing.

    ``parallel(need=1)`` does that: what runs of the others is let run.
    """
    run = Clutch(parallel(held(tag, "ab"), need=1), seen.s()).engage()
    until(lambda: {"0.0.1", "0.1.1"} <= set(lab.ran(run)), "for both branches to be under way")
    lab.raise_flag(f"{tag} b")
    assert run.get(timeout=30) == [[{"address": "0.0"}, "b"]]
    assert run.state is State.SUCCEEDED
    lab.raise_flag(f"{tag} a")
    lab.settle()
    assert lab.ran(run) == {"0.0.0": 1, "0.0.1": 1, "0.1.0": 1, "0.1.1": 1, "1": 1}


def test_9_structured_discriminator_of_branches_that_have_not_started(lab: Runs) -> None:
    branches = [value.s("a"), fail.s(), value.s("b"), fail.s()]
    run = Clutch(parallel(branches, need=1, max_concurrency=1), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert found[0] == "a"
    lab.settle()
    assert lab.ran(run) == {"0.0": 1, "1": 1}, "the others did not start"
    assert run.results("0") == ["a", *(Skipped(f"0.{n}") for n in (1, 2, 3))]
    status = run.status()
    assert (status.state, status.done, status.total) == (State.SUCCEEDED, 5, 5)


@pytest.mark.not_eager
def test_28_blocking_discriminator(lab: Runs, tag: str) -> None:
    """A discriminator that is passed more than once must not take what is late of one round for the
    first of the next.

    Each round is a step of its own here, or a branch of a map, which counts its own branches alone:
    what is late counts nowhere else, and so nothing has to be blocked.
    """
    rounds = [parallel(held(tag, names), need=1) for names in ("ab", "cd")]
    run = Clutch(rounds[0], seen.s(), rounds[1], seen.s()).engage()
    until(lambda: {"0.0.1", "0.1.1"} <= set(lab.ran(run)), "for the first round to be under way")
    lab.raise_flag(f"{tag} a")
    until(lambda: lab.ran(run)["1"], "for the first round to be over")
    lab.raise_flag(f"{tag} b")
    until(lambda: run.results("0") == ["a", "b"], "for what is late of the first round")
    assert not lab.ran(run)["3"]
    lab.raise_flag(f"{tag} d")
    assert run.get(timeout=30) == [[{"address": "2.0"}, "d"]]
    lab.raise_flag(f"{tag} c")
    lab.settle()
    assert (lab.ran(run)["1"], lab.ran(run)["3"]) == (1, 1)


def test_28_blocking_discriminator_in_a_map(lab: Runs) -> None:
    body = series(parallel(picky.s(1), picky.s(2), picky.s(3), need=1, max_concurrency=1), seen.s())
    run = Clutch(value.s([0, 1])).map(body).add(seen).engage()
    ((first, second),) = run.get(timeout=30)
    assert first == [0, {"address": "1.0.0.1"}, {"address": "1.0.0.2"}]
    assert second[1:] == [1, {"address": "1.1.0.2"}], "the first one refuses to"
    lab.settle()
    assert [lab.ran(run)[f"1.{index}.1"] for index in range(2)] == [1, 1]


@pytest.mark.parametrize("need", [1, 2, 3])
def test_30_structured_partial_join(lab: Runs, need: int) -> None:
    """Of m branches n have to arrive before what follows starts, once; the others start nothing.

    ``parallel(need=n)`` counts those that have succeeded. One that dies is not among them.
    """
    branches = [fail.s("late"), value.s(1), value.s(2), value.s(3)]
    run = Clutch(parallel(branches, need=need, max_concurrency=1), seen.s()).engage()
    (found,) = run.get(timeout=30)
    dead = {"address": "0.0", "exception": "ValueError", "message": "late"}
    skipped = [{"address": f"0.{n}"} for n in (1, 2, 3)]
    assert found == [dead, *([1, 2, 3][:need]), *skipped[need:]]
    lab.settle()
    assert lab.ran(run)["1"] == 1
    assert run.state is State.SUCCEEDED


@pytest.mark.not_eager
def test_30_structured_partial_join_waits_for_so_many(lab: Runs, tag: str) -> None:
    run = Clutch(parallel([hold.s(f"{tag} {n}", n) for n in "abc"], need=2), seen.s()).engage()
    lab.raise_flag(f"{tag} a")
    until(lambda: run.status().done == 1, "for the first")
    assert not lab.ran(run)["1"]
    lab.raise_flag(f"{tag} b")
    assert run.get(timeout=30)[0][:2] == ["a", "b"]
    lab.raise_flag(f"{tag} c")
    lab.settle()
    assert lab.ran(run)["1"] == 1


def test_30_structured_partial_join_that_cannot_be(lab: Runs, tag: str) -> None:
    steps = parallel(value.s(1), fail.s(), fail.s(), need=2)
    run = Clutch(steps, seen.s(), **handlers(tag, "on_death")).engage()
    assert lab.finish(run) is State.FAILED
    assert not lab.ran(run)["1"]
    assert lab.kinds(tag) == {"on_death": 1}
