"""What a plan means, said twice: straight from the tree, and by following pages and barriers.

A job's value here is a function of its address and of the values it is given, so that two
evaluations agree only when every job was given the same.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from celery_clutch.compile import cut as cut_module
from celery_clutch.compile import pages
from celery_clutch.compile.pages import Chain, Expand, Item, Narrow, Pages, Start
from celery_clutch.model import plan, shape
from celery_clutch.model.plan import Job, Node, Parallel, Series
from celery_clutch.model.shape import Shape
from celery_clutch.stores.base import Barrier, Settles


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
    """What came of pages.

    Attributes:
        previous: what each job was given, by address.
        values: the result of each job, by address.
        order: the jobs, as they completed.
        begun: the jobs, as they were started; with each, which were done by then.
        pages: the pages that were started, in their order.
        settled: what the barriers settled.
        told: what else than pages was due, and how many jobs were done by then.
    """

    previous: dict[str, list[Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    begun: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    settled: list[Settles] = field(default_factory=list)
    told: list[tuple[str, frozenset[str]]] = field(default_factory=list)


Pick = Callable[[int], int]
"""Which of so many chains goes on."""


def the_last(count: int) -> int:
    """Always the newest."""
    return count - 1


class _Follower:
    def __init__(self, cut: Pages, pick: Pick, value: Callable[[str, list[Any]], Any]) -> None:
        self.cut = cut
        self.pick = pick
        self.value = value
        self.found = Followed()
        self.chains: list[Chain] = []
        self.counts: Counter[str] = Counter()
        self.turns: dict[str, int] = {}

    def run(self) -> Followed:
        self.page(pages.ROOT)
        while self.chains:
            chain = self.chains.pop(self.pick(len(self.chains)))
            self.job(chain[0])
            if chain[1:]:
                assert not chain[0].barriers, "a job that something follows in its chain counts"
                self.chains.append(chain[1:])
        return self.found

    def page(self, key: str) -> None:
        self.found.pages.append(key)
        for start in self.cut.pages[key]:
            self.start(start)

    def start(self, start: Start) -> None:
        if isinstance(start, Expand):
            self.page(start.page)
        elif isinstance(start, Narrow):
            for each in start.starts:
                self.start(each)
        else:
            assert start, "a chain of nothing"
            if start[0].job.plain and start[0].job.prepend:
                self.read(start[0].previous)  # who sends it puts them into its message
            self.chains.append(start)

    def read(self, previous: Shape) -> list[Any]:
        values = self.found.values
        # A KeyError here: run before its time.
        return [shape.arrange(member, values, _none) for member in shape.members(previous)]

    def job(self, item: Item) -> None:
        found = self.found
        assert item.at not in found.values, f"job {item.at} runs twice"
        found.begun.append((item.at, frozenset(found.order)))
        found.previous[item.at] = self.read(item.previous)
        found.values[item.at] = self.value(item.at, found.previous[item.at])
        found.order.append(item.at)
        for barrier in item.barriers:
            self.counts[barrier.name] += 1
            assert self.counts[barrier.name] <= barrier.width, f"{barrier.name} counts too many"
            if self.counts[barrier.name] == barrier.width:
                self.open(barrier)

    def open(self, barrier: Barrier) -> None:
        if barrier.settles:
            self.found.settled.append(barrier.settles)
        if turn := barrier.turn:
            number = self.turns.get(turn.address, turn.limit)
            self.turns[turn.address] = number + 1
            if number < turn.width:
                self.page(f"{turn.address}/{number}")
        kind, _, page = barrier.then.partition(" ")
        if kind == "page":
            self.page(page)
        elif kind:
            self.found.told.append((barrier.then, frozenset(self.found.order)))


def follow(
    cut: Pages,
    pick: Pick = the_last,
    *,
    value: Callable[[str, list[Any]], Any] = value_of,
) -> Followed:
    """Run the pages of *cut*, a job at a time, as barriers open; *pick* says whose turn it is."""
    return _Follower(cut, pick, value).run()


def all_items(cut: Pages) -> list[Item]:
    """Every item of the pages that a run goes through when nothing fails."""
    return [item for key in follow(cut).pages for item in pages.items(cut.pages[key])]


def starts_of(starts: Iterable[Start]) -> Iterator[Start]:
    """*starts* and those inside narrow parallels."""
    for start in starts:
        yield start
        if isinstance(start, Narrow):
            yield from starts_of(start.starts)


def before(root: Series, address: str) -> set[str]:
    """The jobs that have to be done before the one at *address* starts."""
    found: set[str] = set()
    node: Node = root
    at = ""
    for part in address.split("."):
        index = int(part)
        if isinstance(node, Series):
            for number in range(index):
                found.update(jobs_of(node.steps[number], plan.join(at, number)))
        node, at = plan.children(node)[index], plan.join(at, index)
    return found


def jobs_of(node: Node, at: str) -> set[str]:
    """The addresses of the jobs in *node*, which is at *at*."""
    if isinstance(node, Job):
        return {at}
    return {below for below, each in plan.walk(node, at) if isinstance(each, Job)}


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


@contextmanager
def limits(small: bool) -> Iterator[None]:
    """With *small*, pages so small that a plan of a few jobs takes many."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for name, value in {"CHAIN": 3, "WIDTH": 3}.items():
                patch.setattr(cut_module, name, value)
        yield


def _none(address: str, skipped: bool) -> Any:
    raise KeyError(address)
