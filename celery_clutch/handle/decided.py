"""What was decided in a run: how wide its maps are, what was chosen, what it goes on without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..compile.pages import decompress
from ..compile.record import Meta
from ..model import absent
from ..model.absent import Failed
from ..model.plan import (
    Choose,
    Job,
    Map,
    Node,
    Series,
    below,
    children,
    is_tolerant,
    join,
    loads,
    upwards,
)
from ..model.shape import Shape
from ..stores.base import Execution, Missing, Record, ResultStore
from ..stores.rows import UNUSUAL

READ = 1000
"""How many decisions are read at a time, and of how many branches that were added the plans."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided in a run.

    Attributes:
        widths: how many branches maps have, by address.
        values: those of the jobs that decide, by address.
        given_up: the deaths that were tolerated, by the address of the branch.
        added: branches that were added, by the address of their parallel or map: the name behind
            that, and the shape of each.
        plans: of branches that were added, by their address.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    given_up: Mapping[str, Failed] = field(default_factory=dict)
    added: Mapping[str, Sequence[tuple[str, Shape]]] = field(default_factory=dict)
    plans: Mapping[str, Node] = field(default_factory=dict)


NOTHING = Decided()


def read(
    store: ResultStore, root: Series, found: Record, executions: Mapping[str, Execution]
) -> Decided:
    """What was decided in the run *found*, which is of the plan *root*."""
    (unusual,) = store.counts(found.run, [UNUSUAL])
    added = store.added(found.run) if unusual else {}
    branches = [f"{address}.{name}" for address, some in added.items() for name, _ in some]
    plans = {at: node for at in branches[:READ] if (node := added_plan(store, found.run, at))}
    if not plans and not Meta.loads(found.meta).decides:
        return Decided(added=added)
    reader = _Reader(store, found, executions)
    reader.decisions([(root, ""), *((node, at) for at, node in plans.items())])
    given_up = reader.given_up(root) if unusual else {}
    return Decided(reader.widths, reader.values, given_up, added, plans)


def added_plan(store: ResultStore, run: str, branch: str) -> Node | None:
    """The plan of a branch that was added at the address *branch*; None if it is gone."""
    data = store.page(run, f"plan {branch}")
    return None if data is Missing else loads(decompress(data))


class _Reader:
    def __init__(
        self, store: ResultStore, found: Record, executions: Mapping[str, Execution]
    ) -> None:
        self.store = store
        self.found = found
        self.executions = executions
        self.widths: dict[str, int] = {}
        self.values: dict[str, Any] = {}

    def decisions(self, inside: list[tuple[Node, str]]) -> None:
        """Read those in the nodes at these addresses, those of maps before those of what is in
        their branches."""
        while inside:
            maps: list[tuple[Map, str]] = []
            deciders: list[str] = []
            for node, at in inside:
                self._look(node, at, maps, deciders)
            self.values.update((at, absent.decode(data)) for at, data in self._read(deciders))
            widths = {at: int(data) for at, data in self._read(at for _, at in maps)}
            self.widths.update(widths)
            inside = [each for node, at in maps for each in _branches(node, at, widths.get(at, 0))]

    def _look(self, node: Node, at: str, maps: list[tuple[Map, str]], deciders: list[str]) -> None:
        """Find the maps and deciders in *node* that are in no map there."""
        if isinstance(node, Map):
            maps.append((node, at))
            return
        if isinstance(node, Choose):
            decider = join(at, 0)
            if decider in self.executions and self.executions[decider].info is not None:
                deciders.append(decider)
        for place, child in below(node, at):
            if not isinstance(child, Job):
                self._look(child, place, maps, deciders)

    def given_up(self, root: Series) -> dict[str, Failed]:
        """The deaths that were tolerated, by branch."""
        if not root.tolerant:
            return {}
        places = {each for address in self.found.tolerated for each in upwards(address)}
        if self.found.generation:
            # What was tolerated before a run was resumed is known by the value of the branch alone.
            places.update(self._tolerant(root, ""))
        found: dict[str, Failed] = {}
        for at, data in self._read(places):
            if data.startswith(absent.MARK):
                found[at] = absent.decode(data)
        return found

    def _tolerant(self, node: Node, at: str) -> Iterator[str]:
        """The branches that may have died."""
        if not node.tolerant:
            return
        branches: Iterable[tuple[Node, str]] = ((child, place) for place, child in below(node, at))
        if isinstance(node, Map):
            width = self.widths.get(at, 0)
            branches = ((node.branch, join(at, index)) for index in range(width))
        for child, place in branches:
            if is_tolerant(node) and place not in self.executions:
                yield place
            yield from self._tolerant(child, place)

    def _read(self, addresses: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The values at *addresses* that are there."""
        wanted = list(addresses)
        for start in range(0, len(wanted), READ):
            some = wanted[start : start + READ]
            values = self.store.values(self.found.run, some)
            for address, data in zip(some, values, strict=True):
                if data is not Missing:
                    yield address, data


def _branches(node: Map, at: str, width: int) -> list[tuple[Node, str]]:
    """The branches of a map, if something is decided in them."""
    if not _decides(node.branch):
        return []
    return [(node.branch, join(at, index)) for index in range(width)]


def _decides(node: Node) -> bool:
    return isinstance(node, (Map, Choose)) or any(map(_decides, children(node)))
