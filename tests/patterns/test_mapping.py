"""What Airflow's dynamic task mapping promises, as `Clutch.map` does it."""

from __future__ import annotations

from integration.app import double, repeat_list, seen, total, value
from integration.lab import Runs

from celery_clutch import Clutch, State, parallel, series


def test_a_list_of_no_length(lab: Runs) -> None:
    """A task mapped over nothing makes no instance; there it is skipped, and so is what follows.
    Here it is done, and what follows gets an empty list."""
    run = Clutch(value.s([])).map(double).add(seen).engage()
    assert run.get(timeout=30) == [[]]
    assert set(lab.ran(run)) == {"0", "2"}
    assert run.state is State.SUCCEEDED


def test_map_and_reduce(lab: Runs) -> None:
    """All instances are collected by one task behind them."""
    run = Clutch(value.s([1, 2, 3])).map(double).add(total).engage()
    assert run.get(timeout=30) == [12]


def test_repeated_mapping(lab: Runs) -> None:
    """A mapped task's result can be mapped over: each instance gets that of one before."""
    run = Clutch(value.s([1, 2, 3])).map(double).map(double).map(double).add(seen).engage()
    assert run.get(timeout=30) == [[8, 16, 24]]
    lab.settle()
    assert len(lab.ran(run)) == 1 + 3 * 3 + 1


def test_repeated_mapping_of_nothing(lab: Runs) -> None:
    run = Clutch(value.s([])).map(double).map(double).add(seen).engage()
    assert run.get(timeout=30) == [[]]
    assert len(lab.ran(run)) == 2


def test_mapping_over_lists_that_instances_return(lab: Runs) -> None:
    """Each instance returns a list; the next map is over those lists, not over what is in them."""
    run = Clutch(value.s([2, 0, 1])).map(repeat_list).map(seen.s()).add(seen).engage()
    (found,) = run.get(timeout=30)
    assert [each[0] for each in found] == [["x", "x"], [], ["x"]]


def test_mapping_inside_a_group_of_tasks(lab: Runs) -> None:
    """A group of tasks is mapped as a whole; inside, a task may be mapped again."""
    group = Clutch(repeat_list.s()).map(double).add(seen)
    run = Clutch(value.s([2, 0, 3])).map(group).add(seen).engage()
    assert run.get(timeout=30) == [[["xx", "xx"], [], ["xx", "xx", "xx"]]]


def test_groups_go_on_by_themselves(lab: Runs) -> None:
    """A group's instances do not wait for those of another between their tasks: depth first."""
    run = Clutch(value.s([1, 2])).map(series(double.s(), seen.s()), max_concurrency=1).engage()
    assert run.get(timeout=30) == [[2], [4]]
    lab.settle()
    assert lab.order(run) == ["0", "1.0.0", "1.0.1", "1.1.0", "1.1.1"]


def test_constant_arguments_beside_the_mapped_one(lab: Runs) -> None:
    """``partial(more=1).expand(x=...)``."""
    run = Clutch(value.s([1, 2])).map(double, kwargs={"more": 1}).engage()
    assert run.get(timeout=30) == [3, 5]
    run = Clutch(value.s([1, 2])).map(double, args=[2]).engage()
    assert run.get(timeout=30) == [4, 6]


def test_a_cross_product(lab: Runs) -> None:
    """``expand(x=..., y=...)``: the list of pairs is made by the task before."""
    pairs = [[x, y] for x in (1, 2) for y in (10, 20)]
    run = Clutch(value.s(pairs)).map(seen.s()).engage()
    assert [each[0] for each in run.get(timeout=30)] == pairs


def test_more_instances_than_may_run_at_a_time(lab: Runs) -> None:
    """``max_active_tis_per_dagrun``: so many instances of a mapped task at a time."""
    run = Clutch(value.s(list(range(9)))).map(double, max_concurrency=2).add(seen).engage()
    assert run.get(timeout=30) == [[2 * n for n in range(9)]]


def test_what_is_mapped_may_depend_on_a_group_before(lab: Runs) -> None:
    """Mapping over a list of literal tasks: each branch of the parallel before is an element."""
    run = Clutch(parallel(value.s(n) for n in (1, 2, 3))).map(double).add(total).engage()
    assert run.get(timeout=30) == [12]
