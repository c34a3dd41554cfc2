"""Plans of all kinds of steps, generated; and what they give, said once more in a few lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from unit.reference import value_of

from celery_clutch.model import plan, shape
from celery_clutch.model.plan import Choose, Job, Map, Node, Series

WORK = "it.reckon"
KEYS = ("a", "b", "c")

SKIPPED = "skipped"
FAILED = "failed"


class Dead(Exception):
    """A job has no attempt left."""


@dataclass
class Given:
    """What came of a plan: the value of each job that has run, by address.

    Attributes:
        perhaps: of jobs beside a dead one in a branch that the run went on without: it may have
            ended before they began.
    """

    dead: frozenset[str] = frozenset()
    values: dict[str, Any] = field(default_factory=dict)
    perhaps: dict[str, Any] = field(default_factory=dict)

    def go_on_without(self, branch: str) -> None:
        """Nobody waits for what else is in *branch*."""
        for at in list(self.values):
            if plan.is_in(at, branch):
                self.perhaps[at] = self.values.pop(at)


def work() -> st.SearchStrategy[Node]:
    return st.just(Job(WORK))


def nodes() -> st.SearchStrategy[Node]:
    return st.recursive(work(), _around, max_leaves=10)


def plans() -> st.SearchStrategy[Series]:
    """Plans that start with a job, so that what follows has previous results."""
    return st.lists(nodes(), min_size=1, max_size=3).map(
        lambda some: plan.series([Job(WORK), *some])
    )


def _around(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(inner, min_size=1, max_size=3)
    limit = st.none() | st.integers(1, 2)
    allow = st.sampled_from([False, True])
    return st.one_of(
        some.map(plan.series),
        st.builds(lambda b, n, a: plan.parallel(b, limit=n, allow=a), some, limit, allow),
        st.builds(_mapped, inner, st.integers(0, 3), limit, allow),
        st.builds(_chosen, some, st.sampled_from(KEYS), st.booleans()),
        st.builds(_when, inner, st.booleans()),
    )


def _mapped(branch: Node, width: int, limit: int | None, allow: bool) -> Node:
    elements = Job("it.value", (list(range(width)),))
    # The first step of a branch takes the element; a map is never one.
    template = plan.series([Job(WORK), branch])
    return plan.series([elements, Map(template, limit=limit, allow=allow)])


def _chosen(options: list[Node], key: str, default: bool) -> Node:
    keyed = tuple((shape.key_of(name), option) for name, option in zip(KEYS, options))
    known = key in KEYS[: len(options)]
    other = Job(WORK) if default or not known else None
    return Choose(Job("it.value", (key,)), keyed, other)


def _when(node: Node, runs: bool) -> Node:
    return Choose(Job("it.value", (runs,)), ((shape.key_of(True), node),), truth=True)


def evaluate(root: Series, given: Given) -> list[Any]:
    """The results of the last step.

    Raises:
        Dead: there are none.
    """
    _, following = _value(root, "", [], given)
    return following


def _value(node: Node, at: str, previous: list[Any], given: Given, *args: Any) -> Any:
    """The value of *node*, and the previous results of what follows it; `SKIPPED` if it has none."""
    if isinstance(node, Job):
        return _job(node, at, previous, given, *args)
    if isinstance(node, Series):
        value: Any = SKIPPED
        for index, step in enumerate(node.steps):
            own = args if not index else ()
            got, previous = _value(step, plan.join(at, index), previous, given, *own)
            value = value if got == SKIPPED else got
        return value, previous
    if isinstance(node, Choose):
        return _choice(node, at, previous, given)
    branches: list[tuple[Node, tuple[Any, ...]]]
    if isinstance(node, Map):
        branches = [(node.branch, (element,)) for element in previous[0]]
    else:
        branches = [(branch, args) for branch in node.branches]
    values: list[Any] = []
    died = False
    for index, (branch, own) in enumerate(branches):
        try:
            got, _ = _value(branch, plan.join(at, index), previous, given, *own)
        except Dead:
            died = died or not node.allow
            if node.allow:
                given.go_on_without(plan.join(at, index))
            got = FAILED
        values.append(got)
    if died:
        raise Dead(at)
    return values, values


def _job(node: Job, at: str, previous: list[Any], given: Given, *args: Any) -> Any:
    if at in given.dead:
        raise Dead(at)
    value = node.args[0] if node.task == "it.value" else value_of(at, [*args, *previous])
    given.values[at] = value
    return value, [value]


def _choice(node: Choose, at: str, previous: list[Any], given: Given) -> Any:
    decided, _ = _job(node.decider, plan.join(at, 0), previous, given)
    key = shape.key_of(decided, truth=node.truth)
    for index, (name, option) in enumerate(node.branches(), 1):
        if name in (key, None):
            return _value(option, plan.join(at, index), previous, given)
    return SKIPPED, previous


def jobs(root: Series) -> list[str]:
    """The addresses of the jobs that may die: of those in maps, of each branch."""
    found: list[str] = []
    for at, node in plan.walk(root):
        if isinstance(node, Job) and node.task == WORK:
            found += _each(at)
    return found


def _each(at: str) -> list[str]:
    if plan.EACH not in at:
        return [at]
    return [full for number in range(3) for full in _each(at.replace(plan.EACH, str(number), 1))]


def plain(value: Any) -> Any:
    """*value* with what stands for values that there are not as the reference says it."""
    from celery_clutch import Failed, Skipped

    if isinstance(value, Failed) or (isinstance(value, dict) and "exception" in value):
        return FAILED
    if isinstance(value, Skipped) or (isinstance(value, dict) and value.keys() == {"address"}):
        return SKIPPED
    return [plain(each) for each in value] if isinstance(value, list) else value
