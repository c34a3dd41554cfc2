"""Shapes: where the values of a node are."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given

from celery_clutch.model import plan, shape
from celery_clutch.model.plan import Job, Node, Parallel, Series

from .reference import evaluate, jobs_of
from .strategies import json_values, plans

J = Job("t")
all_plans = plans(narrow=True)


def ending(node: Node, at: str) -> list[str]:
    """The addresses of the jobs that end *node*, in definition order."""
    if isinstance(node, Job):
        return [at]
    if isinstance(node, Series):
        last = len(node.steps) - 1
        return ending(node.steps[last], plan.join(at, last))
    return [job for i, each in enumerate(node.branches) for job in ending(each, plan.join(at, i))]


@given(all_plans)
def test_the_addresses_of_a_shape_are_the_jobs_that_end_it(root: Series) -> None:
    for at, node in plan.walk(root):
        found = list(shape.addresses(shape.shape(node, at)))
        assert found == ending(node, at)
        assert len(found) == shape.ends(node)
        assert set(found) <= jobs_of(node, at)


@given(all_plans)
def test_values_are_arranged_as_the_plan_is(root: Series) -> None:
    wanted = evaluate(root)
    for at, node in plan.walk(root):
        found = shape.shape(node, at)
        values = {address: wanted.values[address] for address in shape.addresses(found)}
        assert shape.arrange(found, values, _none) == wanted.values[at]
        members = [shape.arrange(each, values, _none) for each in shape.members(found)]
        assert members == (wanted.values[at] if shape.is_parallel(found) else [wanted.values[at]])


@given(all_plans)
def test_a_shape_survives_json(root: Series) -> None:
    for at, node in plan.walk(root):
        found = shape.shape(node, at)
        assert shape.checked(orjson.loads(orjson.dumps(found))) == found


@given(all_plans)
def test_a_parallel_is_known_by_its_shape(root: Series) -> None:
    for at, node in plan.walk(root):
        last = node
        while isinstance(last, Series):
            last = last.steps[-1]
        assert shape.is_parallel(shape.shape(node, at)) is isinstance(last, Parallel)


@pytest.mark.parametrize(
    ("of", "members", "addresses"),
    [
        ("", [], []),
        ("0", ["0"], ["0"]),
        ("1.2", ["1.2"], ["1.2"]),
        ("0*1", ["0.0"], ["0.0"]),
        ("1.2*3", ["1.2.0", "1.2.1", "1.2.2"], ["1.2.0", "1.2.1", "1.2.2"]),
        ("1*2.4", ["1.0.4", "1.1.4"], ["1.0.4", "1.1.4"]),
        ("1*2.4.0", ["1.0.4.0", "1.1.4.0"], ["1.0.4.0", "1.1.4.0"]),
        ([], [], []),
        (["0.0", "0.1*2"], ["0.0", "0.1*2"], ["0.0", "0.1.0", "0.1.1"]),
    ],
)
def test_shapes_by_example(of: Any, members: list[Any], addresses: list[str]) -> None:
    assert list(shape.members(of)) == members
    assert list(shape.addresses(of)) == addresses
    assert shape.is_parallel(of) is (isinstance(of, list) or "*" in of)


def test_branches_that_are_alike_are_told_in_short() -> None:
    assert shape.shape(plan.parallel([J] * 10_000), "1") == "1*10000"
    assert shape.shape(plan.parallel([plan.series([J, J])] * 9), "1") == "1*9.1"
    assert shape.shape(plan.parallel([plan.series([J, J]), J]), "1") == ["1.0.1", "1.1"]
    assert shape.shape(plan.parallel([plan.parallel([J, J]), J]), "1") == ["1.0*2", "1.1"]


@given(json_values)
def test_what_is_not_a_shape_is_refused(value: Any) -> None:
    with suppress(TypeError, ValueError):
        list(shape.members(shape.checked(value)))
        assert isinstance(value, (str, list, dict))


@pytest.mark.parametrize("value", [None, 5, {}, "1*", "1*x", "1*x.4", [5], ["0", ["1", None]]])
def test_what_is_not_a_shape_by_example(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        shape.checked(value)


def _none(address: str, skipped: bool) -> Any:
    raise KeyError(address)


@pytest.mark.parametrize(
    ("keys", "value", "option"),
    [
        (['"a"', "1"], "a", 0),
        (['"a"', "1"], 1, 1),
        (['"a"', "1"], "1", None),
        (['"a"', "1", None], "1", 2),
        ([None, "null"], None, 1),
        ([], "a", None),
    ],
)
def test_an_option_is_chosen_by_its_key_or_is_the_default(
    keys: list[str | None], value: Any, option: int | None
) -> None:
    assert shape.option_of(keys, value) == option


def test_an_option_may_be_chosen_by_truth() -> None:
    found = [shape.option_of(["true", None], value, truth=True) for value in (1, [0], "", None)]
    assert found == [0, 0, 1, 1]
    assert shape.option_of(["true"], 0, truth=True) is None
