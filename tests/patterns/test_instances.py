"""Several instances of a task: the patterns 12 to 15 and 34 of the catalogue at
workflowpatterns.com."""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import countdown, double, hold, launches, picky, seen, spread, total, value
from integration.lab import Runs, handlers

from celery_clutch import Clutch, Skipped, State, parallel, series


@pytest.mark.not_eager
def test_12_instances_without_synchronization(lab: Runs, tag: str) -> None:
    """A task starts several instances of another, and nothing waits for those.

    A job engages clutches without ``parent=self``: each is a run of its own.
    """
    run = Clutch(launches.s(hold.s(tag, "a"), value.s("b")), seen.s()).engage()
    assert run.get(timeout=30) == [["launched 2"]]
    slow, quick = lab.nested(run)
    assert quick.get(timeout=30) == ["b"]
    assert (run.state, slow.state) == (State.SUCCEEDED, State.RUNNING)
    lab.raise_flag(tag)
    assert slow.get(timeout=30) == ["a"]


def test_12_instances_without_synchronization_end_for_themselves(lab: Runs) -> None:
    run = Clutch(launches.s(picky.s(1, 1), value.s("b"))).engage()
    assert lab.finish(run) is State.SUCCEEDED
    assert [each.state for each in lab.nested(run)] == [State.FAILED, State.SUCCEEDED]


def test_13_instances_whose_number_is_known_at_design_time(lab: Runs) -> None:
    """Three reviewers have to sign: the number is in the model. All are waited for.

    A parallel of so many jobs.
    """
    run = Clutch(value.s("text"), parallel(seen.s(n) for n in range(3)), seen.s()).engage()
    assert run.get(timeout=30) == [[[n, ["text"]] for n in range(3)]]
    lab.settle()
    assert lab.order(run)[-1] == "2"
    assert set(lab.ran(run).values()) == {1}


@pytest.mark.parametrize("number", [1, 5])
def test_14_instances_whose_number_is_known_before_they_start(lab: Runs, number: int) -> None:
    """Each item of an order is checked: how many there are is found while the case runs, but before
    the first instance starts. All are waited for.

    `Clutch.map` over the list that the step before returns.
    """
    run = Clutch(value.s(list(range(number)))).map(double).add(total).engage()
    assert run.get(timeout=30) == [sum(2 * n for n in range(number))]
    lab.settle()
    assert lab.order(run)[-1] == "2"
    assert set(lab.ran(run)) == {"0", *(f"1.{n}" for n in range(number)), "2"}


def test_15_instances_whose_number_is_not_known_before(lab: Runs) -> None:
    """Witnesses are heard, and name further witnesses: instances are added while others run, and
    what follows waits for them all.

    ``self.branches.add`` in a branch of a parallel or map.
    """
    witness = spread.s("ann", spread.s("bob", value.s("cid")), value.s("dot"))
    run = Clutch(parallel(witness, value.s("eve")), seen.s()).engage()
    (found,) = run.get(timeout=30)
    assert found[:2] == ["ann", "eve"], "those that were there come first"
    assert sorted(found[2:]) == ["bob", "cid", "dot"]
    lab.settle()
    assert lab.order(run)[-1] == "1"
    assert lab.ran(run)["1"] == 1


def test_15_instances_that_a_map_is_given_more_of(lab: Runs) -> None:
    run = Clutch(value.s([1, 2])).map(countdown).add(total).engage()
    assert run.get(timeout=30) == [1 + 0 + 2 + 1 + 0]


@pytest.mark.parametrize("need", [1, 3])
def test_34_static_partial_join(lab: Runs, need: int) -> None:
    """Of m instances n have to complete before what follows starts; what the others come to has no
    further effect.

    ``map(need=n)``; what has not started by then does not start.
    """
    clutch = Clutch(value.s(list(range(6)))).map(picky.s(0), need=need, max_concurrency=1)
    run = clutch.add(seen).engage()
    (found,) = run.get(timeout=30)
    assert found[0]["message"] == "0 is refused"
    assert found[1 : need + 1] == list(range(1, need + 1))
    lab.settle()
    assert set(lab.ran(run)) == {"0", *(f"1.{n}" for n in range(need + 1)), "2"}
    assert run.results("1")[need + 1 :] == [Skipped(f"1.{n}") for n in range(need + 1, 6)]
    assert run.state is State.SUCCEEDED


@pytest.mark.not_eager
def test_34_static_partial_join_goes_on_without_the_last(lab: Runs, tag: str) -> None:
    flags = [f"{tag} {n}" for n in range(3)]
    branch = series(hold.s(), seen.s())
    run = Clutch(value.s(flags)).map(branch, need=2).add(seen).engage()
    for flag in flags[:2]:
        lab.raise_flag(flag)
    (found,) = run.get(timeout=30)
    assert found == [[None], [None], {"address": "1.2"}]
    lab.raise_flag(flags[2])
    lab.settle()
    assert lab.ran(run)["2"] == 1


def test_34_static_partial_join_of_too_few(lab: Runs, tag: str) -> None:
    clutch = Clutch(value.s([1, 2, 3]), **handlers(tag, "on_death")).map(picky.s(1, 2), need=2)
    run = clutch.add(seen).engage()
    assert lab.finish(run) is State.FAILED
    assert not lab.ran(run)["2"]
    assert lab.kinds(tag) == {"on_death": 1}


def test_34_static_partial_join_of_more_than_there_are(lab: Runs) -> None:
    run = Clutch(value.s([1])).map(double, need=2).engage()
    assert lab.finish(run) is State.FAILED
    found: list[Any] = run.failures()
    assert len(found) == 1, "and it says so"
    assert "2" in found[0].message
