"""The tolerated failures of a map in AWS Step Functions, as a clutch's ``allow_failures`` has them.

There a threshold is a count of items or a percentage of them; a map fails when more than that have
failed, and without a threshold when one has. Both may be given there, one is here.
"""

from __future__ import annotations

from typing import Any

import pytest
from integration.app import picky, seen, value
from integration.lab import Runs

from celery_clutch import Clutch, Failed, State, parallel


def mapped(width: int, dead: int, **bounds: Any) -> Clutch:
    """A map of so many branches, of which so many die, and a step behind it."""
    refused = range(dead)
    return Clutch(value.s(list(range(width)))).map(picky.s(*refused), **bounds).add(seen)


@pytest.mark.parametrize(
    ("width", "allow", "most"),
    [
        (10, False, 0),
        (10, 0, 0),
        (10, 0.0, 0),
        (10, 3, 3),
        (10, 0.3, 3),
        (10, 0.39, 3),  # 3.9 of them: 4 are more
        (3, 0.3, 0),  # less than one of them
        (3, 1 / 3, 1),
        (7, 0.99, 6),
        (10, 0.1 + 0.2, 3),  # a little more than 0.3 as floats are, and no less
        (100, 0.29, 29),  # 28.999999999999996 as floats are
        (4, True, 4),
        (4, 9, 4),  # more than there are
    ],
)
def test_the_threshold_is_tolerated_and_no_more(
    lab: Runs, width: int, allow: Any, most: int
) -> None:
    run = mapped(width, most, allow_failures=allow).engage()
    (found,) = run.get(timeout=30)
    assert run.state is State.SUCCEEDED
    assert [isinstance(each, dict) for each in found] == [n < most for n in range(width)]
    if most < width:
        run = mapped(width, most + 1, allow_failures=allow).engage()
        assert lab.finish(run) is State.FAILED
        assert not lab.ran(run)["2"]


@pytest.mark.parametrize("allow", [True, 3, 0.5])
def test_of_no_items_none_fails(lab: Runs, allow: Any) -> None:
    run = mapped(0, 0, allow_failures=allow).engage()
    assert run.get(timeout=30) == [[]]


@pytest.mark.parametrize("allow", [2, 0.5])
def test_it_is_of_each_map_by_itself(lab: Runs, allow: Any) -> None:
    inner = Clutch(value.s()).map(picky.s(1), allow_failures=allow).add(seen)
    run = Clutch(value.s([[1, 2], [1, 3], [1, 4, 5]])).map(inner).engage()
    found = run.get(timeout=30)
    assert [len([each for each in one if isinstance(each, dict)]) for (one,) in zip(found)] == [
        1
    ] * 3


def test_a_count_in_parallel_is_as_in_a_map(lab: Runs) -> None:
    steps = [picky.s(n, 0, 1) for n in range(4)]
    run = Clutch(parallel(steps, allow_failures=0.5)).engage()
    assert run.get(timeout=30) == [
        *(Failed(f"0.{n}", "ValueError", f"{n} is refused") for n in (0, 1)),
        2,
        3,
    ]
    run = Clutch(parallel(steps, allow_failures=0.49)).engage()
    assert lab.finish(run) is State.FAILED
