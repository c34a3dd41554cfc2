"""Cut a plan into pages of bounded size. Pure; knows no Celery.

Where the plan goes on, the end of a chain says which barriers it counts towards, and each barrier
says which page is next; a parallel that ends a branch is flattened, so that its jobs count towards
the barrier around it. Where it is known only while the run runs how many ends there will be, a
barrier of its own counts those, and is a gate to what is around.

What is too wide for a page is a *window* of pages: so many of them are sent at once, and the last
message of each, which workers reach when they have begun what is before it, sends another one. So
the messages that wait in a broker are bounded however wide a parallel is, and its first job starts
without waiting for its last.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

from ..errors import InvalidStep
from ..model import names
from ..model.names import Named
from ..model.plan import (
    EACH,
    Choose,
    Job,
    Map,
    Node,
    Parallel,
    Scope,
    Series,
    is_tolerant,
    join,
    tolerated,
)
from ..model.shape import Shape, ends, ends_wide, shape
from ..stores.base import END, Barrier, Settles, Tolerance, Turn
from .pages import (
    CHAIN,
    ROOT,
    WIDTH,
    WINDOW,
    Chain,
    Choice,
    Choices,
    Expand,
    Item,
    Mapped,
    Narrow,
    Pages,
    Start,
    Template,
    queue,
    weight,
)

UNKNOWN = -1
"""The number of branches of a map, in its template."""

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
    cutter = Cutter(out, tally, window, keep or out.pages.__setitem__)
    cutter.note(root, "", Place(root.scope))
    barriers: tuple[Barrier, ...] = ()
    if root.tolerant:
        # Jobs may be left that never run: so they do not say when the run is over.
        barriers = (Barrier("all", ends(root), END, grows=ends_wide(root)),)
    starts = cutter.steps(root, "", Place(root.scope, barriers=barriers))
    out.first = cutter.fit(starts)
    cutter.keep(ROOT, out.first)
    return out


@dataclass(frozen=True, slots=True)
class Place:
    """What is around a node.

    ``direct``: a job here is a step of its own for ``on_failure``. ``headers``: those of chords
    with errbacks that it is in. ``parallels``: the addresses of those that it is in. ``options``:
    those of the options of choices that it is in.
    ``tolerances``: the branches that may die. ``takes``: a job here gets the element of the map.
    ``gives``: the value is the list of the map that follows.
    """

    scope: Scope
    previous: Shape = ""
    barriers: tuple[Barrier, ...] = ()
    settles: str = ""
    narrow: tuple[Turn, ...] = ()
    direct: bool = True
    headers: tuple[str, ...] = ()
    parallels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    tolerances: tuple[Tolerance, ...] = ()
    takes: bool = False
    gives: bool = False

    def behind(self) -> Place:
        """The place of what does not start a branch."""
        started = tuple(replace(each, first=False) for each in self.tolerances)
        return replace(self, tolerances=started, takes=False)


class Cutter:
    """Cuts a plan, from the end of each series, so that each step knows what follows.

    The starts of a wide parallel are made one by one, while a page is filled with them.

    Attributes:
        template: what the pages begin with if they are those of the branch of a map.
    """

    template: Template | None = None

    def __init__(self, out: Pages, tally: bool, window: int, keep: Keep, prefix: str = "") -> None:
        self.out = out
        self.prefix = prefix  # of the keys of pages
        self.tally = tally
        self.at_once = min(max(window // WIDTH, 1), WIDTH)
        self.keep = keep
        self.keys = itertools.count(1)

    def inside(self, template: Template) -> Cutter:
        """Cuts the branch of a map: the same, but for what the pages begin with."""
        cutter = copy(self)
        cutter.template = template
        return cutter

    def node(self, node: Node, at: str, place: Place) -> Iterable[Start]:
        """What starts *node*; what comes later is in further pages."""
        if isinstance(node, Job):
            return [(self.item(node, at, place),)]
        self.note(node, at, place)
        if node.scope:
            place = self.enter(node, at, place)
        if isinstance(node, Series):
            return self.steps(node, at, place)
        if isinstance(node, Choose):
            return self.choose(node, at, place)
        if isinstance(node, Map):
            return self.map(node, at, place)
        place = replace(place, gives=False)
        if node.limit is not None and node.branches:
            # Narrow also where all may run at once: branches that are added take their turns.
            return [self.narrow(node, node.limit, at, place)]
        return self.branches(node, at, place)

    def note(self, node: Node, at: str, place: Place) -> None:
        """Note the name of *node*, if it has one."""
        if node.name and node.size:
            names.check(node.name)
            # A branch stands for its own absence, another step for what comes before it.
            is_branch = at.rpartition(".")[0] in place.parallels[-1:]
            of = shape(node, at, None if is_branch else place.previous)
            of = _listed(of, at, place.tolerances)
            step = Named(at, of, place.parallels, place.options)
            names.add(self.out.names, node.name, step)

    def enter(self, node: Series | Parallel | Choose | Map, at: str, place: Place) -> Place:
        """The place inside *node*, which has a scope of its own."""
        scope = node.scope.inherit(place.scope)
        self.out.scopes[at] = scope
        barriers = place.barriers
        if scope.on_success:
            barriers = (_barrier(node, f"{at}!", f"success {at}"), *barriers)
        direct = place.direct or (isinstance(node, Series) and bool(node.scope.on_failure))
        headers = place.headers
        if scope.errbacks and isinstance(node, Parallel):
            headers = (f"{at}!*{len(node.branches)}", *headers)
        return replace(place, scope=scope, barriers=barriers, direct=direct, headers=headers)

    def steps(self, node: Series, at: str, place: Place) -> Iterable[Start]:
        """What starts a series."""
        addresses = [join(at, index) for index in range(len(node.steps))]
        previous = [place.previous]
        for step, address in zip(node.steps, addresses, strict=True):
            previous.append(shape(step, address, previous[-1]))
        barriers = place.barriers
        gives = place.gives
        inside = place.behind()
        following: Iterable[Start] = ()
        for index in reversed(range(len(node.steps))):
            step, address = node.steps[index], addresses[index]
            around = place if index == 0 else inside
            here = replace(around, previous=previous[index], barriers=barriers, gives=gives)
            gives = isinstance(step, Map)
            behind, following = _look_ahead(following)
            chain = _to_follow(behind)
            if chain and isinstance(step, Job):
                item = self.item(step, address, replace(here, barriers=()))
                following = [(item, *chain)]
                continue
            if behind:
                then = f"page {self.page(following)}"
                barriers = (_barrier(step, address, then),)
            following = self.node(step, address, replace(here, barriers=barriers))
        return following

    def branches(self, node: Parallel, at: str, place: Place) -> Iterator[Start]:
        """What starts a parallel."""
        width = len(node.branches)
        place = self.tolerant(node, at, width, place)
        apart = self.tells_apart(node, place)
        here: Place | None = None
        for index, branch in enumerate(node.branches):
            address = join(at, index)
            if here is None or apart:
                here = self.branch(node, branch, at, address, width, None, place)
            yield from self.node(branch, address, here)

    def narrow(self, node: Parallel, limit: int, at: str, place: Place) -> Narrow:
        """What starts a parallel that runs *limit* of its branches at a time."""
        width = len(node.branches)
        place = self.tolerant(node, at, width, place)
        if self.template is not None:
            self.out.narrows[at] = ""
        starts: list[Start] = []
        for index, branch in enumerate(node.branches):
            address = join(at, index)
            turn = Turn(at, address, limit, width)
            here = self.branch(node, branch, at, address, width, turn, place)
            page = self.fit(self.node(branch, address, here))
            self.put(f"{at}/{index}", page)
            if index < limit:
                starts.extend(page)
        return Narrow(at, limit, width, self.fit(starts, WIDTH - 1))

    def tolerant(self, node: Parallel | Map, at: str, width: int, place: Place) -> Place:
        """The place inside a parallel that counts its branches itself."""
        if not is_tolerant(node):
            return place
        self.out.decides = True
        if node.need > width != UNKNOWN:
            raise InvalidStep(f"the parallel at {at} needs {node.need} of its {width} branches")
        deaths = tolerated(node.allow, 0, width)
        if node.need and node.need + deaths > width != UNKNOWN:
            raise InvalidStep(
                f"the parallel at {at} needs {node.need} of its {width} branches, and so it cannot "
                f"allow {deaths} of them to fail"
            )
        name = f"{at}#"
        barrier = Barrier(name, node.need or width, grows=True)
        return replace(place, barriers=(barrier, *_gated(place.barriers, name)))

    def tells_apart(self, around: Parallel | Map, place: Place) -> bool:
        """Whether the branches of a parallel, or map, that runs all at a time are in places of
        their own: who is told of one, or counts them, has to know which it is (see `branch`)."""
        return is_tolerant(around) or self.listens(place.scope) or bool(around.scope.errbacks)

    def branch(
        self,
        around: Parallel | Map,
        node: Node,
        at: str,
        address: str,
        width: int,
        turn: Turn | None,
        place: Place,
    ) -> Place:
        """The place of the branch at *address* of the parallel at *at*."""
        settles = Settles(at, address, width) if self.listens(place.scope) else None
        barriers = place.barriers
        tolerances = place.tolerances
        closes = is_tolerant(around) and not isinstance(node, Job)
        if is_tolerant(around):
            first, *others = barriers
            if closes:
                first = replace(first, gate=address)
            barriers = (first, *others)
            dies = (replace(first, gate=address), *others)
            limit = _tolerated(around, width)
            counts = () if around.need else dies
            mine = Tolerance(f"{at}#", address, limit, around.need, True, counts)
            tolerances = (mine, *tolerances)
        if settles or turn or closes:
            own = Barrier(address, ends(node), "", settles, turn, closes=closes)
            barriers = (replace(own, grows=_grows(node)), *barriers)
        if around.scope.errbacks:
            header = Settles(f"{at}!", address, width)
            ended = Barrier(f"{address}!", ends(node), "", header, grows=_grows(node))
            barriers = (ended, *barriers)
        return replace(
            place,
            barriers=barriers,
            settles=f"{at}*{width} {place.settles}".strip(),
            narrow=(turn, *place.narrow) if turn else place.narrow,
            direct=False,
            parallels=(*place.parallels, at),
            tolerances=tolerances,
        )

    def choose(self, node: Choose, at: str, place: Place) -> list[Start]:
        """What starts a choice: the job that decides."""
        self.out.decides = True
        options = node.branches()
        everything = sum(option.size for _, option in options)
        choices: list[Choice] = []
        for index, (key, option) in enumerate(options):
            barriers = place.barriers
            if option.size:
                page = self.option(option, at, join(at, index + 1), place)
                barriers = (Barrier(join(at, 0), 1, f"page {page}"),)
            choices.append(Choice(key, barriers, everything - option.size))
        if node.truth:
            choices.append(Choice(None, place.barriers, everything))
        item = self.item(node.decider, join(at, 0), replace(place, barriers=(), gives=False))
        return [(replace(item, choices=Choices(tuple(choices), node.truth)),)]

    def option(self, node: Node, at: str, address: str, place: Place) -> str:
        """Keep what starts an option of the choice at *at*; the key of the page."""
        started = tuple(replace(each, first=False) for each in place.tolerances)
        barriers = place.barriers
        if ends(node) > 1 or ends_wide(node):
            name = f"{at}?"
            barriers = (_barrier(node, name), *_gated(barriers, name))
        options = (*place.options, address)
        here = replace(place, barriers=barriers, tolerances=started, options=options)
        return self.page(self.node(node, address, here))

    def map(self, node: Map, at: str, place: Place) -> list[Start]:
        """What starts a map."""
        self.out.decides = True
        if not place.previous or place.takes:
            raise InvalidStep(
                f"the map at {at} has no step before it that could return its list: a map is never "
                "the first step, of a clutch or of the branch of another map"
            )
        address = join(at, EACH)
        name = f"{at}#"
        need = node.need
        inside = self.tolerant(node, at, UNKNOWN, place)
        if not is_tolerant(node):
            barrier = Barrier(name, UNKNOWN * ends(node.branch), grows=True)
            inside = replace(place, barriers=(barrier, *_gated(place.barriers, name)))
        limit = node.limit or 0
        turn = Turn(at, address, limit, UNKNOWN) if limit else None
        here = self.branch(node, node.branch, at, address, UNKNOWN, turn, inside)
        here = replace(here, takes=True, gives=False)
        cutter = self.inside(Template(address, place.previous))
        key = cutter.page(cutter.node(node.branch, address, here))
        if limit:
            self.out.narrows[at] = key
        if self.template is None:
            self.out.jobs += 1
        return [Mapped(at, key, place.previous, node.branch.size, limit, need, place.barriers)]

    def item(self, job: Job, at: str, place: Place) -> Item:
        self.note(job, at, place)
        if place.scope.queue:
            job = _routed(job, place.scope.queue)
        settles = f"{at}*1 {place.settles}".strip() if place.direct else place.settles
        if not self.listens(place.scope):
            settles = ""
        settles = " ".join((*settles.split(), *place.headers))
        if self.template is None:
            self.out.jobs += 1
        return Item(
            at=at,
            job=job,
            previous=place.previous,
            settles=settles,
            barriers=place.barriers,
            narrow=place.narrow,
            tolerances=place.tolerances,
            takes=place.takes,
            gives=place.gives,
        )

    def listens(self, scope: Scope) -> bool:
        """Whether anybody is told of the steps here."""
        return self.tally or bool(scope.on_failure)

    def page(self, starts: Iterable[Start]) -> str:
        """Keep a page; its key."""
        key = self.key()
        self.put(key, self.fit(starts))
        return key

    def key(self) -> str:
        """A key that no page has; in the branch of a map, of one of each branch."""
        number = f"{self.prefix}{next(self.keys)}"
        return f"{self.template.at}:{number}" if self.template else number

    def put(self, key: str, starts: tuple[Start, ...]) -> None:
        """Keep a page under a key; what is of any branch of a map under the number in its key."""
        if self.template is None:
            self.keep(key, starts)
            return
        _, colon, number = key.rpartition(":")
        self.keep(f":{number}" if colon else key, (self.template, *starts))

    def fit(self, starts: Iterable[Start], room: int = 0) -> tuple[Start, ...]:
        """*starts* as one page of at most *room* messages (default: `WIDTH`): if they are more, a
        window of further pages."""
        room = room or WIDTH
        rest = iter(starts)
        page: list[Start] = []
        messages = 0
        for start in rest:
            page.append(start)
            messages += weight(start)
            if messages > room:
                return self.window(_groups(itertools.chain(page, rest)), min(self.at_once, room))
        return tuple(page)

    def window(self, groups: Iterable[tuple[Start, ...]], at_once: int) -> tuple[Start, ...]:
        """A page for each of *groups*; what starts the first of them. Each leads to the one that is
        *at_once* behind it."""
        first: list[Start] = []
        waiting: deque[tuple[str, tuple[Start, ...]]] = deque()
        for group in groups:
            key = self.key()
            if len(waiting) < at_once:
                first.append(Expand(key, queue(group[0])))
            else:
                before, starts = waiting.popleft()
                # It has to wait behind the jobs of its page, so it goes where they do.
                self.put(before, (*starts, Expand(key, queue(starts[-1]))))
            waiting.append((key, group))
        for key, group in waiting:
            self.put(key, group)
        return tuple(first)


def _listed(of: Shape, at: str, tolerances: Iterable[Tolerance]) -> Shape:
    """The shape *of* the node at *at*, seen from outside of the maps and tolerant parallels that it
    is in: lists of those of all branches, and what may stand in the place of a branch."""
    needs = {each.member: each.need for each in tolerances}
    while at:
        around, _, part = at.rpartition(".")
        if part == EACH:
            of = {"map": around, "of": of}
            if at in needs:
                of = {"some": around, "of": of, "need": needs[at]}
        elif at in needs:
            of = {"branch": at, "of": of, "need": needs[at]}
        at = around
    return of


def _barrier(node: Node, name: str, then: str = "") -> Barrier:
    """A barrier that waits for *node*."""
    return Barrier(name, ends(node), then, grows=_grows(node))


def _grows(node: Node) -> bool:
    """Whether a barrier that waits for *node* has to count although it waits for one result."""
    return ends(node) == 1 and ends_wide(node)


def _gated(barriers: Iterable[Barrier], name: str) -> tuple[Barrier, ...]:
    """*barriers* that count what the barrier *name* lets through."""
    return tuple(each if each.gate else replace(each, gate=name) for each in barriers)


def _tolerated(node: Parallel | Map, width: int) -> int | float:
    """How many branches may die; of a map, as it is said in the plan."""
    if width == UNKNOWN:
        return node.allow
    return tolerated(node.allow, node.need, width)


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


def _groups(starts: Iterable[Start]) -> Iterator[tuple[Start, ...]]:
    """*starts* in groups that fill a page but for the message that leads to another."""
    group: list[Start] = []
    messages = 0
    for start in starts:
        more = weight(start)
        if group and messages + more > WIDTH - 1:
            yield tuple(group)
            group, messages = [], 0
        group.append(start)
        messages += more
    if group:
        yield tuple(group)
