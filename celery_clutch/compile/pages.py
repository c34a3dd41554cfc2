"""Cut a plan into pages of bounded size. Pure; knows no Celery.

A *page* is what is started together: a list of chains of jobs. Where the plan goes on, the end of
a chain says which barriers it counts towards, and each barrier says which page is next; a parallel
that ends a branch is flattened, so that its jobs count towards the barrier around it. What a
message carries is bounded by `CHAIN`, what a worker sends in one go by `WIDTH`.

What is too wide for a page is a *window* of pages: so many of them are sent at once, and the last
message of each, which workers reach when they have begun what is before it, sends another one. So
the messages that wait in a broker are bounded however wide a parallel is, and its first job starts
without waiting for its last.

Every item knows where its previous results are (a shape, see `model.shape`) and which steps its
failure *settles* for ``on_failure`` (``"S*n"``, the nearest first, then those around it; empty
where nobody listens). ``"A!"`` there is a header of a chord, whose errbacks are called when the job
dies.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CorruptRecord
from ..model import codec, names
from ..model.names import Named
from ..model.plan import Job, JobEncoder, Node, Parallel, Scope, Series, job_from_json, join
from ..model.shape import Shape, checked, ends, shape
from ..stores.base import Barrier, Settles, Turn

CHAIN = 12
"""Jobs of a series in one message."""
WIDTH = 100
"""Messages that one page sends."""
WINDOW = 2000
"""Messages of one parallel step that wait in the broker at a time."""

ROOT = "0"
"""The key of the first page."""


@dataclass(frozen=True, slots=True)
class Item:
    """A job, with everything the compiler needs to know about its place.

    Attributes:
        at: its address.
        job: the job.
        previous: the shape of its previous results.
        settles: see the module.
        barriers: what it counts towards, the innermost first.
        narrow: the branches of narrow parallels that it is in, the innermost first.
    """

    at: str
    job: Job
    previous: Shape = field(default="", hash=False)
    settles: str = ""
    barriers: tuple[Barrier, ...] = ()
    narrow: tuple[Turn, ...] = ()


Chain = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Expand:
    """More is in another page."""

    page: str
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Narrow:
    """A parallel of *width* branches that runs *limit* of them at a time.

    Branch n is the page ``"<at>/<n>"``; *starts* are those of the first *limit* branches.
    """

    at: str
    limit: int
    width: int
    starts: tuple[Start, ...]


Start = Chain | Expand | Narrow


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
    """

    first: tuple[Start, ...] = ()
    pages: dict[str, tuple[Start, ...]] = field(default_factory=dict)
    jobs: int = 0
    last: Shape = ""
    scopes: dict[str, Scope] = field(default_factory=dict)
    names: dict[str, Named] = field(default_factory=dict)


Keep = Callable[[str, tuple[Start, ...]], None]
"""Takes a page that is complete: its key, and what it starts."""


def paginate(
    root: Series, *, tally: bool = False, window: int = WINDOW, keep: Keep | None = None
) -> Pages:
    """Cut *root* into pages.

    Args:
        root: the plan.
        tally: jobs settle their steps also where nobody has an ``on_failure``.
        window: how many messages of one parallel step are sent at a time, about; from `WIDTH` to
            ``WIDTH * WIDTH``.
        keep: gets each page as soon as it is complete, so that the pages of a wide plan are never
            all in memory.

    Raises:
        InvalidName: a name that no step can have, or that two have.
    """
    out = Pages(last=shape(root, "") if root.steps else "", scopes={"": root.scope})
    cutter = _Cutter(out, tally, window, keep or out.pages.__setitem__)
    cutter.note(root, "", _Place(root.scope))
    starts = cutter.steps(root, "", _Place(root.scope))
    out.first = cutter.fit(starts)
    cutter.keep(ROOT, out.first)
    return out


@dataclass(frozen=True, slots=True)
class _Place:
    """What is around a node.

    ``direct``: a job here is a step of its own for ``on_failure``. ``headers``: those of chords
    with errbacks that it is in. ``parallels``: the addresses of those that it is in.
    """

    scope: Scope
    previous: Shape = ""
    barriers: tuple[Barrier, ...] = ()
    settles: str = ""
    narrow: tuple[Turn, ...] = ()
    direct: bool = True
    headers: tuple[str, ...] = ()
    parallels: tuple[str, ...] = ()


class _Cutter:
    """Cuts a plan, from the end of each series, so that each step knows what follows.

    The starts of a wide parallel are made one by one, while a page is filled with them.
    """

    def __init__(self, out: Pages, tally: bool, window: int, keep: Keep) -> None:
        self.out = out
        self.tally = tally
        self.at_once = min(max(window // WIDTH, 1), WIDTH)
        self.keep = keep
        self.keys = itertools.count(1)

    def node(self, node: Node, at: str, place: _Place) -> Iterable[Start]:
        """What starts *node*; what comes later is in further pages."""
        if isinstance(node, Job):
            return [(self.item(node, at, place),)]
        self.note(node, at, place)
        if node.scope:
            place = self.enter(node, at, place)
        if isinstance(node, Series):
            return self.steps(node, at, place)
        if node.limit is not None and node.limit < len(node.branches):
            return [self.narrow(node, node.limit, at, place)]
        return self.branches(node, at, place)

    def note(self, node: Node, at: str, place: _Place) -> None:
        """Note the name of *node*, if it has one."""
        if node.name and node.size:
            names.check(node.name)
            names.add(self.out.names, node.name, Named(at, shape(node, at), place.parallels))

    def enter(self, node: Series | Parallel, at: str, place: _Place) -> _Place:
        """The place inside *node*, which has a scope of its own."""
        scope = node.scope.inherit(place.scope)
        self.out.scopes[at] = scope
        barriers = place.barriers
        if scope.on_success:
            barriers = (Barrier(f"{at}!", ends(node), f"success {at}"), *barriers)
        direct = place.direct or (isinstance(node, Series) and bool(node.scope.on_failure))
        headers = (f"{at}!", *place.headers) if scope.errbacks else place.headers
        return replace(place, scope=scope, barriers=barriers, direct=direct, headers=headers)

    def steps(self, node: Series, at: str, place: _Place) -> Iterable[Start]:
        """What starts a series."""
        addresses = [join(at, index) for index in range(len(node.steps))]
        previous = [place.previous, *map(shape, node.steps, addresses)]
        barriers = place.barriers
        following: Iterable[Start] = ()
        for step, address, before in reversed(
            list(zip(node.steps, addresses, previous, strict=False))
        ):
            here = replace(place, previous=before, barriers=barriers)
            behind, following = _look_ahead(following)
            chain = _to_follow(behind)
            if chain and isinstance(step, Job):
                item = self.item(step, address, replace(here, barriers=()))
                following = [(item, *chain)]
                continue
            if behind:
                then = f"page {self.page(following)}"
                barriers = (Barrier(address, ends(step), then),)
            following = self.node(step, address, replace(here, barriers=barriers))
        return following

    def branches(self, node: Parallel, at: str, place: _Place) -> Iterator[Start]:
        """What starts a parallel."""
        width = len(node.branches)
        for index, branch in enumerate(node.branches):
            address = join(at, index)
            here = self.branch(branch, at, address, width, None, place)
            yield from self.node(branch, address, here)

    def narrow(self, node: Parallel, limit: int, at: str, place: _Place) -> Narrow:
        """What starts a parallel that runs *limit* of its branches at a time."""
        width = len(node.branches)
        starts: list[Start] = []
        for index, branch in enumerate(node.branches):
            address = join(at, index)
            turn = Turn(at, address, limit, width)
            here = self.branch(branch, at, address, width, turn, place)
            page = self.fit(self.node(branch, address, here))
            self.keep(f"{at}/{index}", page)
            if index < limit:
                starts.extend(page)
        return Narrow(at, limit, width, self.fit(starts, WIDTH - 1))

    def branch(
        self, node: Node, at: str, address: str, width: int, turn: Turn | None, place: _Place
    ) -> _Place:
        """The place of the branch at *address* of the parallel at *at*."""
        settles = Settles(at, address, width) if self.listens(place.scope) else None
        barriers = place.barriers
        if settles or turn:
            barriers = (Barrier(address, ends(node), "", settles, turn), *barriers)
        return replace(
            place,
            barriers=barriers,
            settles=f"{at}*{width} {place.settles}".strip(),
            narrow=(turn, *place.narrow) if turn else place.narrow,
            direct=False,
            parallels=(*place.parallels, at),
        )

    def item(self, job: Job, at: str, place: _Place) -> Item:
        self.note(job, at, place)
        if place.scope.queue:
            job = _routed(job, place.scope.queue)
        settles = f"{at}*1 {place.settles}".strip() if place.direct else place.settles
        if not self.listens(place.scope):
            settles = ""
        settles = " ".join((*settles.split(), *place.headers))
        self.out.jobs += 1
        return Item(at, job, place.previous, settles, place.barriers, place.narrow)

    def listens(self, scope: Scope) -> bool:
        """Whether anybody is told of the steps here."""
        return self.tally or bool(scope.on_failure)

    def page(self, starts: Iterable[Start]) -> str:
        """Keep a page; its key."""
        key = self.key()
        self.keep(key, self.fit(starts))
        return key

    def key(self) -> str:
        """A key that no page has."""
        return str(next(self.keys))

    def fit(self, starts: Iterable[Start], room: int = 0) -> tuple[Start, ...]:
        """*starts* as one page of at most *room* messages (default: `WIDTH`): if they are more, a
        window of further pages."""
        room = room or WIDTH
        rest = iter(starts)
        page: list[Start] = []
        weight = 0
        for start in rest:
            page.append(start)
            weight += _weight(start)
            if weight > room:
                return self.window(_groups(itertools.chain(page, rest)))
        return tuple(page)

    def window(self, groups: Iterable[tuple[Start, ...]]) -> tuple[Start, ...]:
        """A page for each of *groups*; what starts the first of them. Each leads to the one that is
        so many behind it as are sent at once."""
        first: list[Start] = []
        waiting: deque[tuple[str, tuple[Start, ...]]] = deque()
        for group in groups:
            key = self.key()
            if len(waiting) < self.at_once:
                first.append(Expand(key, _queue(group[0])))
            else:
                before, starts = waiting.popleft()
                # It has to wait behind the jobs of its page, so it goes where they do.
                self.keep(before, (*starts, Expand(key, _queue(starts[-1]))))
            waiting.append((key, group))
        for key, group in waiting:
            self.keep(key, group)
        return tuple(first)


def _look_ahead(starts: Iterable[Start]) -> tuple[list[Start], Iterable[Start]]:
    """The first two of *starts*, and all of them."""
    rest = iter(starts)
    first = list(itertools.islice(rest, 2))
    return first, itertools.chain(first, rest)


def _to_follow(starts: Sequence[Start]) -> Chain:
    """The chain that *starts* are if it may be in the message of the job before, else nothing."""
    if len(starts) != 1:
        return ()
    chain = starts[0]
    if not isinstance(chain, tuple) or len(chain) >= CHAIN:
        return ()
    # Who sends a plain task puts the previous result into its message.
    if chain[0].job.plain and chain[0].job.prepend:
        return ()
    return chain


def _routed(job: Job, queue: str) -> Job:
    options = {k: v for k, v in job.options.items() if k not in ("exchange", "routing_key")}
    return replace(job, options={**options, "queue": queue})


def _weight(start: Start) -> int:
    """How many messages *start* is."""
    return sum(map(_weight, start.starts)) if isinstance(start, Narrow) else 1


def _groups(starts: Iterable[Start]) -> Iterator[tuple[Start, ...]]:
    """*starts* in groups that fill a page but for the message that leads to another."""
    group: list[Start] = []
    weight = 0
    for start in starts:
        more = _weight(start)
        if group and weight + more > WIDTH - 1:
            yield tuple(group)
            group, weight = [], 0
        group.append(start)
        weight += more
    if group:
        yield tuple(group)


def _queue(start: Start) -> str:
    """The queue that *start* is sent to, or "" where routes say it."""
    if isinstance(start, Expand):
        return start.queue
    if isinstance(start, Narrow):
        return _queue(start.starts[0])
    queue = start[0].job.options.get("queue")
    return queue if isinstance(queue, str) else ""


def is_direct(starts: Iterable[Start]) -> bool:
    """Whether the page can be sent by whoever engages, without a worker expanding it first."""
    return not any(isinstance(start, Expand) for start in starts)


def items(starts: Iterable[Start]) -> Iterator[Item]:
    """The jobs in *starts*, without those in further pages."""
    for start in starts:
        if isinstance(start, Narrow):
            yield from items(start.starts)
        elif not isinstance(start, Expand):
            yield from start


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


def barriers_to_json(barriers: Iterable[Barrier]) -> list[list[Any]]:
    """Short, for pages and messages. The member that a barrier settles, and the branch that is over
    with it, have its name."""
    found: list[list[Any]] = []
    for barrier in barriers:
        settles, turn = barrier.settles, barrier.turn
        data = [barrier.name, barrier.width]
        more = [barrier.then, settles.width if settles else 0]
        more += [turn.limit if turn else 0, turn.width if turn else 0]
        while more and not more[-1]:
            more.pop()
        found.append([*data, *more])
    return found


def barriers_from_json(data: Iterable[Sequence[Any]]) -> tuple[Barrier, ...]:
    """What `barriers_to_json` wrote."""
    found: list[Barrier] = []
    for each in data:
        full: list[Any] = list(each)
        full.extend(("", 0, 0, 0)[len(full) - 2 :])
        name, width, then, members, limit, branches = full
        around = name.rpartition(".")[0]
        settles = Settles(around, name, int(members)) if members else None
        turn = Turn(around, name, int(limit), int(branches)) if limit else None
        found.append(Barrier(name, int(width), then, settles, turn))
    return tuple(found)


def narrow_to_json(narrow: Iterable[Turn]) -> list[list[Any]]:
    """Short, for pages and messages."""
    return [[turn.member, turn.limit, turn.width] for turn in narrow]


def narrow_from_json(data: Iterable[Sequence[Any]]) -> tuple[Turn, ...]:
    """What `narrow_to_json` wrote."""
    return tuple(Turn(m.rpartition(".")[0], m, int(limit), int(width)) for m, limit, width in data)


def _to_json(start: Start, encode: JobEncoder) -> list[Any]:
    if isinstance(start, Expand):
        return ["x", start.page, start.queue]
    if isinstance(start, Narrow):
        below = [_to_json(each, encode) for each in start.starts]
        return ["n", start.at, start.limit, start.width, below]
    return ["c", *(_item_to_json(item, encode) for item in start)]


def _item_to_json(item: Item, encode: JobEncoder) -> list[Any]:
    barriers, narrow = barriers_to_json(item.barriers), narrow_to_json(item.narrow)
    return [item.at, encode(item.job), item.previous, item.settles, barriers, narrow]


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
    raise ValueError(f"unknown start {kind!r}")


def _item_from_json(data: list[Any]) -> Item:
    at, job, previous, settles, barriers, narrow = data
    places = barriers_from_json(barriers), narrow_from_json(narrow)
    return Item(at, job_from_json(job), checked(previous), settles, *places)
