"""Branches that a job adds to the parallel it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import orjson
from celery import Celery

from ..compile import canvas, checks, cut, pages, record
from ..compile.header import Header
from ..compile.pages import Start
from ..errors import BuildError, MissingResult
from ..extend.plugins import runtime
from ..model import plan, shape
from ..model.plan import Map, Node, Parallel, Series
from ..model.shape import Shape
from ..stores.base import Barrier, Growth, Missing, ResultStore, Turn
from .loading import Loader

Compose = Callable[[tuple[Any, ...], Celery], list[Node]]
"""Makes a node of each step, or of those in one iterable, as ``parallel()`` does."""


def _no_compose(steps: tuple[Any, ...], app: Celery) -> list[Node]:
    raise NotImplementedError("set by celery_clutch.build.clutch, which every import brings")


compose: Compose = _no_compose


class Branches:
    """What a job adds to the parallel or map it is in, kept until it completes.

    Args:
        add: takes the steps of a call.
    """

    def __init__(self, add: Callable[[tuple[Any, ...]], None]) -> None:
        self._add = add

    def add(self, *steps: Any) -> Branches:
        """Add each of *steps*, anything that a clutch takes, as a branch to the innermost parallel
        or map that the job is in; see `ClutchTask.branches`. Takes arguments or one iterable, as
        ``parallel()`` does. If this attempt of the job fails nothing is added.

        Raises:
            InvalidStep: a step cannot be one.
            InvalidName: it, or a step in it, has a name.
            BuildError: it is a clutch with data.
        """
        self._add(steps)
        return self


def refuse(steps: tuple[Any, ...]) -> None:
    """What `Branches.add` does outside a run."""
    raise BuildError("branches.add() outside a run: there is no parallel that a branch could be of")


def grow(app: Celery, header: Header, nodes: list[Node]) -> Growth:
    """What adding *nodes* as branches around the job of *header* means.

    Raises:
        BuildError: the job is in no parallel.
        NonJSONArgument, InvalidStep, InvalidOption: what `Clutch.engage` raises.
        MissingResult: the run is gone.
    """
    return _Grower(app, header).grow(nodes)


class _Grower:
    def __init__(self, app: Celery, header: Header) -> None:
        own = runtime(app)
        self.app = app
        self.header = header
        self.window = own.settings.window
        self.store: ResultStore = own.store
        self.loader = Loader(self.store, header.run, self.window, _decided)
        self.pages: dict[str, bytes] = {}
        self.jobs = checks.Jobs(app)
        self.encode = plan.JobEncoder()
        self.around: Parallel | Map | None = None
        self.at = ""  # the address of the parallel
        self.previous: Shape = ""

    def grow(self, nodes: list[Node]) -> Growth:
        self._locate()
        around, at = self.around, self.at
        if around is None:
            raise BuildError(
                f"job {self.header.at} is in no parallel and no map, so that it can add no branch"
            )
        barriers = self._outward()
        width = len(around.branches) if isinstance(around, Parallel) else self._width(at)
        place = self._place(barriers)
        branches: list[tuple[str, Any]] = []
        more: dict[str, int] = {}
        for number, node in enumerate(nodes):
            name = f"{self._own_name()}+{number}"
            address = plan.join(at, name)
            turn = Turn(at, address, around.limit, width) if around.limit else None
            self._cut(around, node, address, width, turn, place)
            self.pages[f"{canvas.PLAN} {address}"] = pages.compress(plan.dumps(node, self.encode))
            branches.append((name, shape.shape(node, address)))
            self._count(more, barriers, node)
        self.jobs.warn()
        return Growth(
            step=at,
            branches=tuple(branches),
            barriers=more,
            jobs=sum(node.size for node in nodes),
            pages=self.pages,
            due=() if around.limit else tuple(f"{at}/{name}" for name, _ in branches),
            limit=around.limit or 0,
            width=width,
        )

    def _cut(
        self,
        around: Parallel | Map,
        node: Node,
        address: str,
        width: int,
        turn: Turn | None,
        place: cut.Place,
    ) -> None:
        """Keep the pages of a branch."""
        out = pages.Pages()
        prefix = f"{address.replace('+', '-')}_"
        cutter = cut.Cutter(out, bool(self.header.settles), self.window, self._keep, prefix)
        here = cutter.branch(around, node, self.at, address, width, turn, place)
        name = address[len(self.at) + 1 :]
        self._keep(f"{self.at}/{name}", cutter.fit(cutter.node(node, address, here)))
        if out.narrows:
            self.pages[f"{pages.NARROWS} {address}"] = orjson.dumps(out.narrows)
        for scope in out.scopes.values():
            if scope.on_success or scope.on_failure != place.scope.on_failure:
                raise BuildError(
                    "a clutch with handlers of its own cannot be added as a branch: nest it "
                    "(Clutch(parent=self)), or let the clutch around have the handlers"
                )

    def _keep(self, key: str, starts: tuple[Start, ...]) -> None:
        self.jobs.check(pages.items(starts))
        self.pages[key] = canvas.encoded_page(starts, self.encode)

    def _count(self, more: dict[str, int], barriers: Iterable[Barrier], node: Node) -> None:
        """How many results more *barriers* wait for with a branch."""
        assert self.around is not None
        tolerant = plan.is_tolerant(self.around)
        for barrier in barriers:
            needed = self.around.need and barrier.name == f"{self.at}#"
            if not barrier.gate and not needed:
                ends = 1 if tolerant else shape.ends(node)
                more[barrier.name] = more.get(barrier.name, 0) + ends

    def _own_name(self) -> str:
        """The address of the job behind that of the parallel, as part of a branch's name."""
        return self.header.at[len(self.at) + 1 :].replace(".", "-")

    def _width(self, at: str) -> int:
        return int(self.loader.decisions(at))

    # --- where the job is -------------------------------------------------------------------------

    def _locate(self) -> None:
        """Find the innermost parallel or map around the job, and what is before it."""
        node: Node = self._plan(canvas.PLAN)
        address = ""
        previous: Shape = ""
        for part in self.header.at.split("."):
            if isinstance(node, (Parallel, Map)):
                self.around, self.at, self.previous = node, address, previous
            if isinstance(node, Series):
                previous = _before(node, int(part), address, previous)
            address = plan.join(address, part)
            node = self._child(node, part, address)

    def _child(self, node: Node, part: str, address: str) -> Node:
        if not part.isdecimal():  # a branch that was added
            return self._plan(f"{canvas.PLAN} {address}")
        if isinstance(node, Map):
            return node.branch
        return plan.children(node)[int(part)]

    def _plan(self, key: str) -> Node:
        data = self.store.patiently(self.store.page, self.header.run, key)
        if data is Missing:
            raise MissingResult(f"the plan of run {self.header.run} is not in the store")
        return plan.loads(pages.decompress(data))

    def _branch(self) -> str:
        """The address of the branch that the job is in."""
        name = self.header.at[len(self.at) + 1 :].partition(".")[0]
        return plan.join(self.at, name)

    # --- what a branch counts towards -------------------------------------------------------------

    def _outward(self) -> tuple[Barrier, ...]:
        """The barriers that the ends of the branch count towards, outside it."""
        branch = self._branch()
        found = _outside(self.header.barriers, branch)
        todo, seen = [self.header.page], {self.header.page}
        while todo and not found:
            key = todo.pop()
            for start in self.loader.load(key):
                for item in pages.items((start,)):
                    if not plan.is_in(item.at, branch):
                        continue
                    found = found or _outside(item.barriers, branch)
                    new = [page for page in pages.behind(item) if page not in seen]
                    seen.update(new)
                    todo.extend(new)
        return found

    def _place(self, barriers: tuple[Barrier, ...]) -> cut.Place:
        """The place of a branch beside that of the job."""
        header, at = self.header, self.at
        found = self.store.patiently(self.store.read, header.run)
        if found is None:
            raise MissingResult(f"run {header.run} is gone")
        outer = [each for each in header.tolerances if plan.is_in(at, each.member)]
        settles = [each for each in header.settles.split() if _is_around(each, at)]
        return cut.Place(
            scope=record.Meta.loads(found.meta).scope(at),
            previous=self.loader.decisions.resolve(self.previous),
            barriers=barriers,
            settles=" ".join(settles),
            narrow=tuple(turn for turn in header.narrow if plan.is_in(at, turn.member)),
            direct=False,
            tolerances=tuple(replace(each, first=False) for each in outer),
        )


def _decided(start: pages.Mapped, width: int) -> None:
    """A map that is looked at has been decided before."""


def _before(node: Series, index: int, address: str, before: Shape) -> Shape:
    """The shape of what is before the step *index*."""
    for number in range(index):
        before = shape.shape(node.steps[number], plan.join(address, number), before)
    return before


def _outside(barriers: Iterable[Barrier], branch: str) -> tuple[Barrier, ...]:
    """Those of *barriers* that are not inside *branch*, as its ends count towards them."""
    found: list[Barrier] = []
    for barrier in barriers:
        if plan.is_in(barrier.name.rstrip("#!?"), branch):
            continue
        inside = bool(barrier.gate) and plan.is_in(barrier.gate.rstrip("#!?"), branch)
        found.append(replace(barrier, gate="") if inside else barrier)
    return tuple(found)


def _is_around(settles: str, at: str) -> bool:
    """Whether a step that a failure settles is around the parallel *at*."""
    step = settles.partition("*")[0].rstrip("!")
    return step != at and plan.is_in(at, step)
