"""Where the values of a node are: the addresses of the jobs that end it, nested as they are. Pure.

A *shape* is the address of a job; ``"1*3"`` for the jobs 1.0, 1.1 and 1.2; ``"1*3.4"`` for 1.0.4,
1.1.4 and 1.2.4; or a list of shapes, one for each branch. ``""`` is the shape of nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .plan import Branches, Job, Node, Parallel, Series, join

Shape = str | list[Any]


def shape(node: Node, address: str) -> Shape:
    """The shape of *node*, which is at *address*: of a series, that of its last step."""
    if isinstance(node, Job):
        return address
    if isinstance(node, Series):
        last = len(node.steps) - 1
        return shape(node.steps[last], join(address, last))
    tails: set[str | None] = (
        {""} if _only_jobs(node) else {_tail(branch) for branch in node.branches}
    )
    if len(tails) == 1 and None not in tails:
        return f"{address}*{len(node.branches)}{tails.pop()}"
    return [shape(branch, join(address, i)) for i, branch in enumerate(node.branches)]


def checked(value: Any) -> Shape:
    """*value*, which was read from JSON.

    Raises:
        TypeError, ValueError: it is not a shape.
    """
    if isinstance(value, list):
        for each in value:
            checked(each)
        return value
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a shape")
    _, star, rest = value.partition("*")
    if star:
        int(rest.partition(".")[0])
    return value


def ends(node: Node) -> int:
    """How many jobs end *node*."""
    if isinstance(node, Job):
        return 1
    if isinstance(node, Series):
        return ends(node.steps[-1])
    if _only_jobs(node):
        return len(node.branches)
    return sum(ends(branch) for branch in node.branches)


def members(of: Shape) -> Sequence[Shape]:
    """The shapes of the entries of ``previous_results``: the branches of a parallel, or the one
    job."""
    if isinstance(of, list):
        return of
    if not of:
        return []
    address, star, rest = of.partition("*")
    if not star:
        return [of]
    width, _, tail = rest.partition(".")
    suffix = f".{tail}" if tail else ""
    return [f"{address}.{index}{suffix}" for index in range(int(width))]


def is_parallel(of: Shape) -> bool:
    """Whether *of* is the shape of a parallel."""
    return isinstance(of, list) or "*" in of


def addresses(of: Shape) -> Iterator[str]:
    """The address of every job in a shape, in definition order."""
    if not is_parallel(of):
        yield from members(of)  # type: ignore[misc]
        return
    for member in members(of):
        yield from addresses(member)


def arrange(of: Shape, values: Iterator[Any]) -> Any:
    """The *values* of the addresses of a shape, in their order, nested as the shape is."""
    if not is_parallel(of):
        return next(values)
    return [arrange(member, values) for member in members(of)]


def _only_jobs(node: Parallel) -> bool:
    """Whether that is known without looking at each branch."""
    return isinstance(node.branches, Branches) and node.branches.only_jobs


def _tail(branch: Node) -> str | None:
    """What stands behind the address of a branch in that of its last job; None where there are
    several."""
    if isinstance(branch, Job):
        return ""
    if isinstance(branch, Parallel):
        return None
    last = len(branch.steps) - 1
    below = _tail(branch.steps[last])
    return None if below is None else f".{last}{below}"
