"""Pages: what is started together, and their form as JSON. Pure; knows no Celery.

A *page* is a list of chains of jobs, as `compile.cut` makes it of a plan. What a message carries is
bounded by `CHAIN`, what a worker sends in one go by `WIDTH`.

Every item knows where its previous results are (a shape, see `model.shape`) and which steps its
failure *settles* for ``on_failure`` (``"S*n"``, the nearest first, then those around it; empty
where nobody listens). ``"A!*n"`` there is the header of a chord with errbacks, at A, whose branches
settle when they complete or a job in them dies: then the errbacks are called, if one has.

The pages of the branch of a map are kept once, as a template: where its addresses have `EACH`,
those of an instance have the number of a branch, and widths below 0 are known only when the map's
is (see `instance`).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptRecord
from ..model import codec
from ..model.names import Named
from ..model.plan import Job, JobEncoder, Scope, job_from_json
from ..model.shape import Shape, checked, option_of
from ..stores.base import Barrier, Settles, Tolerance, Turn

CHAIN = 12
"""Jobs of a series in one message."""
WIDTH = 100
"""Messages that one page sends."""
WINDOW = 2000
"""Messages of one parallel step that wait in the broker at a time."""

ROOT = "0"
"""The key of the first page."""
NARROWS = "narrows"
"""The key of what says where the branches of narrow maps, and of narrow parallels in maps, are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The part that a job has in its run, as its page and its message say it.

    Attributes:
        previous: the shape of its previous results.
        settles: see the module.
        barriers: what it counts towards, the innermost first.
        narrow: the branches of narrow parallels that it is in, the innermost first.
        tolerances: the branches that it is in which may die, the innermost first.
        choices: what follows, where the job decides that.
        gives: its value has to be a list, because a map follows.
    """

    previous: Shape = field(default="", hash=False)
    settles: str = ""
    barriers: tuple[Barrier, ...] = ()
    narrow: tuple[Turn, ...] = ()
    tolerances: tuple[Tolerance, ...] = ()
    choices: Choices | None = None
    gives: bool = False

    def role_to_json(self) -> dict[str, Any]:
        """Short, for pages and messages: what is empty is left out."""
        data: dict[str, Any] = {}
        if self.previous:
            data["prev"] = self.previous
        if self.settles:
            data["step"] = self.settles
        if self.barriers:
            data["ends"] = barriers_to_json(self.barriers)
        if self.narrow:
            data["narrow"] = narrow_to_json(self.narrow)
        if self.tolerances:
            data["may"] = tolerances_to_json(self.tolerances)
        if self.choices:
            data["choose"] = choices_to_json(self.choices)
        if self.gives:
            data["list"] = 1
        return data


@dataclass(frozen=True, slots=True)
class Item(Role):
    """A job, with everything the compiler needs to know about its place.

    Attributes:
        at: its address.
        job: the job.
        takes: the element of the list of a map is its first argument.
    """

    at: str
    job: Job
    takes: bool = False


Chain = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a choice.

    Attributes:
        key: the JSON of the value that it stands for; None for any other.
        barriers: what the decider counts towards, if its value is this one.
        skips: how many jobs will not run then.
    """

    key: str | None
    barriers: tuple[Barrier, ...]
    skips: int = 0


@dataclass(frozen=True, slots=True)
class Choices:
    """What a decider decides between; *truth* is as for `plan.Choose`."""

    options: tuple[Choice, ...]
    truth: bool = False

    def of(self, value: Any) -> Choice | None:
        """The option for the value of the decider; None if there is none."""
        keys = (option.key for option in self.options)
        number = option_of(keys, value, truth=self.truth)
        return None if number is None else self.options[number]


@dataclass(frozen=True, slots=True)
class Expand:
    """More is in another page."""

    page: str
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Narrow:
    """A parallel of *width* branches that runs *limit* at a time, with those that are added.

    Branch n is the page ``"<at>/<n>"``; *starts* are those of the first *limit* branches, or all.
    """

    at: str
    limit: int
    width: int
    starts: tuple[Start, ...]


@dataclass(frozen=True, slots=True)
class Mapped:
    """A map: how many branches it has is known when the step before is done.

    Attributes:
        at: its address.
        template: the key of the page that starts a branch.
        source: the shape of the list.
        size: how many jobs a branch has.
        limit: how many branches run at a time, or 0 for all.
        need: how many branches there have to be.
        barriers: what follows if there is no branch.
    """

    at: str
    template: str
    source: Shape = field(hash=False)
    size: int
    limit: int = 0
    need: int = 0
    barriers: tuple[Barrier, ...] = ()


@dataclass(frozen=True, slots=True)
class Passed:
    """A map without branches."""

    at: str
    barriers: tuple[Barrier, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """Stands first in a page of the branch of a map: that at *at*, which has `EACH` in it, of a map
    over the list at *source*."""

    at: str
    source: Shape = field(hash=False)


Start = Chain | Expand | Narrow | Mapped | Passed | Template


@dataclass(slots=True)
class Pages:
    """A plan, cut.

    Attributes:
        first: the page with the key `ROOT`.
        pages: starts by page key, the first included, where nobody else was given them.
        jobs: how many jobs there are.
        last: the shape of the last step.
        scopes: the scopes in force, by the address of their subtree; "" is the whole plan.
        names: the steps that have a name.
        narrows: the narrow parallels in branches of maps, and narrow maps, by address; with the
            template of the latter, or "".
        decides: something is decided while the run runs, by choices, maps, or what it goes on
            without.
    """

    first: tuple[Start, ...] = ()
    pages: dict[str, tuple[Start, ...]] = field(default_factory=dict)
    jobs: int = 0
    last: Shape = ""
    scopes: dict[str, Scope] = field(default_factory=dict)
    names: dict[str, Named] = field(default_factory=dict)
    narrows: dict[str, str] = field(default_factory=dict)
    decides: bool = False


def behind(item: Item) -> list[str]:
    """The keys of the pages that what the item counts towards may lead to."""
    barriers = list(item.barriers)
    for choice in item.choices.options if item.choices else ():
        barriers.extend(choice.barriers)
    return behind_barriers(barriers)


def behind_barriers(barriers: Iterable[Barrier]) -> list[str]:
    """The keys of the pages that *barriers* lead to."""
    thens = [barrier.then.partition(" ") for barrier in barriers]
    return [key for kind, _, key in thens if kind == "page"]


def is_header(name: str) -> bool:
    """Whether *name*, of a step that settles, is that of a header of a chord with errbacks."""
    return name.endswith("!")


def is_direct(starts: Iterable[Start]) -> bool:
    """Whether the page can be sent by whoever engages, without a worker expanding it first."""
    return not any(isinstance(start, (Expand, Mapped)) for start in starts)


def weight(start: Start) -> int:
    """How many messages *start* is."""
    if isinstance(start, Narrow):
        return sum(map(weight, start.starts))
    return 0 if isinstance(start, (Template, Passed)) else 1


def queue(start: Start) -> str:
    """The queue that *start* is sent to, or "" where routes say it."""
    if isinstance(start, Expand):
        return start.queue
    if isinstance(start, Narrow):
        return queue(start.starts[0])
    if not isinstance(start, tuple):
        return ""
    name = start[0].job.options.get("queue")
    return name if isinstance(name, str) else ""


def chains(starts: Iterable[Start]) -> Iterator[Chain]:
    """The chains in *starts*, without those in further pages."""
    for start in starts:
        if isinstance(start, Narrow):
            yield from chains(start.starts)
        elif isinstance(start, tuple):
            yield start


def items(starts: Iterable[Start]) -> Iterator[Item]:
    """The jobs in *starts*, without those in further pages."""
    return itertools.chain.from_iterable(chains(starts))


# --- as JSON ------------------------------------------------------------------------------------


def dumps(starts: Iterable[Start], encode: JobEncoder | None = None) -> bytes:
    """A page as compressed JSON.

    Raises:
        NonJSONArgument: where an argument or option of a job has no JSON form.
    """
    encode = encode or JobEncoder()
    return compress(codec.encode_parts([_to_json(start, encode) for start in starts]))


def compress(data: bytes) -> bytes:
    """*data*, smaller. Level 1 is enough: the jobs of a page are alike."""
    return zlib.compress(data, 1)


def decompress(data: bytes) -> bytes:
    """What `compress` was given.

    Raises:
        CorruptRecord: *data* was not compressed.
    """
    try:
        return zlib.decompress(data)
    except zlib.error as exc:
        raise CorruptRecord(f"stored data cannot be read: {exc}") from None


def loads(data: bytes) -> tuple[Start, ...]:
    """The page that `dumps` wrote.

    Raises:
        CorruptRecord: *data* is not a page.
    """
    try:
        return tuple(map(_from_json, codec.decode_plan(decompress(data))))
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"a stored page cannot be read: {exc!r}") from None


def role_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the `Role` that was written in *data*, among others."""
    return {
        "previous": checked(data.get("prev", "")),
        "settles": text_of(data.get("step", "")),
        "barriers": barriers_from_json(data.get("ends", ())),
        "narrow": narrow_from_json(data.get("narrow", ())),
        "tolerances": tolerances_from_json(data.get("may", ())),
        "choices": choices_from_json(data["choose"]) if "choose" in data else None,
        "gives": bool(data.get("list")),
    }


def text_of(value: Any) -> str:
    """*value*, which was read from JSON.

    Raises:
        TypeError: it is not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    return value


def barriers_to_json(barriers: Iterable[Barrier]) -> list[list[Any]]:
    """Short, for pages and messages. The member that a barrier settles, and the branch that is over
    with it, have its name."""
    found: list[list[Any]] = []
    for barrier in barriers:
        settles, turn = barrier.settles, barrier.turn
        data = [barrier.name, barrier.width, barrier.then, settles.width if settles else 0]
        data += [turn.limit if turn else 0, turn.width if turn else 0]
        data += [barrier.gate, int(barrier.closes), int(barrier.grows)]
        while len(data) > 2 and not data[-1]:
            data.pop()
        found.append(data)
    return found


def barriers_from_json(data: Iterable[Sequence[Any]]) -> tuple[Barrier, ...]:
    """What `barriers_to_json` wrote."""
    found: list[Barrier] = []
    for each in data:
        full: list[Any] = list(each)
        full.extend(("", 0, 0, 0, "", 0, 0)[len(full) - 2 :])
        name, width, then, members, limit, branches, gate, closes, grows = full
        around = name.rpartition(".")[0]
        settles = Settles(around, name, int(members)) if members else None
        if settles and is_header(name):  # a branch of the header of a chord
            settles = Settles(f"{around}!", name[:-1], int(members))
        turn = Turn(around, name, int(limit), int(branches)) if limit else None
        kinds = bool(closes), bool(grows)
        found.append(Barrier(name, int(width), then, settles, turn, gate, *kinds))
    return tuple(found)


def tolerances_to_json(tolerances: Iterable[Tolerance]) -> list[list[Any]]:
    """For pages and messages."""
    found: list[list[Any]] = []
    for each in tolerances:
        numbers = [each.limit, each.need, int(each.first)]
        found.append([each.step, each.member, *numbers, barriers_to_json(each.barriers)])
    return found


def tolerances_from_json(data: Iterable[Sequence[Any]]) -> tuple[Tolerance, ...]:
    """What `tolerances_to_json` wrote."""
    return tuple(
        Tolerance(step, member, limit, int(need), bool(first), barriers_from_json(barriers))
        for step, member, limit, need, first, barriers in data
    )


def choices_to_json(choices: Choices) -> list[Any]:
    """For pages and messages."""
    options = [[each.key, barriers_to_json(each.barriers), each.skips] for each in choices.options]
    return [int(choices.truth), options]


def choices_from_json(data: Sequence[Any]) -> Choices:
    """What `choices_to_json` wrote."""
    truth, options = data
    found = [Choice(key, barriers_from_json(some), int(skips)) for key, some, skips in options]
    return Choices(tuple(found), bool(truth))


def narrow_to_json(narrow: Iterable[Turn]) -> list[list[Any]]:
    """Short, for pages and messages."""
    return [[turn.member, turn.limit, turn.width] for turn in narrow]


def narrow_from_json(data: Iterable[Sequence[Any]]) -> tuple[Turn, ...]:
    """What `narrow_to_json` wrote."""
    return tuple(Turn(m.rpartition(".")[0], m, int(limit), int(width)) for m, limit, width in data)


def _to_json(start: Start, encode: JobEncoder) -> list[Any]:
    if isinstance(start, tuple):
        return ["c", *(_item_to_json(item, encode) for item in start)]
    if isinstance(start, Expand):
        return ["x", start.page, start.queue]
    if isinstance(start, Narrow):
        below = [_to_json(each, encode) for each in start.starts]
        return ["n", start.at, start.limit, start.width, below]
    if isinstance(start, Mapped):
        barriers = barriers_to_json(start.barriers)
        where = [start.at, start.template, start.source]
        return ["m", *where, start.size, start.limit, start.need, barriers]
    if isinstance(start, Template):
        return ["t", start.at, start.source]
    raise TypeError(f"{start!r:.80} is not stored")


def _item_to_json(item: Item, encode: JobEncoder) -> list[Any]:
    data = item.role_to_json()
    if item.takes:
        data["takes"] = 1
    return [item.at, encode(item.job), data]


def _from_json(data: list[Any]) -> Start:
    kind, *rest = data
    if kind == "c":
        return tuple(map(_item_from_json, rest))
    if kind == "n":
        at, limit, width, below = rest
        return Narrow(at, limit, width, tuple(map(_from_json, below)))
    if kind == "x":
        page, queue = rest
        return Expand(page, queue)
    if kind == "m":
        at, template, source, size, limit, need, barriers = rest
        after = barriers_from_json(barriers)
        return Mapped(at, template, checked(source), int(size), int(limit), int(need), after)
    if kind == "t":
        at, source = rest
        return Template(at, checked(source))
    raise ValueError(f"unknown start {kind!r}")


def _item_from_json(data: list[Any]) -> Item:
    at, job, role = data
    return Item(at, job_from_json(job), bool(role.get("takes")), **role_from_json(role))
