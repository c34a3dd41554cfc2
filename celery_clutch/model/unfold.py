"""A plan as it is in a run: maps have as many branches as their lists have elements. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .plan import Choose, Map, Node, Parallel, Series, below, children


@dataclass(frozen=True, slots=True)
class Unfolded(Parallel):
    """A parallel, or a map, in a run.

    Attributes:
        is_map: it is a map.
        added: how many branches have been added to it; they are not among ``branches``.
    """

    is_map: bool = False
    added: int = 0


def unfold(
    node: Node, widths: Mapping[str, int], added: Mapping[str, Sequence[object]], at: str = ""
) -> Node:
    """*node*, which is at the address *at*, with what is known of it in a run.

    Branches of a map that are alike are one object, so that a wide map takes little memory.

    Args:
        node: the plan, or a branch that was added.
        widths: how many branches maps have, by address, where that is known.
        added: the branches that were added, by the address of their parallel or map.
    """
    if not widths and not added:
        return node
    return _Unfolding(widths, added).node(node, at)


class _Unfolding:
    def __init__(self, widths: Mapping[str, int], added: Mapping[str, Sequence[object]]) -> None:
        self.widths = widths
        self.added = added

    def node(self, node: Node, at: str) -> Node:
        if isinstance(node, Map):
            return self.map(node, at)
        changed = False
        inner: list[Node] = []
        for place, child in below(node, at):
            found = self.node(child, place)
            changed = changed or found is not child
            inner.append(found)
        if isinstance(node, Parallel) and (changed or at in self.added):
            return self.parallel(node, tuple(inner), at)
        if isinstance(node, Series) and changed:
            return replace(node, steps=tuple(inner))
        if isinstance(node, Choose) and changed:
            return _with_options(node, inner[1:])
        return node

    def map(self, node: Map, at: str) -> Node:
        width = self.widths.get(at)
        if width is None:
            return node
        branches = (node.branch,) * width
        if self.added or _has_map(node.branch):
            branches = tuple(self.node(node.branch, f"{at}.{index}") for index in range(width))
        return self.parallel(node, branches, at)

    def parallel(self, node: Parallel | Map, branches: tuple[Node, ...], at: str) -> Unfolded:
        bounds = node.limit, node.name, node.allow, node.need
        added = len(self.added.get(at, ()))
        return Unfolded(branches, node.scope, *bounds, isinstance(node, Map), added)


def _with_options(node: Choose, options: Sequence[Node]) -> Choose:
    keys = [key for key, _ in node.options]
    default = options[len(keys)] if node.default is not None else None
    return replace(node, options=tuple(zip(keys, options, strict=False)), default=default)


def _has_map(node: Node) -> bool:
    return isinstance(node, Map) or any(map(_has_map, children(node)))
