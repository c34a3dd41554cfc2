"""Where the values of a node are: the addresses of the jobs that end it, nested as they are. Pure.

A *shape* is the address of a job; ``"1*3"`` for the jobs 1.0, 1.1 and 1.2; ``"1*3.4"`` for 1.0.4,
1.1.4 and 1.2.4; or a list of shapes, one for each branch. ``""`` is the shape of nothing.

Two kinds are known only while the run runs, and `resolve` says what they are: ``{"choose": address
of the decider, "keys": {key: shape}, "else": shape, "truth": bool}`` and ``{"map": address, "of":
shape of a branch}``. Where branches may be missing it is ``{"some": address of the parallel, "of":
shape, "need": how many have to be there, or 0 for all}``, and each of them ``{"branch": its
address, "of": shape, "need": ...}``: its value is what is stored for the branch itself, else that
of the shape, which is ``""`` where the branch was skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from ..errors import MissingResult
from .plan import (
    EACH,
    Branches,
    Choose,
    Job,
    Map,
    Node,
    Parallel,
    Series,
    below,
    is_in,
    is_tolerant,
    join,
)

Shape = str | list[Any] | dict[str, Any]

_KINDS = ("choose", "map", "some", "branch")

Decided = Callable[[str], Any]
"""The value of a decider, or how many branches a map has, by address."""

Added = Mapping[str, Sequence[tuple[str, Shape]]]
"""Branches that were added to parallels, by the address of those: the name of each, behind that
address, and its shape."""


def shape(node: Node, address: str, before: Shape | None = None) -> Shape:
    """The shape of *node*, which is at *address*: of a series, that of its last step.

    *before* is that of what comes before the node: it stands for a choice of nothing. Without it
    the node is a branch, or read by itself, and stands for its own absence.
    """
    if isinstance(node, Job):
        return address
    if before is None:
        before = {"branch": address, "of": "", "need": True} if address else ""
    if isinstance(node, Series):
        return _of_steps(node.steps, address, before)
    if isinstance(node, Choose):
        return _of_choice(node, address, before)
    if isinstance(node, Map):
        each: Shape = {"map": address, "of": shape(node.branch, join(address, EACH))}
        return _some(node, address, each)
    return _some(node, address, _of_branches(node, address))


def _of_steps(steps: Sequence[Node], address: str, before: Shape) -> Shape:
    if not steps:
        return before
    last = len(steps) - 1
    if _may_pass(steps[last]):
        before = _of_steps(steps[:last], address, before)
    return shape(steps[last], join(address, last), before)


def _may_pass(node: Node) -> bool:
    """Whether the node may have no value of its own."""
    if isinstance(node, Choose):
        return node.truth or any(_may_pass(option) for _, option in node.branches())
    return isinstance(node, Series) and all(map(_may_pass, node.steps))


def _of_choice(node: Choose, address: str, before: Shape) -> Shape:
    """The shapes of the options by key; of nothing, that of what came before."""
    places = [place for place, _ in below(node, address)]
    keys: dict[str, Shape] = {}
    other: Shape = before
    for (key, option), place in zip(node.branches(), places[1:], strict=True):
        if key is None:
            other = shape(option, place, before)
        else:
            keys[key] = shape(option, place, before)
    return {"choose": places[0], "keys": keys, "else": other, "truth": node.truth}


def _of_branches(node: Parallel, address: str) -> Shape:
    tails: set[str | None] = (
        {""} if _only_jobs(node) else {_tail(branch) for branch in node.branches}
    )
    if len(tails) == 1 and None not in tails:
        return f"{address}*{len(node.branches)}{tails.pop()}"
    return [shape(branch, join(address, i)) for i, branch in enumerate(node.branches)]


def _some(node: Parallel | Map, address: str, of: Shape) -> Shape:
    if not is_tolerant(node):
        return of
    return {"some": address, "of": of, "need": node.need}


def resolve(of: Shape, decided: Decided, added: Added | None = None) -> Shape:
    """*of* as it is in a run, without what was to be decided.

    *added* are the branches that were added while it ran.

    Raises:
        MissingResult: what *decided* raises, unless it is of a branch that may be missing.
    """
    return _Resolver(decided, added or {}).resolve(of)


class _Resolver:
    def __init__(self, decided: Decided, added: Added) -> None:
        self._decided = decided
        self._added = added
        self._asked = ""  # the address whose value was asked for last

    def resolve(self, of: Shape, *, spare: bool = False) -> Shape:
        """*of*; with *spare* its branches may be missing."""
        if isinstance(of, str):
            address, star, _ = of.partition("*")
            if star and address in self._added:
                return [*members(of), *self._grown(address, spare)]
            return of
        if isinstance(of, list):
            found = [self._member(member, spare) for member in of]
            for address in self._added:
                if _is_of(of, address):
                    found.extend(self._grown(address, spare))
            return found
        if "choose" in of:
            decided = self._ask(of["choose"])
            option = option_of(of["keys"], decided, truth=of.get("truth", False))
            inside = [*of["keys"].values(), of["else"]]
            return self.resolve(inside[-1 if option is None else option])
        if "map" in of:
            return self._map(of, spare)
        if "branch" in of:
            return {**of, "of": self._member(of["of"], True)}
        return {**of, "of": self.resolve(of["of"], spare=True)}

    def _map(self, of: Mapping[str, Any], spare: bool) -> Shape:
        address, width = of["map"], int(self._ask(of["map"]))
        branch, start = of["of"], f"{of['map']}.{EACH}"
        uniform = isinstance(branch, str) and "*" not in branch and branch.count(EACH) == 1
        if uniform and address not in self._added and width:
            return f"{address}*{width}{branch[len(start) :]}"
        found = [self._member(substitute(branch, index), spare) for index in range(width)]
        return [*found, *self._grown(address, spare)]

    def _grown(self, address: str, spare: bool) -> list[Shape]:
        """The branches that were added to a parallel."""
        return [self._member(of, spare) for _, of in self._added.get(address, ())]

    def _member(self, of: Shape, spare: bool) -> Shape:
        """A branch. One that died before something in it was decided has no value but that of its
        own; the address of what was to decide stands for its shape."""
        try:
            return self.resolve(of)
        except MissingResult:
            if not spare:
                raise
            return self._asked

    def _ask(self, address: str) -> Any:
        self._asked = address
        return self._decided(address)


def key_of(value: Any, *, truth: bool = False) -> str:
    """The key that a value stands for; with *truth* that of whether it is true."""
    return orjson.dumps(bool(value) if truth else value).decode()


def option_of(keys: Iterable[str | None], value: Any, *, truth: bool = False) -> int | None:
    """Which of the options with these *keys* runs by the *value* of the decider, from 0: that of
    its key, else the default, whose key is None; None if neither is there."""
    options = list(keys)
    for key in (key_of(value, truth=truth), None):
        if key in options:
            return options.index(key)
    return None


def substitute(of: Any, index: int | str) -> Any:
    """*of*, any JSON, with *index* in the place of the first `EACH` of each string."""
    if isinstance(of, str):
        return of.replace(EACH, str(index), 1)
    if isinstance(of, (list, tuple)):
        return [substitute(each, index) for each in of]
    if isinstance(of, dict):
        return {key: substitute(value, index) for key, value in of.items()}
    return of


def is_open(of: Shape) -> bool:
    """Whether something in *of* is decided while the run runs."""
    if isinstance(of, list):
        return any(map(is_open, of))
    if isinstance(of, dict):
        return "choose" in of or "map" in of or is_open(of["of"])
    return False


def checked(value: Any) -> Shape:
    """*value*, which was read from JSON.

    Raises:
        TypeError, ValueError: it is not a shape.
    """
    if isinstance(value, list):
        for each in value:
            checked(each)
        return value
    if isinstance(value, dict):
        return _checked_kind(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a shape")
    _, star, rest = value.partition("*")
    if star:
        int(rest.partition(".")[0])
    return value


def _checked_kind(value: dict[str, Any]) -> Shape:
    kinds = [kind for kind in _KINDS if kind in value]
    if len(kinds) != 1 or not isinstance(value[kinds[0]], str):
        raise TypeError(f"{value!r:.80} is not a shape")
    if kinds == ["choose"]:
        keys = value.get("keys")
        if not isinstance(keys, dict):
            raise TypeError(f"{value!r:.80} is not a shape")
        for each in (*keys.values(), value.get("else")):
            checked(each)
    else:
        checked(value.get("of"))
    return value


def ends(node: Node) -> int:
    """How many jobs end *node*; one thing does where that is known only while the run runs."""
    if isinstance(node, (Job, Choose, Map)) or is_tolerant(node):
        return 1
    if isinstance(node, Series):
        return ends(node.steps[-1])
    if _only_jobs(node):
        return len(node.branches)
    return sum(ends(branch) for branch in node.branches)


def ends_wide(node: Node) -> bool:
    """Whether *node* ends with a parallel, so that there may be more ends than `ends` knows of."""
    if isinstance(node, Series):
        return bool(node.steps) and ends_wide(node.steps[-1])
    return isinstance(node, Parallel) and not is_tolerant(node)


def members(of: Shape) -> Sequence[Shape]:
    """The shapes of the entries of ``previous_results``: the branches of a parallel, or the one
    job."""
    if isinstance(of, list):
        return of
    if isinstance(of, dict):
        return _members_of_some(of) if "some" in of else [of]
    if not of:
        return []
    address, star, rest = of.partition("*")
    if not star:
        return [of]
    width, _, tail = rest.partition(".")
    suffix = f".{tail}" if tail else ""
    return [f"{address}.{index}{suffix}" for index in range(int(width))]


def _members_of_some(of: Mapping[str, Any]) -> list[Shape]:
    found: list[Shape] = []
    for index, member in enumerate(members(of["of"])):
        branch = _branch_of(of["some"], index, member)
        found.append({"branch": branch, "of": member, "need": of.get("need", 0)})
    return found


def _branch_of(address: str, index: int, member: Shape) -> str:
    """The address of a branch; one that was added is not known by its number."""
    first = next(addresses(member), "")
    if first.startswith(f"{address}."):
        return join(address, first[len(address) + 1 :].partition(".")[0])
    return join(address, index)


def is_parallel(of: Shape) -> bool:
    """Whether *of* is the shape of a parallel."""
    if isinstance(of, dict):
        return "some" in of or "map" in of or ("branch" in of and is_parallel(of["of"]))
    return isinstance(of, list) or "*" in of


def addresses(of: Shape) -> Iterator[str]:
    """Every address in a shape where a value may be, in definition order."""
    if isinstance(of, dict) and "branch" in of:
        yield of["branch"]
        if of["of"] != of["branch"]:
            yield from addresses(of["of"])
        return
    if not is_parallel(of):
        yield from members(of)  # type: ignore[misc]
        return
    for member in members(of):
        yield from addresses(member)


def arrange(
    of: Shape,
    values: Mapping[str, Any],
    missing: Callable[[str, bool], Any],
    *,
    early: bool = False,
) -> Any:
    """The *values* by address, nested as the shape is.

    *missing* gives what stands for the value of an address that has none, or raises; it is told
    whether there need not be one. *early* says that fewer may be there than a parallel needs, which
    then needs all that are not.
    """
    if isinstance(of, dict) and "branch" in of:
        return _arrange_branch(of, values, missing, early)
    if is_parallel(of):
        return arrange_members(of, values, missing, early=early)
    if not of:
        return missing("", True)
    assert isinstance(of, str)
    return values[of] if of in values else missing(of, False)


def arrange_members(
    of: Shape,
    values: Mapping[str, Any],
    missing: Callable[[str, bool], Any],
    *,
    early: bool = False,
) -> list[Any]:
    """The values of the `members` of a shape; see `arrange`."""
    found = members(of)
    if early and isinstance(of, dict) and "some" in of and not _is_there(of, values):
        found = [{**member, "need": 0} for member in found if isinstance(member, dict)]
    return [arrange(member, values, missing, early=early) for member in found]


def _arrange_branch(
    of: Mapping[str, Any],
    values: Mapping[str, Any],
    missing: Callable[[str, bool], Any],
    early: bool,
) -> Any:
    branch = of["branch"]
    if branch in values:
        return values[branch]
    if of["of"] == "" or (of.get("need") and not _is_there(of["of"], values)):
        return missing(branch, True)
    return arrange(of["of"], values, missing, early=early)


def _is_there(of: Shape, values: Mapping[str, Any]) -> bool:
    """Whether *values* has what *of* needs."""
    if isinstance(of, dict) and "branch" in of:
        return of["branch"] in values or of["of"] == "" or _is_there(of["of"], values)
    if not is_parallel(of):
        return of in values
    there = [_is_there(member, values) for member in members(of)]
    need = of.get("need") if isinstance(of, dict) else 0
    return sum(there) >= (need or len(there))


def _is_of(shapes: Sequence[Shape], address: str) -> bool:
    """Whether *shapes* are those of the branches of the parallel at *address*."""
    for index, member in enumerate(shapes):
        start = _start(member)  # nothing is known of where the value of an empty map is
        if start and not is_in(start, f"{address}.{index}"):
            return False
    return any(map(_start, shapes))


def _start(of: Shape) -> str:
    """An address of what *of* is the shape of."""
    if isinstance(of, list):
        return _start(of[0]) if of else ""
    if isinstance(of, dict):
        return next(str(of[kind]) for kind in _KINDS if kind in of)
    return of.partition("*")[0]


def _only_jobs(node: Parallel) -> bool:
    """Whether that is known without looking at each branch."""
    return isinstance(node.branches, Branches) and node.branches.only_jobs


def _tail(branch: Node) -> str | None:
    """What stands behind the address of a branch in that of its last job; None where there are
    several, or that is not known."""
    if isinstance(branch, Job):
        return ""
    if not isinstance(branch, Series) or not branch.steps:
        return None
    last = len(branch.steps) - 1
    below_it = _tail(branch.steps[last])
    return None if below_it is None else f".{last}{below_it}"
