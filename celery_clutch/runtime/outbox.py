"""What is to be sent of a run: the messages of pages and jobs, collected and sent together."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from celery import Celery
from celery.canvas import Signature

from ..compile import canvas, pages, publish
from ..compile.header import NAME, Header, job_due
from ..compile.pages import Expand, Narrow, Passed, Start
from ..errors import MissingResult
from ..extend.plugins import runtime
from ..model.plan import is_in
from ..stores.base import NOTHING, Barrier, Tolerance
from . import eager
from .loading import Decide, Loader


class Outbox:
    """What is to be sent of a run: collected, then sent together.

    Args:
        app: the Celery app.
        origin: what the headers of all jobs of the run have in common.
        decide: records how many branches a map of the run has.
        skip: the addresses of jobs that need no message: under way, or waiting for a retry.
        dead: those of jobs that have no further attempt; they need none either.
        attempts: how many attempts of a job are known to have failed, by address: a message of one
            of those would be taken for a copy.
        grown: branches may have been added.
    """

    def __init__(
        self,
        app: Celery,
        origin: Header,
        decide: Decide,
        skip: Collection[str] = (),
        dead: Collection[str] = (),
        attempts: Mapping[str, int] = NOTHING,
        grown: bool = True,
    ) -> None:
        own = runtime(app)
        self.app = app
        self.store = own.store
        self.run = origin.run
        self.generation = origin.generation
        self.compiler = canvas.Compiler(app, origin)
        self.skip = {*skip, *dead}
        self.dead = dead
        self.attempts = attempts
        self.grown = grown
        self.loader = Loader(self.store, self.run, own.settings.window, decide)
        self.chains: list[canvas.Tasks] = []
        self._published: list[str] = []  # what is sent when all is sent
        self._later: dict[str, float] = {}  # what is due at a time of its own
        self._seen: set[str] = set()
        self._counts: dict[str, int] = {}
        self._narrows: set[str] = set()  # the narrow parallels that the way on has passed
        self._unfinished: list[str] = []  # the jobs that the way on stops at

    # --- a page that is due for the first time ----------------------------------------------

    def page(self, key: str, data: bytes | None = None) -> None:
        """A page of a run in which nothing of it has begun."""
        before = len(self.chains)
        for start in self.loader.load(key, data):
            self._start(key, start)
        self._receipt(f"page {key}", before)

    def expanded(self, key: str) -> None:
        """A page that another one stands for: what is left of it."""
        starts = self.loader.load(key)
        done = self._finished(starts)
        for start in starts:
            if not isinstance(start, tuple):
                self._start(key, start)
                continue
            left = _left(start, done)
            if left and not self._is_over(left[0], done):
                self._chain(key, left)

    def _start(self, key: str, start: Start) -> None:
        if isinstance(start, Expand):
            self._expand(start)
        elif isinstance(start, Narrow):
            for each in start.starts:
                self._start(key, each)
        elif isinstance(start, tuple):
            self._chain(key, start)

    def _expand(self, start: Expand, *, rest: bool = False) -> None:
        """Let a worker send a page when it has begun what was sent before; with *rest* what is left
        of it."""
        # Where routes say which queue that is, it is that of the job before.
        behind = self.chains[-1][0].task if self.chains else ""
        queue = start.queue or None
        message = self.compiler.advance(start.page, queue, behind=behind, rest=rest)
        self.chains.append([message])

    # --- a job ----------------------------------------------------------------------------------

    def job(self, page: str, address: str, retries: int = 0) -> None:
        """A job and what is behind it in its chain."""
        for chain in pages.chains(self.loader.load(page)):
            for index, item in enumerate(chain):
                if item.at == address:
                    self._chain(page, chain[index:], due=True, retries=retries)
                    return
        self._published.append(job_due(page, address))

    def following(self, key: str, tasks: canvas.Tasks) -> None:
        """The rest of a chain, as the message before carried it."""
        before = len(self.chains)
        self.chains.append(tasks)
        if is_plain(tasks):
            self._receipt(key, before)

    def _chain(self, page: str, items: pages.Chain, *, due: bool = False, retries: int = 0) -> None:
        first = items[0]
        previous = self.loader.decisions.resolve(first.previous, grown=self.grown)
        if previous != first.previous:
            items = (replace(first, previous=previous), *items[1:])
        tasks = self.compiler.chain(page, items, due=due)
        before = len(self.chains)
        self.chains.append(tasks)
        retries = retries or self.attempts.get(items[0].at, 0)
        if retries:
            tasks[0].options["retries"] = retries
        begins = begins_at(tasks[0].options)
        if begins is not None and not is_plain(tasks):
            key = job_due(page, items[0].at)
            self._later[key] = begins
            _add_receipt(tasks[0], key)
        elif due and is_plain(tasks):
            self._receipt(job_due(page, items[0].at), before)

    # --- what is left of a run -----------------------------------------------------------------

    def rest(self, key: str, data: bytes | None = None) -> None:
        """What is left of the run from a page on."""
        before = len(self.chains)
        self._rest(key, data)
        if key == pages.ROOT:
            self._rest_of_added()
        self._receipt(f"page {key}", before)

    def _rest(self, key: str, data: bytes | None = None) -> None:
        todo = [key]
        while todo:
            key = todo.pop()
            if key in self._seen:
                continue
            self._seen.add(key)
            further = self._rest_of_page(key, self.loader.load(key, data))
            todo.extend(reversed(further))
            data = None

    def _rest_of_added(self) -> None:
        """What is left of branches that were added to parallels which run all at a time."""
        for address, branches in self.loader.decisions.added.items():
            if address not in self._narrows:
                for name, _ in branches:
                    self._rest(f"{address}/{name}")

    def _rest_of_page(self, key: str, starts: tuple[Start, ...]) -> list[str]:
        """Collect what is left of a page; the keys of those where the way on from it leads."""
        further: list[str] = []
        done = self._finished(starts)
        before = len(self.chains)
        for start in starts:
            if isinstance(start, Narrow):
                self._branches(start)
            elif isinstance(start, tuple):
                further.extend(self._rest_of_chain(key, start, done))
            elif isinstance(start, Passed):
                further.extend(self._behind(start.barriers))
            elif not isinstance(start, Expand):
                raise TypeError(f"{start!r:.80} is not loaded")
            elif len(self.chains) > before:
                self._expand(start, rest=True)  # a window of pages is left, as at first
            else:
                further.append(start.page)
        return further

    def _rest_of_chain(self, key: str, chain: pages.Chain, done: Collection[str]) -> list[str]:
        """Collect what is left of a chain, or the keys of the pages behind it."""
        left = _left(chain, done)
        if left:
            tolerance = self._is_over(left[0], done)
            if tolerance is not None:
                return self._behind(tolerance.barriers, {tolerance.member})
            self._unfinished.append(left[0].at)
            if left[0].at not in self.skip:
                self._chain(key, left)
            return []
        last = chain[-1]
        barriers = last.barriers
        if last.choices is not None:
            choice = last.choices.of(self.loader.decisions(last.at))
            barriers = choice.barriers if choice else ()
        return self._behind(barriers)

    def _is_over(self, item: pages.Item, done: Collection[str]) -> Tolerance | None:
        """The branch of the item that is over although the item has no result: it has died, or is
        not needed."""
        for tolerance in item.tolerances:
            if tolerance.member in done:
                return tolerance
            if tolerance.need and self._count(tolerance.step) >= tolerance.need:
                return tolerance
        return None

    def _behind(self, barriers: Iterable[Barrier], opened: Iterable[str] = ()) -> list[str]:
        """The keys of the pages behind those of *barriers* that are open; *opened* are gates."""
        further: list[str] = []
        gates = {"", *opened}
        for barrier in barriers:
            if barrier.gate not in gates or not self.is_open(barrier):
                continue
            gates.add(barrier.name)
            kind, _, page = barrier.then.partition(" ")
            if kind == "page":
                further.append(page)
        return further

    def _branches(self, narrow: Narrow) -> None:
        """As many branches of a narrow parallel as may be under way."""
        self._narrows.add(narrow.at)
        added = self.loader.decisions.added.get(narrow.at, ())
        names = [*map(str, range(narrow.width)), *(name for name, _ in added)]
        number = under_way = 0
        while number < len(names) and under_way < narrow.limit:
            before = len(self._unfinished)
            self._rest(f"{narrow.at}/{names[number]}")
            branch = f"{narrow.at}.{names[number]}"
            left = [each for each in self._unfinished[before:] if is_in(each, branch)]
            # A branch with a dead job is over: the next one runs.
            if left and not any(is_in(each, branch) for each in self.dead):
                under_way += 1
            number += 1
        idle = min(narrow.limit, narrow.width) - under_way
        self.store.patiently(self.store.skip, self.run, narrow.at, number, self.generation, idle)

    def find(self, key: str, address: str) -> Header:
        """The header of a job, from the page *key* or those that come after it.

        Raises:
            MissingResult: there is no such job, or the run is gone.
        """
        todo, seen = [key], {key}
        while todo:
            page = todo.pop()
            for start in self.loader.load(page):
                for item in pages.items((start,)):
                    if item.at == address:
                        return Header.of_item(self.compiler.origin, page, item)
                new = [each for each in _leads_to(start) if each not in seen]
                seen.update(new)
                todo.extend(new)
        raise MissingResult(f"run {self.run} has no job {address}")

    def is_open(self, barrier: Barrier) -> bool:
        """Whether all that *barrier* waits for is done, given that one of its jobs is."""
        if barrier.width == 1 and not barrier.grows:
            return True
        if self._count(barrier.name) < barrier.width:
            return False
        return self._count(barrier.name) >= barrier.width + self._count(f"more {barrier.name}")

    def _count(self, name: str) -> int:
        """How much a barrier has counted."""
        known = self._counts.get(name)
        if known is None:
            (known,) = self.store.patiently(self.store.counts, self.run, [name])
            self._counts[name] = known
        return known

    # --- sending --------------------------------------------------------------------------------

    def send(self) -> None:
        """Send what was collected.

        Raises:
            compat.BROKER_ERRORS: the broker is away; what is due stays so.
            StoreUnavailable: so is the store.
        """
        if self.chains:
            if self.app.conf.task_always_eager:
                eager.run(self.app, self.chains)
            else:
                publish.send_patiently(self.app, self.chains)
        self.confirm()

    @property
    def is_to_confirm(self) -> bool:
        """Whether something that was sent has no other receipt, or is due at a time of its own."""
        return bool(self._later or self._published)

    def confirm(self) -> None:
        """Record what was sent and has no other receipt."""
        if self._later:
            self.store.patiently(self.store.remind, self.run, self._later)
        if self._published:
            self.store.patiently(self.store.published, self.run, self._published)

    def _receipt(self, key: str, before: int) -> None:
        """Let the last of the messages since *before* say, when it begins, that all are sent."""
        for index in range(len(self.chains) - 1, before - 1, -1):
            tasks = self.chains[index]
            begins = not is_plain(tasks) and tasks[0].task != canvas.ADVANCE
            if begins and begins_at(tasks[0].options) is None:
                self.chains.append(self.chains.pop(index))
                _add_receipt(tasks[0], key)
                return
        self._published.append(key)

    def _finished(self, starts: Iterable[Start]) -> set[str]:
        """Which jobs of *starts* have a result, without those of further pages, and which of the
        branches that they are in have died."""
        wanted: dict[str, None] = {}
        for start in starts:
            if isinstance(start, tuple):
                for item in start:
                    wanted[item.at] = None
                    wanted.update((each.member, None) for each in item.tolerances)
        found: set[str] = self.store.patiently(self.store.finished, self.run, list(wanted))
        return found


def begins_at(options: Mapping[str, Any]) -> float | None:
    """When a message sent now with *options* is to begin, in seconds since the epoch; None for at
    once."""
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown:
        return time.time() + float(countdown)
    if isinstance(eta, str):
        try:
            eta = datetime.fromisoformat(eta)
        except ValueError:
            return None
    return eta.timestamp() if isinstance(eta, datetime) else None


def _left(chain: pages.Chain, done: Collection[str]) -> pages.Chain:
    """What is left of a chain: from the first job without a result on."""
    for index, item in enumerate(chain):
        if item.at not in done:
            return chain[index:]
    return ()


def _leads_to(start: Start) -> list[str]:
    """The keys of the pages that come after *start*."""
    if isinstance(start, Expand):
        return [start.page]
    if isinstance(start, Narrow):
        return [f"{start.at}/{number}" for number in range(start.width)]
    if isinstance(start, Passed):
        return pages.behind_barriers(start.barriers)
    if not isinstance(start, tuple):
        return []
    return [key for item in start for key in pages.behind(item)]


def is_plain(tasks: canvas.Tasks) -> bool:
    """Whether the first of *tasks* is not a ClutchTask, and so does not say that it begins."""
    return len(tasks) > 1 and tasks[1]["task"] == canvas.COLLECT


def _add_receipt(task: Signature, key: str) -> None:
    header = task.options["headers"][NAME]
    known = header.get("due", [])
    if key not in known:
        new = {**header, "due": [*known, key]}
        task.options["headers"] = {**task.options["headers"], NAME: new}
