"""The plan: addresses, measures, JSON."""

from __future__ import annotations

import dataclasses
import re
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch
from celery_clutch.errors import CorruptRecord, InvalidStep, NonJSONArgument, PlanTooDeep
from celery_clutch.model import plan
from celery_clutch.model.plan import MAX_DEPTH, Job, Node, Parallel, Scope, Series

from .conftest import make_app
from .strategies import any_json, full_scopes, jobs, mutated, plans, scopes

A, B, C = Job("a"), Job("b"), Job("c")


# --- JSON ---------------------------------------------------------------------------------


@given(plans(job=jobs(), max_leaves=15))
def test_a_plan_survives_json(root: Series) -> None:
    assert plan.loads(plan.dumps(root)) == root


@given(plans(job=jobs(), max_leaves=15))
def test_a_plan_keeps_its_size_and_depth(root: Series) -> None:
    again = plan.loads(plan.dumps(root))
    assert (again.size, again.depth) == (root.size, root.depth)


@given(jobs())
def test_a_job_survives_its_short_form(job: Job) -> None:
    assert plan.job_from_json(orjson.loads(orjson.dumps(plan.JobEncoder()(job)))) == job


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"5",
        b"null",
        b"[]",
        b"{}",
        b'"series"',
        b'{"series": 5}',
        b'{"series": [5]}',
        b'{"parallel": [{"job": []}]}',
        b'{"job": ["a"]}',
        b'{"series": [], "scope": {"colour": "red"}}',
        b'{"series": [], "scope": 5}',
        b'{"series": [' * 100 + b"]}" * 100,
        b'{"series": [' * 500 + b"]}" * 500,
        b'{"series": [' * 9999 + b"]}" * 9999,
        b'{"series": [{"__type__": "decimal", "__value__": "x"}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_a_plan_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        plan.loads(data)


@given(st.binary())
def test_any_bytes_are_a_plan_or_a_corrupt_record(data: bytes) -> None:
    with suppress(CorruptRecord):
        plan.loads(data)


@given(any_json)
def test_any_json_is_a_plan_or_a_corrupt_record(value: Any) -> None:
    with suppress(CorruptRecord):
        plan.loads(orjson.dumps(value))


@given(plans(job=jobs(), max_leaves=8, narrow=True), st.data())
def test_a_plan_with_a_mistake_in_it(root: Series, data: st.DataObject) -> None:
    with suppress(CorruptRecord):
        plan.loads(orjson.dumps(data.draw(mutated(orjson.loads(plan.dumps(root))))))


@given(plans(job=jobs(), max_leaves=8, built=True, narrow=True))
def test_a_plan_for_people_is_the_plan(root: Series) -> None:
    again = plan.from_dict(orjson.loads(orjson.dumps(plan.to_dict(root))), lambda task: False)
    assert plan.to_dict(again) == plan.to_dict(root)


@given(any_json)
def test_any_json_is_a_clutch_or_an_invalid_step(value: Any) -> None:
    app = make_app()
    for each in (value, {"clutch": value}):
        with suppress(InvalidStep):
            Clutch.from_json(orjson.dumps(each).decode(), app=app)


@given(plans(job=jobs(), max_leaves=8, narrow=True), st.data())
def test_a_clutch_with_a_mistake_in_it(root: Series, data: st.DataObject) -> None:
    whole = {"clutch": plan.to_dict(root), "name": "n", "tags": ["a"], "data": {"k": 1}}
    value = data.draw(mutated({**whole, "expires": 5}))
    with suppress(InvalidStep):
        Clutch.from_json(orjson.dumps(value).decode(), app=make_app())


@given(st.text(max_size=40))
def test_any_text_is_a_clutch_or_an_invalid_step(text: str) -> None:
    with suppress(InvalidStep):
        Clutch.from_json(text, app=make_app())


@pytest.mark.parametrize(
    "body",
    [
        {"series": [], "scope": {"on_failure": "x"}},
        {"series": [], "scope": {"on_failure": 5}},
        {"series": [], "scope": {"on_failure": {"task": 5}}},
        {"series": [], "scope": {"queue": 5}},
        {"parallel": [{"task": "t"}], "limit": 0},
        {"task": "t", "args": 5},
        {"task": "t", "colour": 5},
        "task",
        ["task"],
    ],
)
def test_what_is_not_a_clutch_is_an_invalid_step(body: Any) -> None:
    with pytest.raises(InvalidStep):
        Clutch.from_json({"clutch": body}, app=make_app())


def test_a_clutch_that_is_too_deep_is_an_invalid_step() -> None:
    for depth in (100, 450):
        text = '{"clutch": ' + '{"series": [' * depth + "]}" * depth + "}"
        with suppress(InvalidStep, PlanTooDeep):
            Clutch.from_json(text, app=make_app())


def test_an_argument_without_a_json_form_is_refused() -> None:
    with pytest.raises(NonJSONArgument):
        plan.dumps(Series((Job("a", ({1, 2},)),)))


# --- addresses ----------------------------------------------------------------------------


@given(plans())
def test_addresses_are_unique_and_lead_to_their_node(root: Series) -> None:
    seen = list(plan.walk(root))
    assert len({at for at, _ in seen}) == len(seen)
    for at, node in seen:
        found: Node = root
        for part in at.split("."):
            found = plan.children(found)[int(part)]
        assert found is node


@given(plans())
def test_addresses_are_in_definition_order(root: Series) -> None:
    paths = [[int(part) for part in at.split(".")] for at, _ in plan.walk(root)]
    assert paths == sorted(paths)


@given(plans())
def test_addresses_survive_json(root: Series) -> None:
    again = plan.loads(plan.dumps(root))
    assert [at for at, _ in plan.walk(again)] == [at for at, _ in plan.walk(root)]


@given(plans(), plans())
def test_a_step_behind_changes_no_address_before(root: Series, more: Series) -> None:
    longer = plan.series([*root.steps, *more.steps], root.scope)
    before = list(plan.walk(root))
    assert list(plan.walk(longer))[: len(before)] == before


# --- composing ----------------------------------------------------------------------------


@given(plans())
def test_size_and_depth_are_those_of_the_tree(root: Series) -> None:
    def depth(node: Node) -> int:
        below = plan.children(node)
        return 0 if isinstance(node, Job) else 1 + max(map(depth, below), default=0)

    assert root.size == sum(isinstance(node, Job) for _, node in plan.walk(root))
    assert root.depth == depth(root)


@given(plans())
def test_nothing_empty_and_no_bare_series_is_left_in_a_series(root: Series) -> None:
    for _, node in plan.walk(root):
        assert node.size > 0
        if isinstance(node, Series):
            assert all(step.scope for step in node.steps if isinstance(step, Series))


def test_a_series_in_a_series_is_flattened() -> None:
    assert plan.series([A, plan.series([B, plan.series([C])])]) == Series((A, B, C))


def test_a_series_with_a_scope_of_its_own_is_kept() -> None:
    inner = plan.series([B], Scope(queue="slow"))
    assert plan.series([A, inner, C]) == Series((A, inner, C))


def test_what_is_empty_is_left_out() -> None:
    nothing = [plan.series([]), plan.parallel([]), plan.series([], Scope(queue="slow"))]
    assert plan.series([*nothing, A, *nothing]) == Series((A,))
    assert plan.parallel([*nothing, A, *nothing]) == Parallel((A,))
    assert plan.series([plan.parallel([plan.series([plan.parallel([])])])]).size == 0


def test_a_parallel_of_one_stays_a_parallel() -> None:
    assert plan.series([plan.parallel([A])]) == Series((Parallel((A,)),))


def test_a_branch_that_is_a_series_of_one_is_the_step_itself() -> None:
    assert plan.parallel([plan.series([A]), B]) == Parallel((A, B))


def test_a_branch_of_one_step_with_a_scope_is_kept() -> None:
    branch = plan.series([A], Scope(queue="slow"))
    assert plan.parallel([branch]) == Parallel((branch,))


def test_a_plan_is_frozen() -> None:
    root = plan.series([A])
    for thing, name in [(root, "steps"), (A, "task"), (Parallel((A,)), "branches")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, ())


def test_deep_plans_are_refused_with_the_limit_and_a_way_out() -> None:
    node: Node = A
    for _ in range(MAX_DEPTH):
        node = plan.parallel([node])
    with pytest.raises(PlanTooDeep, match=f"{MAX_DEPTH} deep.*parent=self") as caught:
        plan.parallel([node])
    assert re.search(r"Clutch\(parent=self\)", str(caught.value))


# --- scopes -------------------------------------------------------------------------------


@given(full_scopes(), full_scopes())
def test_a_scope_inherits_what_it_does_not_set(inner: Scope, outer: Scope) -> None:
    found = inner.inherit(outer)
    for name in ("queue", "on_failure", "on_death"):
        assert getattr(found, name) == (getattr(inner, name) or getattr(outer, name))
    assert (found.on_success, found.on_end) == (inner.on_success, inner.on_end)


def test_what_is_inherited_and_what_is_not() -> None:
    inner = Scope("q", {"task": "f"}, {"task": "s"}, {"task": "d"})
    outer = Scope("Q", {"task": "F"}, {"task": "S"}, {"task": "D"})
    assert inner.inherit(outer) == inner
    assert Scope().inherit(outer) == Scope("Q", {"task": "F"}, None, {"task": "D"})
    assert inner.inherit(Scope()) == inner


@given(scopes())
def test_a_scope_is_true_when_it_sets_something(scope: Scope) -> None:
    assert bool(scope) is (scope != Scope())


@given(scopes())
def test_a_scope_survives_json(scope: Scope) -> None:
    assert Scope(**plan.scope_to_json(scope)) == scope


@given(st.lists(st.integers(0, 99), min_size=1, max_size=5))
def test_join_builds_an_address(path: list[int]) -> None:
    at = ""
    for index in path:
        at = plan.join(at, index)
    assert at == ".".join(map(str, path))
