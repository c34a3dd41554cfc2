"""Cut a plan into pages of bounded size. Pure; knows no Celery.

A page is a short series of items, and compiles to one small chain or chord. Celery messages carry
what follows them, so whatever is in one page is carried by its first messages: `CHAIN`, `SMALL` and
`WIDTH` bound that. Where the plan goes on, the last item of a page is an `Expand`, which fetches
the next page in the worker.

Every item knows where its results go (its *slot*), where its previous results are (*previous*, a
slot, or ``"P*n"`` for the n branches of the parallel at P), and which parallel or job it *settles*
for ``on_failure`` (``"S*n"``, the nearest first, then those around it; empty where nobody listens).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptRecord
from ..model import codec
from ..model.plan import Job, JobEncoder, Node, Parallel, Scope, Series, job_from_json, join

CHAIN = 12
"""Jobs of a series in one page. Each message carries those after it."""
SMALL = 8
"""Jobs of a parallel that may stand behind others in a page: the messages before carry them."""
TAIL = 3
"""Jobs that may stand behind a parallel in its page, where they end the series. Every message of
the parallel carries them; where more follows, it carries one job and an `Expand` instead."""
WIDTH = 100
"""Jobs, or pages, of a parallel in one page: what a worker sends in one go."""

LANE = 10
"""Branches of a narrow parallel in one page: a lane reads the page to run one of them."""

ROOT = "0"
"""The key of the first page."""


@dataclass(frozen=True, slots=True)
class JobItem:
    """A job, with everything the compiler needs to know about its place."""

    at: str
    slot: str
    previous: str
    settles: str
    job: Job


@dataclass(frozen=True, slots=True)
class ParallelItem:
    """Branches, each a series of items."""

    at: str
    branches: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class LanesItem:
    """A narrow parallel: *width* branches, of which each of so many *lanes* runs one at a time.

    The branches are in pages of `LANE` each; `lane_page` says which.
    """

    at: str
    width: int
    lanes: int
    queue: str = ""


@dataclass(frozen=True, slots=True)
class CloseItem:
    """An internal step that ends something.

    With a *slot* and *previous* it gathers the results of a parallel that ends a branch; with a
    *scope* it sends the ``on_success`` of the subtree there; with neither it is only the plain task
    that a chord has to end in.
    """

    at: str
    slot: str = ""
    previous: str = ""
    settles: str = ""
    scope: str = ""
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Expand:
    """The plan goes on in another page."""

    page: str
    queue: str = ""


Item = JobItem | ParallelItem | LanesItem | CloseItem | Expand


@dataclass(slots=True)
class Pages:
    """A plan, cut.

    Attributes:
        pages: items by page key; the first page has the key `ROOT`.
        jobs: how many jobs there are.
        units: how many results there will be: jobs and counted closes.
        last: where the results of the last step are, as in *previous*.
        scopes: the scopes in force, by the address of their subtree; "" is the whole plan.
        barriers: whether anything waits for a parallel, so that chords are needed.
    """

    pages: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    jobs: int = 0
    units: int = 0
    last: str = ""
    scopes: dict[str, Scope] = field(default_factory=dict)
    barriers: bool = False


def paginate(root: Series, *, closed: bool = False, tally: bool = False) -> Pages:
    """Cut *root* into pages.

    Args:
        root: the plan.
        closed: something will be put behind the last page, so it has to end in a plain task.
        tally: jobs settle their steps also where nobody has an ``on_failure``.
    """
    cutter = _Cutter(tally)
    cutter.out.scopes[""] = root.scope
    place = _Place(root.scope, closed=closed)
    first, last = cutter.steps(cutter.flatten(root, "", root.scope, True), "", place)
    cutter.out.pages[ROOT] = first
    cutter.out.last = last
    return cutter.out


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a series stands."""

    scope: Scope
    closed: bool = False  # something waits for its end
    slot: str = ""  # the slot its last value goes to, if not its own
    settles: str = ""  # the parallels around it


@dataclass(frozen=True, slots=True)
class _Step:
    at: str
    node: Node | None  # None: the subtree at `at` ends here, send its on_success
    scope: Scope
    direct: bool  # a job is a step of its own for on_failure


class _Cutter:
    def __init__(self, tally: bool) -> None:
        self.out = Pages()
        self.tally = tally
        self.keys = 0

    def flatten(self, series: Series, base: str, scope: Scope, direct: bool) -> Iterator[_Step]:
        """The steps of *series*, those of the scoped series inside it included."""
        for index, node in enumerate(series.steps):
            at = join(base, index)
            if isinstance(node, Series):
                yield from self.scoped(node, at, scope, direct)
            else:
                yield _Step(at, node, scope, direct)

    def scoped(self, node: Series, at: str, outer: Scope, direct: bool) -> Iterator[_Step]:
        """The steps of *node*, which has a scope of its own inside *outer*."""
        scope = self.enter(node, at, outer)
        yield from self.flatten(node, at, scope, direct or bool(node.scope.on_failure))
        if node.scope.on_success:
            yield _Step(at, None, scope, direct)

    def enter(self, node: Series | Parallel, at: str, outer: Scope) -> Scope:
        if not node.scope:
            return outer
        self.out.scopes[at] = scope = node.scope.inherit(outer)
        return scope

    def steps(
        self, steps: Iterable[_Step], previous: str, place: _Place
    ) -> tuple[tuple[Item, ...], str]:
        """Cut a series: the items of its first page, and where its results are.

        Its further pages are stored.
        """
        todo = list(steps)
        first: tuple[Item, ...] | None = None
        key, page = "", _Page()
        last_node = max((i for i, step in enumerate(todo) if step.node is not None), default=-1)
        for index, step in enumerate(todo):
            if not page.admits(step.node, previous, todo[index:]):
                next_key = self.key()
                page.items.append(Expand(next_key, step.scope.queue or ""))
                first = self.keep(key, page, first)
                key, page = next_key, _Page()
            ends = index == last_node
            slot = place.slot if ends and place.slot else step.at
            queue = step.scope.queue or ""
            if isinstance(step.node, Job):
                settles = f"{step.at}*1 {place.settles}".strip() if step.direct else place.settles
                page.add(self.job(step.node, step.at, step.scope, previous, slot, settles))
                previous = slot
            elif isinstance(step.node, Parallel):
                alone = index == len(todo) - 1
                previous = self.parallel(page, step, previous, place.closed or not alone, place)
                if ends and place.slot:
                    page.add(CloseItem(step.at, slot, previous, place.settles, queue=queue))
                    self.out.units += 1
                    previous = slot
                elif alone and place.closed:
                    page.add(CloseItem(step.at, queue=queue))
            else:
                self.out.units += 1
                page.add(CloseItem(step.at, scope=step.at, queue=queue))
        first = self.keep(key, page, first)
        return first, previous

    def job(
        self, job: Job, at: str, scope: Scope, previous: str, slot: str, settles: str
    ) -> JobItem:
        if scope.queue:
            job = _routed(job, scope.queue)
        if not (scope.on_failure or self.tally):
            settles = ""  # nobody listens
        self.out.jobs += 1
        self.out.units += 1
        return JobItem(at, slot, previous, settles, job)

    def parallel(self, page: _Page, step: _Step, previous: str, waits: bool, place: _Place) -> str:
        node = step.node
        assert isinstance(node, Parallel)
        # What ends a branch must end in one plain task, so the parallel that does it is waited for.
        waits = waits or bool(place.slot)
        scope = self.enter(node, step.at, step.scope)
        width = len(node.branches)
        settles = f"{step.at}*{width} {place.settles}".strip()
        self.out.barriers |= waits
        narrow = node.limit is not None and node.limit < width
        branches = [
            self.branch(branch, join(step.at, index), previous, scope, waits or narrow, settles)
            for index, branch in enumerate(node.branches)
        ]
        if narrow and node.limit is not None:
            page.add(self.lanes(step.at, branches, node.limit, scope.queue or ""))
        else:
            while sum(map(_weight, branches)) > WIDTH and len(branches) > 1:
                branches = self.group(step.at, branches, waits, scope.queue or "")
            page.add(ParallelItem(step.at, tuple(branches)))
        page.parallel = True
        return f"{step.at}*{width}"

    def branch(
        self, node: Node, at: str, previous: str, scope: Scope, waits: bool, settles: str
    ) -> tuple[Item, ...]:
        if isinstance(node, Job):
            return (self.job(node, at, scope, previous, at, settles),)
        place = _Place(scope, closed=waits, slot=at, settles=settles)
        steps: Iterable[_Step] = [_Step(at, node, scope, False)]
        if isinstance(node, Series):
            steps = self.scoped(node, at, scope, False)
        items, _ = self.steps(steps, previous, place)
        return items

    def lanes(self, at: str, branches: list[tuple[Item, ...]], limit: int, queue: str) -> LanesItem:
        """Put *branches* into pages for lanes to take them from."""
        for start in range(0, len(branches), LANE):
            chunk = ParallelItem(at, tuple(branches[start : start + LANE]))
            self.out.pages[lane_page(at, start)] = (chunk,)
        return LanesItem(at, len(branches), limit, queue)

    def group(
        self, at: str, branches: list[tuple[Item, ...]], waits: bool, queue: str
    ) -> list[tuple[Item, ...]]:
        """Put *branches* into pages of at most `WIDTH`; what is left is one branch a page."""
        groups: list[tuple[Item, ...]] = []
        for chunk in _chunks(branches):
            items: tuple[Item, ...] = (ParallelItem(at, tuple(chunk)),)
            if waits:
                items += (CloseItem(at, queue=queue),)
            key = self.key()
            self.out.pages[key] = items
            groups.append((Expand(key, queue),))
        return groups

    def key(self) -> str:
        self.keys += 1
        return str(self.keys)

    def keep(self, key: str, page: _Page, first: tuple[Item, ...] | None) -> tuple[Item, ...]:
        items = tuple(page.items)
        if first is None:
            return items
        self.out.pages[key] = items
        return first


class _Page:
    """A page being filled."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.parallel = False
        self.full = False

    def admits(self, node: Node | None, previous: str, todo: Sequence[_Step]) -> bool:
        """Whether *node*, the first of those still *todo*, may stand in this page."""
        if not self.items:
            return True
        if self.full or len(self.items) >= CHAIN:
            return False
        if previous and node is not None and _needs_previous(node):
            # The worker that expands the page puts the previous result into its message.
            return False
        if isinstance(node, Parallel):
            return not self.parallel and node.size <= SMALL
        if self.parallel:
            # Header messages carry the body of their chord, so only little may follow.
            tail = len(todo) <= TAIL and all(isinstance(step.node, Job) for step in todo)
            self.full = not tail
        return True

    def add(self, item: Item) -> None:
        self.items.append(item)


def _needs_previous(node: Node) -> bool:
    """Whether *node* starts with a plain task that takes the previous result in its message."""
    if isinstance(node, Series):
        return _needs_previous(node.steps[0])
    if isinstance(node, Parallel):
        return any(map(_needs_previous, node.branches))
    return node.plain and node.prepend


def _routed(job: Job, queue: str) -> Job:
    options = {k: v for k, v in job.options.items() if k not in ("exchange", "routing_key")}
    return Job(job.task, job.args, job.kwargs, {**options, "queue": queue}, job.plain, job.prepend)


def _weight(items: Iterable[Item]) -> int:
    """How many signatures *items* compile to."""
    return sum(map(_signatures, items))


def _signatures(item: Item) -> int:
    if isinstance(item, ParallelItem):
        return sum(map(_weight, item.branches))
    return item.lanes if isinstance(item, LanesItem) else 1


def _chunks(branches: list[tuple[Item, ...]]) -> Iterator[list[tuple[Item, ...]]]:
    chunk: list[tuple[Item, ...]] = []
    weight = 0
    for branch in branches:
        more = _weight(branch)
        if chunk and weight + more > WIDTH:
            yield chunk
            chunk, weight = [], 0
        chunk.append(branch)
        weight += more
    if chunk:
        yield chunk


def lane_page(at: str, number: int) -> str:
    """The key of the page with branch *number* of the narrow parallel at *at*."""
    return f"{at}/{number // LANE}"


def is_direct(items: tuple[Item, ...]) -> bool:
    """Whether the page can be sent by whoever engages, without a worker expanding it first."""
    first = items[0] if items else None
    if isinstance(first, ParallelItem):
        return not any(isinstance(branch[0], Expand) for branch in first.branches)
    return True


def slots(items: Iterable[Item]) -> Iterator[str]:
    """Every slot that *items* themselves write to."""
    for item in items:
        if isinstance(item, ParallelItem):
            for branch in item.branches:
                yield from slots(branch)
        elif isinstance(item, JobItem):
            yield item.slot
        elif isinstance(item, CloseItem) and (slot := close_slot(item)):
            yield slot


def close_slot(item: CloseItem) -> str:
    """Where a close records that it is done; "" for a mere barrier."""
    return item.slot or (f"{item.scope}!" if item.scope else "")


def without(items: Iterable[Item], done: set[str]) -> tuple[Item, ...]:
    """*items* without what is *done*; what is in further pages is decided there."""
    left: list[Item] = []
    for item in items:
        if isinstance(item, ParallelItem):
            branches = tuple(b for b in (without(b, done) for b in item.branches) if b)
            if branches:
                left.append(ParallelItem(item.at, branches))
        elif isinstance(item, JobItem):
            if item.slot not in done:
                left.append(item)
        elif not (isinstance(item, CloseItem) and close_slot(item) in done):
            left.append(item)
    return tuple(left)


def expand_slots(previous: str) -> tuple[list[str], bool]:
    """The slots that *previous* stands for, and whether it is one of a parallel step."""
    if not previous:
        return [], False
    address, star, width = previous.partition("*")
    if not star:
        return [address], False
    return [join(address, index) for index in range(int(width))], True


def dumps(items: tuple[Item, ...], encode: JobEncoder | None = None) -> bytes:
    """A page as compressed JSON.

    Raises:
        NonJSONArgument: where an argument or option of a job has no JSON form.
    """
    encode = encode or JobEncoder()
    return compress(codec.encode_parts([_to_json(item, encode) for item in items]))


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


def loads(data: bytes) -> tuple[Item, ...]:
    """The page that `dumps` wrote.

    Raises:
        CorruptRecord: *data* is not a page.
    """
    try:
        return tuple(map(_from_json, codec.decode_plan(decompress(data))))
    except (TypeError, ValueError, KeyError, IndexError) as exc:
        raise CorruptRecord(f"a stored page cannot be read: {exc!r}") from None


def _to_json(item: Item, encode: JobEncoder) -> list[Any]:
    if isinstance(item, JobItem):
        return ["j", item.at, item.slot, item.previous, item.settles, encode(item.job)]
    if isinstance(item, ParallelItem):
        return ["p", item.at, [[_to_json(i, encode) for i in branch] for branch in item.branches]]
    if isinstance(item, CloseItem):
        return ["c", item.at, item.slot, item.previous, item.settles, item.scope, item.queue]
    if isinstance(item, LanesItem):
        return ["l", item.at, item.width, item.lanes, item.queue]
    return ["x", item.page, item.queue]


def _from_json(data: list[Any]) -> Item:
    kind, *rest = data
    if kind == "j":
        return JobItem(*rest[:4], job_from_json(rest[4]))  # type: ignore[call-arg]
    if kind == "p":
        return ParallelItem(rest[0], tuple(tuple(map(_from_json, b)) for b in rest[1]))
    if kind == "c":
        return CloseItem(*rest)
    if kind == "l":
        return LanesItem(*rest)
    if kind == "x":
        return Expand(*rest)
    raise ValueError(f"unknown item {kind!r}")
