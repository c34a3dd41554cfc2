"""Where in a run an address is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..compile.values import Decisions
from ..errors import UnknownAddress
from ..model import plan, shape
from ..model.plan import EACH, Choose, Map, Node, Parallel, Series
from ..model.shape import Shape
from .decided import added_plan


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
        if "+" in part:
            walk.enter_added(part, decisions)
        else:
            walk.enter(part, decisions)
    return walk.shape()


class _Walk:
    """The way to an address.

    Attributes:
        node: where it has come to.
        template: the address of that, with `EACH` for branches of maps.
        numbers: those of these branches.
        before: the shape of what comes before the node.
        is_branch: the node is a branch, which stands for its own absence.
        may_fail: the node is a branch that the run goes on without if it dies.
    """

    def __init__(self, root: Series, address: str) -> None:
        self.address = address
        self.node: Node = root
        self.template = ""
        self.numbers: list[str] = []
        self.before: Shape = ""
        self.is_branch = False
        self.may_fail = False

    def enter(self, part: str, decisions: Decisions) -> None:
        """Go on to the child with this number."""
        if not part.isdecimal() or str(int(part)) != part:
            raise _unknown(self.address)
        index = int(part)
        self.may_fail = plan.is_tolerant(self.node)
        self.is_branch = isinstance(self.node, (Map, Parallel))
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

    def enter_added(self, part: str, decisions: Decisions) -> None:
        """Go on to a branch that was added under this name."""
        at = self.here()
        branch = plan.join(at, part)
        node = None
        if part in (name for name, _ in decisions.added.get(at, ())):
            node = added_plan(decisions.store, decisions.run, branch)
        if node is None:
            raise _unknown(self.address)
        for number in self.numbers:
            self.before = shape.substitute(self.before, number)
        self.is_branch = True
        self.may_fail = plan.is_tolerant(self.node)
        self.node, self.template, self.numbers = node, branch, []

    def shape(self) -> Shape:
        """The shape of the node."""
        of = shape.shape(self.node, self.template, None if self.is_branch else self.before)
        if self.may_fail:
            of = {"branch": self.template, "of": of, "need": 0}
        for number in self.numbers:
            of = shape.substitute(of, number)
        return of

    def here(self) -> str:
        """The address of the node."""
        at: str = self.template
        for number in self.numbers:
            at = shape.substitute(at, number)
        return at


def _last(steps: Sequence[Node], address: str, before: Shape) -> Shape:
    """The shape of the last of *steps*, in a series at *address*."""
    return shape.shape(Series(tuple(steps)), address, before)


def _unknown(address: Any) -> UnknownAddress:
    return UnknownAddress(
        f"the plan has no address {address!r}; an address is a string such as '0' or '1.2'"
    )
