"""Where in a run an address is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..compile.values import Decisions
from ..errors import UnknownAddress
from ..model import plan, shape
from ..model.plan import EACH, Choose, Map, Node, Parallel, Series
from ..model.shape import Shape


def shape_at(root: Series, address: Any, decisions: Decisions) -> Shape:
    """The shape of the node at *address* in a run of the plan *root*; branches of maps have the
    numbers that they have in the run.

    Raises:
        UnknownAddress: there is none.
        MissingResult: it is not known yet how many branches the map has.
    """
    if not isinstance(address, str):
        raise _unknown(address)
    walk = _Walk(root, address)
    for part in address.split("."):
        added = walk.added(part, decisions) if "+" in part else None
        if added is not None:
            return added
        walk.enter(part, decisions)
    return walk.shape()


class _Walk:
    """The way to an address.

    Attributes:
        node: where it has come to.
        template: the address of that, with `EACH` for branches of maps.
        numbers: those of these branches.
        before: the shape of what comes before the node in its branch; None for nothing.
    """

    def __init__(self, root: Series, address: str) -> None:
        self.address = address
        self.node: Node = root
        self.template = ""
        self.numbers: list[str] = []
        self.before: Shape | None = ""

    def enter(self, part: str, decisions: Decisions) -> None:
        """Go on to the child with this number."""
        if not part.isdecimal() or str(int(part)) != part:
            raise _unknown(self.address)
        index = int(part)
        if isinstance(self.node, (Map, Parallel)):
            self.before = None
        if isinstance(self.node, Map):
            at = self.here()
            width = int(decisions(at))
            if index >= width:
                raise UnknownAddress(
                    f"the run has no address {self.address!r}: the map at {at} has {width:,} "
                    "branches"
                )
            self.numbers.append(part)
            self.node, self.template = self.node.branch, plan.join(self.template, EACH)
            return
        below = plan.children(self.node)
        if index >= len(below):
            raise _unknown(self.address)
        if isinstance(self.node, Series) and index:
            self.before = _last(below[:index], self.template, self.before)
        if isinstance(self.node, Choose) and not index:
            self.before = ""
        self.node, self.template = below[index], plan.join(self.template, index)

    def added(self, part: str, decisions: Decisions) -> Shape | None:
        """The shape of what is in a branch that was added: the whole of it, or one of its jobs."""
        at = self.here()
        for name, of in decisions.added.get(at, ()):
            if name == part:
                branch = plan.join(at, part)
                return of if self.address == branch else self.address
        return None

    def shape(self) -> Shape:
        """The shape of the node."""
        of = shape.shape(self.node, self.template, self.before)
        for number in self.numbers:
            of = shape.substitute(of, number)
        return of

    def here(self) -> str:
        """The address of the node."""
        at: str = self.template
        for number in self.numbers:
            at = shape.substitute(at, number)
        return at


def _last(steps: Sequence[Node], address: str, before: Shape | None) -> Shape:
    """The shape of the last of *steps*, in a series at *address*."""
    return shape.shape(Series(tuple(steps)), address, before)


def _unknown(address: Any) -> UnknownAddress:
    return UnknownAddress(
        f"the plan has no address {address!r}; an address is a string such as '0' or '1.2'"
    )
