"""Hypothesis strategies: plans, JSON values, failures."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Scope, Series
from celery_clutch.model.status import Failure, State, Status

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
words = st.text(string.ascii_lowercase, min_size=1, max_size=6)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_leaves = st.none() | st.booleans() | numbers | texts


def nested(leaves: st.SearchStrategy[Any], max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """Lists and dicts of *leaves*."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=max_leaves,
    )


json_values = nested(json_leaves)


def handlers() -> st.SearchStrategy[dict[str, Any]]:
    """A handler's signature in its dict form."""
    return st.builds(
        lambda task, args: {
            "task": task,
            "args": args,
            "kwargs": {},
            "options": {},
            "subtask_type": None,
            "immutable": False,
        },
        words,
        st.lists(json_leaves, max_size=2),
    )


def full_scopes(*, on_success: bool = True) -> st.SearchStrategy[Scope]:
    """Scopes that set something, as a rule; ``on_end``, which is of a whole run, they do not."""
    return st.builds(
        Scope,
        queue=st.none() | words,
        on_failure=st.none() | handlers(),
        on_success=(st.none() | handlers()) if on_success else st.none(),
        on_death=st.none() | handlers(),
    )


def scopes() -> st.SearchStrategy[Scope]:
    """Scopes, most of them empty."""
    return st.just(Scope()) | st.just(Scope()) | full_scopes()


def jobs() -> st.SearchStrategy[Job]:
    """Jobs of every kind."""
    return st.builds(
        Job,
        task=words,
        args=st.lists(json_leaves, max_size=2).map(tuple),
        kwargs=st.dictionaries(words, json_leaves, max_size=1),
        options=st.dictionaries(st.sampled_from(["queue", "routing_key", "priority"]), words),
        plain=st.booleans(),
        prepend=st.booleans(),
    )


def bare_jobs() -> st.SearchStrategy[Job]:
    """Jobs that differ in kind alone, for tests of shape."""
    kinds = [Job("t"), Job("t"), Job("t", plain=True), Job("t", plain=True, prepend=True)]
    return st.sampled_from(kinds)


def plans(
    job: st.SearchStrategy[Job] | None = None,
    scope: st.SearchStrategy[Scope] | None = None,
    *,
    max_leaves: int = 40,
    built: bool = False,
    narrow: bool = False,
) -> st.SearchStrategy[Series]:
    """Whole plans; empty ones and empty blocks included.

    With *built*, such as a builder makes: it puts scopes on series alone. With *narrow*, some
    parallels run only so many branches at a time.
    """
    scope = scopes() if scope is None else scope
    quiet = scope.map(lambda each: Scope(each.queue, each.on_failure, None, each.on_death))
    quiet = st.just(Scope()) if built else quiet

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        found = _composed(plan.series, inner, scope) | _composed(plan.parallel, inner, quiet)
        if narrow:
            found |= _composed(plan.parallel, inner, quiet, st.integers(1, 4))
        return found

    nodes = st.recursive(bare_jobs() if job is None else job, grow, max_leaves=max_leaves)
    return st.builds(plan.series, st.lists(nodes, max_size=6), scope)


def _composed(
    make: Callable[..., Series | Parallel],
    inner: st.SearchStrategy[Node],
    scope: st.SearchStrategy[Scope],
    *more: st.SearchStrategy[Any],
) -> st.SearchStrategy[Node]:
    return st.builds(make, st.lists(inner, max_size=5), scope, *more)


def with_names(node: Node, address: str = "") -> Node:
    """*node* with a name for every step in it, derived from its address: ``"at 1.2"``."""
    if isinstance(node, Job):
        return dataclasses.replace(node, name=f"at {address}")
    below = tuple(
        with_names(child, plan.join(address, index))
        for index, child in enumerate(plan.children(node))
    )
    field = "steps" if isinstance(node, Series) else "branches"
    return dataclasses.replace(node, name=f"at {address}", **{field: below})


envelopes = st.fixed_dictionaries(
    {
        "__type__": st.sampled_from(["bytes", "datetime", "decimal", "uuid", "date", "no"])
        | json_values,
        "__value__": json_values,
    }
)
"""What kombu decodes, or cannot."""

any_json = nested(json_leaves | envelopes)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value that is *value* but for one thing in it, which is something else, or missing."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 3)) == 0:
        return draw(any_json)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    again: Any = value.copy()
    if draw(st.integers(0, 3)) == 0:
        del again[key]
    else:
        again[key] = draw(mutated(again[key]))
    return again


failures = st.builds(
    Failure,
    address=st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,2}){0,3}", fullmatch=True),
    task=words,
    task_id=words,
    exception=words,
    message=texts,
    traceback=texts,
    attempt=st.integers(1, 99),
    final=st.booleans(),
    at=st.datetimes().map(lambda at: at.isoformat()),
)

statuses = st.builds(
    Status,
    id=words,
    name=st.none() | texts,
    tags=st.lists(words, max_size=3).map(tuple),
    state=st.sampled_from(State),
    generation=st.integers(0, 9),
    total=st.integers(0, 99),
    done=st.integers(0, 99),
    failing=st.integers(0, 99),
    dead=st.integers(0, 99),
    created_at=words,
    updated_at=words,
    ended_at=st.none() | words,
    parent=st.none() | st.fixed_dictionaries({"run": words, "address": words}),
    step=st.none() | words,
    failures=st.lists(failures, max_size=3).map(tuple),
    failure_count=st.integers(0, 99),
    exceptions=st.dictionaries(words, st.integers(0, 99), max_size=3),
    draining=st.integers(0, 99),
)
