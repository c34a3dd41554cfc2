"""What a plan means, said twice: straight from the tree, and by following pages and slots.

A job's value here is a function of its address and of the values it is given, so that two
evaluations agree only when every job was given the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_clutch.compile import pages
from celery_clutch.compile.pages import CloseItem, Expand, Item, JobItem, Pages, ParallelItem
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Series


def value_of(address: str, previous: list[Any]) -> str:
    """What the job at *address* returns when it is given *previous*."""
    return f"{address}:{zlib.crc32(repr(previous).encode()):x}"


@dataclass
class Evaluation:
    """What came of a plan.

    Attributes:
        previous: what each job was given, by address.
        values: the value of each node, by address.
        last: the results of the last step.
    """

    previous: dict[str, list[Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    last: list[Any] = field(default_factory=list)


def evaluate(root: Series, value: Callable[[str, list[Any]], Any] = value_of) -> Evaluation:
    """*root*, recursively."""
    found = Evaluation()

    def visit(node: Node, at: str, previous: list[Any]) -> list[Any]:
        """Evaluate *node*; the results that the step after it is given."""
        if isinstance(node, Job):
            found.previous[at] = previous
            results = [value(at, previous)]
        elif isinstance(node, Parallel):
            branches = enumerate(node.branches)
            results = []
            for index, branch in branches:
                place = plan.join(at, index)
                visit(branch, place, previous)
                results.append(found.values[place])
        else:
            results = previous
            for index, step in enumerate(node.steps):
                results = visit(step, plan.join(at, index), results)
        found.values[at] = _own(node, at, results)
        return results

    def _own(node: Node, at: str, results: list[Any]) -> Any:
        if isinstance(node, Parallel):
            return results
        if isinstance(node, Series):
            last = plan.join(at, len(node.steps) - 1)
            return found.values[last] if node.steps else None
        return results[0]

    last = visit(root, "", [])
    found.last = last if root.size else []
    return found


@dataclass
class Followed:
    """What came of pages: slots instead of addresses for values."""

    previous: dict[str, list[Any]] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


def follow(
    cut: Pages,
    *,
    done: Mapping[str, Any] | None = None,
    value: Callable[[str, list[Any]], Any] = value_of,
) -> Followed:
    """Run the pages of *cut*; branches in reverse, for none may depend on another.

    Args:
        done: results that are there already, by slot: their jobs are taken out of each page, as a
            resumed run does.
    """
    found = Followed(slots=dict(done or {}))

    def read(previous: str) -> list[Any]:
        slots, _ = pages.expand_slots(previous)
        return [found.slots[slot] for slot in slots]  # a KeyError here: run before its time

    def write(slot: str, result: Any) -> None:
        assert slot not in found.slots, f"slot {slot} is written twice"
        found.slots[slot] = result
        found.order.append(slot)

    def run_page(items: Iterable[Item]) -> None:
        run(items if done is None else pages.without(items, set(done)))

    def run(items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, JobItem):
                assert item.at not in found.previous, f"job {item.at} runs twice"
                found.previous[item.at] = read(item.previous)
                write(item.slot, value(item.at, found.previous[item.at]))
            elif isinstance(item, ParallelItem):
                for branch in reversed(item.branches):
                    run(branch)
            elif isinstance(item, Expand):
                run_page(cut.pages[item.page])
            elif slot := pages.close_slot(item):
                write(slot, read(item.previous) if item.previous else None)

    run_page(cut.pages[pages.ROOT])
    return found


def all_items(cut: Pages) -> list[Item]:
    """Every item of every page, those inside parallels included."""
    return [item for items in cut.pages.values() for item in flat(items)]


def flat(items: Iterable[Item]) -> list[Item]:
    """*items* and those inside their parallels."""
    found: list[Item] = []
    for item in items:
        found.append(item)
        if isinstance(item, ParallelItem):
            for branch in item.branches:
                found.extend(flat(branch))
    return found


def enclosing(root: Series, address: str) -> list[str]:
    """The addresses of the parallels around *address*, the nearest first."""
    kinds = dict(plan.walk(root))
    parts = address.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    return [at for at in above if isinstance(kinds[at], Parallel)]


def reporter(root: Series, at: str) -> tuple[str, str | None]:
    """Which step reports a failure of the job at *at*, and whose ``on_failure`` that is.

    The step is the nearest parallel, unless a clutch with an ``on_failure`` of its own is nearer:
    then the job is a step by itself, as it is outside of parallels.
    """
    nodes = {"": root, **dict(plan.walk(root))}
    around, step = at, None
    while around:
        around = around.rpartition(".")[0]
        node = nodes[around]
        if isinstance(node, Parallel):
            step = step or around
        if not isinstance(node, Job) and node.scope.on_failure:
            return step or at, around
    return step or at, None


__all__ = [
    "CloseItem",
    "Evaluation",
    "Followed",
    "all_items",
    "enclosing",
    "evaluate",
    "flat",
    "follow",
    "reporter",
    "value_of",
]
