"""A run as lines of text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..model import names
from ..model.graph import TIMES, WIDE, counts, printable
from ..model.status import Failure
from .node import Node, Tree
from .words import duration, headline, told

MARKS = {
    "waiting": "·",
    "running": "▸",
    "done": "✓",
    "failing": "!",
    "dead": "✗",
    "cancelled": "-",
    "tolerated": "~",
    "skipped": "○",
}

_PARALLEL = ("parallel", "map")
MOST = 60
"""Characters of arguments that are shown."""
NOTABLE = 0.1
"""Seconds that a job has to have waited for it to be said."""


class Line(NamedTuple):
    """Something to show: what it says, the state it shows, the lines inside it, and what else
    there is to say, in as many lines as it has."""

    text: str
    state: str = ""
    below: tuple[Line, ...] = ()
    more: str = ""


def lines(
    tree: Tree,
    now: float,
    *,
    wide: int = WIDE,
    traceback: bool = False,
    arguments: bool = False,
) -> Line:
    """*tree* as what to show: of a parallel wider than *wide* the branches that are in trouble, or
    running.

    Args:
        tree: the run.
        now: the time by the store's clock, in seconds since the epoch.
        wide: how many branches of a parallel are shown one by one.
        traceback: show the traceback of each failure.
        arguments: show those of each job.
    """

    def line(node: Node) -> Line:
        what = node.task or node.kind
        if arguments and node.kind == "job":
            what += f"({names.cut(node.call, MOST)})"
        label = names.label(node.name, node.address, what)
        notes = _notes(node, now)
        if node.key:
            label = f"{node.key}: {label}"
        if node.kind in _PARALLEL and len(node.below) > wide:
            label += f" {TIMES} {len(node.below):,}"
        below = [*map(line, _shown(node, wide))]
        if (left := len(node.below) - len(below)) and below:
            below.append(Line(f"… and {left:,} more"))
        more = node.failure.traceback if traceback and node.failure else ""
        below += [whole(each, "nested ") for each in node.nested]
        return Line(printable("  ".join([label, *notes])), node.state, tuple(below), more)

    def whole(tree: Tree, prefix: str = "") -> Line:
        known = {node.address for node in tree.walk()}
        below = [line(node) for node in tree.root.below]
        for failure in tree.status.failures:  # of what is in no plan: an internal task
            if failure.address not in known:
                below.append(Line(printable(f"{failure.address}  {_told(failure)}"), "dead"))
        return Line(printable(prefix + headline(tree.status)), "", tuple(below))

    return whole(tree)


def _shown(node: Node, wide: int) -> Sequence[Node]:
    if node.kind not in _PARALLEL or len(node.below) <= wide:
        return node.below
    trouble = [each for each in node.below if each.state in ("failing", "dead", "tolerated")]
    return [*trouble, *(each for each in node.below if each.state == "running")][:wide]


def _notes(node: Node, now: float) -> Iterator[str]:
    if node.kind != "job":
        if sum(node.states.values()) > 1:
            yield counts(node.states)
    else:
        attempt, started, seconds = node.timing()
        if seconds is not None:
            yield duration(seconds)
        elif started is not None:
            yield f"running for {duration(max(now - started, 0))}"
        if node.waited is not None and node.waited >= NOTABLE:
            yield f"waited {duration(node.waited)}"
        if node.host and started is not None:
            yield f"@{node.host}"
        if attempt and attempt > 1:
            yield f"attempt {attempt}"
    if node.failure:
        yield _told(node.failure)
    if node.retry_at is not None:
        left = node.retry_at - now
        yield f"next attempt in {duration(left)}" if left > 0 else "next attempt is due"


def _told(failure: Failure) -> str:
    again = "" if failure.final else f" (attempt {failure.attempt}; it is retried)"
    return f"{told(failure)}{again}"
