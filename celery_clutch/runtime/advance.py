"""The only way on: what is due is loaded, and what is left of it is sent.

Engage, a barrier that opens, the next branch of a narrow parallel, the end of a nested run, resume,
the sweep and a message that came again all come here. The store says what is due; sending it twice
is harmless, because `ResultStore.begin` gives a job to one owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
from celery import Celery
from celery.canvas import Signature

from .. import signals
from ..compile import canvas, pages, publish, record
from ..compile.header import NAME, Header, is_header, job_due
from ..compile.pages import Expand, Mapped, Narrow, Passed, Start
from ..errors import CorruptRecord, MissingResult, NestedClutchFailed, NoSuchChoice, NotAList
from ..extend import observers
from ..extend.plugins import Runtime, runtime
from ..model import codec
from ..model.absent import Failed
from ..model.events import JobFinished
from ..model.plan import is_in
from ..model.status import Failure, State
from ..stores.base import (
    NOTHING,
    Attempted,
    Barrier,
    Completed,
    Completion,
    Record,
    Tolerance,
)
from . import eager, handlers, journal
from .loading import Loader

logger = logging.getLogger(__name__)


class Outbox:
    """What is to be sent of a run: collected, then sent together.

    Args:
        app: the Celery app.
        origin: what the headers of all jobs of the run have in common.
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
        self.loader = Loader(self.store, self.run, own.settings.window, self._decide)
        self.chains: list[list[Signature]] = []
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
        for chain in _chains(self.loader.load(page)):
            for index, item in enumerate(chain):
                if item.at == address:
                    self._chain(page, chain[index:], due=True, retries=retries)
                    return
        self._published.append(job_due(page, address))

    def following(self, key: str, tasks: list[Signature]) -> None:
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
        self.store.patiently(self.store.skip, self.run, narrow.at, number, self.generation)

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

    def _decide(self, start: Mapped, width: int) -> None:
        """A map has so many branches, from now on."""
        origin = self.compiler.origin
        done = Completion(
            run=self.run,
            address=start.at,
            generation=self.generation,
            value=b"%d" % width,
            token=f"map {start.at}",
            barriers=() if width else start.barriers,
            jobs=width * start.size - 1,
            counts=0,
        )
        complete(runtime(self.app), replace(origin, at=start.at), done, None)

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


# --- what is due ------------------------------------------------------------------------------


def follow(
    app: Celery,
    origin: Header,
    due: Sequence[str],
    found: Mapping[str, bytes],
    chain: Sequence[Any] = (),
    *,
    grown: bool = True,
) -> None:
    """Send what a job has made due.

    What cannot be sent now stays due, for a copy of the message or the sweep, and is no failure of
    a job that has its result.

    Args:
        app: the Celery app.
        origin: the run, and the generation that it is in.
        due: as the store has answered.
        found: pages among them.
        chain: what is behind the job in its message, as Celery has it: the last is next.
        grown: branches may have been added.
    """
    if not due:
        return
    if app.conf.task_always_eager:
        _follow(app, origin, due, found, (), grown)
        return
    try:
        _follow(app, origin, due, found, chain, grown)
    except Exception:
        logger.exception("what follows in run %s is due, but could not be sent now", origin.run)


def _follow(
    app: Celery,
    origin: Header,
    due: Sequence[str],
    found: Mapping[str, bytes],
    chain: Sequence[Any],
    grown: bool,
) -> None:
    outbox = Outbox(app, origin, grown=grown)

    def collect(key: str, kind: str, rest: str) -> None:
        if kind == "page" and not origin.generation:
            outbox.page(rest, found.get(rest))
        elif kind == "page":
            outbox.rest(rest, found.get(rest))
        elif tasks := _carried(app, chain, origin.generation, key):
            outbox.following(key, tasks)
        else:
            outbox.job(*split_job(rest))

    deliver(outbox, due, collect)


def deliver(outbox: Outbox, due: Sequence[str], collect: Callable[[str, str, str], None]) -> None:
    """Send what is due, messages together and first.

    Args:
        outbox: of the run.
        due: the keys.
        collect: puts the messages of a page or job into the outbox; gets the key, its kind, and
            what of it is behind the kind.
    """
    told: list[str] = []
    for key in due:
        kind, _, rest = key.partition(" ")
        if kind not in ("page", "job"):
            told.append(key)
            continue
        try:
            collect(key, kind, rest)
        except (MissingResult, NotAList, CorruptRecord) as exc:
            unreadable(outbox.app, outbox.compiler.origin, rest, exc)
    outbox.send()
    told.sort(key=_order)
    for key in told:
        tell(outbox.app, outbox.run, key)
    if told:
        outbox.store.patiently(outbox.store.published, outbox.run, told)


def split_job(rest: str) -> tuple[str, str]:
    """The page and the address of a job that is due; see `header.job_due`."""
    page, _, address = rest.partition(" ")
    return page, address


def _order(key: str) -> int:
    """A failure is told before the death that it is."""
    return int(not key.startswith("failure "))


def _carried(app: Celery, chain: Sequence[Any], generation: int, key: str) -> list[Signature]:
    """The tasks of *chain* if the job that is due is the first of them, in this generation."""
    if not chain:
        return []
    header = (chain[-1]["options"].get("headers") or {}).get(NAME) or {}
    carried = header.get("gen"), job_due(header.get("page", ""), header.get("at", ""))
    if carried != (generation, key):
        return []
    first, *rest = reversed(chain)
    return [app.signature(first), *rest]  # what is behind it is carried on as it is


def unreadable(app: Celery, origin: Header, key: str, exc: Exception) -> None:
    """A page that is to be sent is gone, or is not what was stored: the run cannot go on."""
    address = getattr(exc, "address", "") or f"page {key}"
    failure = handlers.describe(exc, address, canvas.ADVANCE, None)
    failure = replace(failure, final=True)
    fail(app, replace(origin, at=address), failure, f"page {key}")


def tell(app: Celery, run: str, key: str) -> None:
    """Tell who is to be told of something that has happened in a run: *key* is what is due."""
    store = runtime(app).store
    kind, _, where = key.partition(" ")
    if kind == "nested":
        go_on(app, where)
        return
    told = kind == "success" or (kind == "failure" and not is_header(where))
    found = store.patiently(store.brief if told else store.read, run)
    if found is None:
        return
    meta = record.Meta.loads(found.meta)
    if kind == "failure" and is_header(where):
        handlers.chord_failed(app, found, meta, where)
    elif kind == "failure":
        handlers.send(app, found, meta, "on_failure", where, where)
    elif kind == "success":
        handlers.send(app, found, meta, "on_success", where, None)
    elif kind == "death":
        handlers.send(app, found, meta, "on_death", where, None)
        handlers.send(app, found, meta, "on_end", "", None)
        _tell_waiting(app, found, meta, where)
    elif kind == "end":
        if found.state is State.SUCCEEDED:
            handlers.send(app, found, meta, "on_success", "", None)
        handlers.send(app, found, meta, "on_end", "", None)
        _tell_waiting(app, found, meta, "")


def _tell_waiting(app: Celery, found: Record, meta: record.Meta, address: str) -> None:
    """Tell the job, or somebody else's canvas, that waits for the run of its end."""
    if meta.awaited and found.state is not State.RUNNING:
        publish.apply(app, app.signature(dict(meta.awaited)))
    if meta.parent is None:
        return
    if found.state is State.SUCCEEDED:
        _succeeded(app, found.run, meta.parent)
    elif found.state is State.CANCELLED:
        fail_waiting(app, found.run, meta.parent, "it was cancelled")
    elif found.state is State.FAILED:
        data = found.failures.get(address)
        failure = Failure.from_dict(orjson.loads(data)) if data else None
        fail_waiting(app, found.run, meta.parent, "it has failed", failure)


# --- results and failures -------------------------------------------------------------------


def complete(
    own: Runtime,
    header: Header,
    done: Completion,
    event: Callable[[], JobFinished] | None,
    chain: Sequence[Any] = (),
) -> Completed:
    """Record a result, and send what follows; without an *event* it is not that of a job."""
    app = own.app
    if observers.heard(own, signals.clutch_step_settled):
        done = replace(done, settles=header.settles_alone())
    done = replace(done, message=_message(own, header, done, chain)) if chain else done
    answer = own.store.patiently(own.store.complete, done)
    if answer.fresh and event is not None:
        observers.emit(own, signals.clutch_job_finished, event)
    for step in answer.settled:
        handlers.settled(app, header, step, failed=f"failure {step}" in answer.due)
    if answer.succeeded:
        handlers.finished(app, header.run, State.SUCCEEDED)
    if answer.due:
        origin = replace(header.origin, generation=answer.generation)
        follow(app, origin, answer.due, answer.pages, chain, grown=answer.unusual)
    return answer


def _message(
    own: Runtime, header: Header, done: Completion, chain: Sequence[Any]
) -> tuple[str, bytes] | None:
    """The message of what is behind a job in its own, for a store that can send it at once.

    Observers are told first that the job has finished.
    """
    if done.next is None or observers.heard(own, signals.clutch_job_finished):
        return None
    try:
        tasks = _carried(own.app, chain, header.generation, done.next[0])
        return None if not tasks or is_plain(tasks) else publish.made(own.app, tasks)
    except Exception:
        logger.debug("what follows in run %s is sent as usual", header.run, exc_info=True)
        return None


def fail(
    app: Celery,
    header: Header,
    failure: Failure,
    token: str,
    *,
    loud: bool = True,
    retry_at: float | None = None,
) -> None:
    """Record *failure* of the job of *header*, and send what follows."""
    own = runtime(app)
    failed = Attempted(
        run=header.run,
        address=header.at,
        generation=header.generation,
        failure=orjson.dumps(failure.to_dict()),
        attempt=failure.attempt,
        final=failure.final,
        token=token,
        settles=header.settled_by_failure(loud=loud, final=failure.final),
        turns=header.narrow,
        retry=None if retry_at is None else (header.due, retry_at),
        tolerances=header.tolerances,
        stand_in=Failed(failure.address, failure.exception, failure.message).dumps(),
    )
    answer = own.store.patiently(own.store.fail, failed)
    if answer.recorded:
        journal.failed(header, failure, tolerated=answer.tolerated)
        event = handlers.failed(header, failure)
        observers.emit(own, signals.clutch_job_failed, lambda: event)
    for step in answer.settled:
        if not is_header(step):
            handlers.settled(app, header, step, failed=True)
    if answer.died:
        handlers.finished(app, header.run, State.FAILED, f"job {header.at} is dead")
    if answer.succeeded:
        handlers.finished(app, header.run, State.SUCCEEDED)
    follow(app, header.origin, answer.due, answer.pages, grown=answer.unusual)


# --- nested runs --------------------------------------------------------------------------------


def _succeeded(app: Celery, run: str, parent: record.Parent) -> None:
    """A nested run has succeeded: the job that waits for it has one run less to wait for."""
    store = runtime(app).store
    header = Header.from_dict(parent.header)
    changes = canvas.shared_changes(store, run) if parent.shares else {}
    outcome = orjson.dumps(record.changes_to_json(changes))
    answer = store.patiently(store.report, header.run, header.at, run, outcome)
    if answer is not None:
        complete_held(app, header, parent, *answer)


def complete_held(
    app: Celery,
    header: Header,
    parent: record.Parent,
    data: bytes,
    outcomes: Mapping[str, bytes],
) -> None:
    """Complete a job from its checkpoint, if all that it waits for has succeeded."""
    held = record.Held.loads(data)
    if not set(held.runs) <= outcomes.keys():
        return
    changes = dict(held.changes)
    for nested in held.runs:
        changes.update(record.changes_from_json(orjson.loads(outcomes[nested])))
    info = record.with_nested(held.info, held.runs)
    done = completion(header, held.value, changes, info, token=f"nested {parent.task_id}")
    event = finished_event(header, parent.task, parent.task_id, held.info)
    answer = complete(runtime(app), header, done, event)
    if answer.fresh:
        for link in held.links:
            publish.apply(app, app.signature(link), (codec.decode_result(held.value),))


def fail_waiting(
    app: Celery, run: str, parent: record.Parent, what: str, failure: Failure | None = None
) -> None:
    """Fail the job that waits for the nested *run*."""
    store = runtime(app).store
    header = Header.from_dict(parent.header)
    above = store.patiently(store.peek, header.run)
    if above is None:
        return
    exc = NestedClutchFailed(f"the nested clutch {run} of job {header.at} is no success: {what}")
    own = handlers.describe(exc, header.at, parent.task, None, "")
    if failure is not None:
        message = f"job {failure.address} of the nested clutch {run}: {failure.message}"
        own = replace(own, message=message, traceback=failure.traceback)
    own = replace(own, task_id=parent.task_id, attempt=parent.attempt, final=True)
    loud = failure is None or not parent.quiet
    fail(app, replace(header, generation=above[1]), own, f"nested {run}", loud=loud)


def go_on(app: Celery, run: str, *, resumes: bool = False) -> None:
    """Send what is left of a run that something waits for, or tell of its end if that is due.

    With *resumes* a run that has failed or was cancelled is resumed.
    """
    store = runtime(app).store
    found = store.patiently(store.read, run)
    if found is None:
        return
    meta = record.Meta.loads(found.meta)
    if resumes and found.state in (State.FAILED, State.CANCELLED):
        reopened = reopen(app, run)
        if reopened is None or reopened[0].state is State.SUCCEEDED:
            return
        found, meta = reopened
    origin = meta.origin(run, found.generation)
    if found.state is State.RUNNING:
        outbox = Outbox(app, origin)
        outbox.rest(pages.ROOT)
        outbox.send()
        return
    follow(app, origin, [key for key in found.due if key.startswith(("death ", "end "))], {})
    if found.state is State.SUCCEEDED and meta.parent:
        _succeeded(app, run, meta.parent)


def wait_for_nested(app: Celery, header: Header, data: bytes) -> None:
    """A job has returned before, and waits for nested runs: let what is left of them go on.

    Those that have ended are resumed if the run around them has been since.
    """
    store = runtime(app).store
    held = record.Held.loads(data)
    answer = store.patiently(store.report, header.run, header.at, "", b"")
    if answer is None:
        return
    outcomes = answer[1]
    parent = record.Parent(header.to_dict(), header.task, "", record.attempt_of(held.info))
    for nested in held.runs:
        if nested in outcomes:
            continue
        if store.patiently(store.peek, nested) is None:
            fail_waiting(app, nested, parent, "it is gone")
            return
        go_on(app, nested, resumes=header.generation > held.generation)
    complete_held(app, header, parent, data, outcomes)


def reopen(
    app: Celery, run: str, *, retry_tolerated: bool = False
) -> tuple[Record, record.Meta] | None:
    """Raise the generation of *run*, for what is left of it.

    None if that was not to be done, or if the run is gone. A run of which nothing was left has
    succeeded, and who waits for that is told.
    """
    store = runtime(app).store
    found = store.patiently(store.read, run)
    if found is None or found.state is State.SUCCEEDED:
        return None
    sources = (State.RUNNING, State.FAILED, State.CANCELLED)
    moved = store.transition(
        run, sources, State.RUNNING, found.generation, retry_tolerated=retry_tolerated
    )
    if not moved:
        return None  # somebody else has just resumed it
    found = store.patiently(store.read, run)
    if found is None:
        return None
    journal.resumed(run, found.generation)
    meta = record.Meta.loads(found.meta)
    if found.state is State.SUCCEEDED:
        handlers.finished(app, run, found.state)
        follow(app, meta.origin(run, found.generation), tuple(found.due), {})
    return found, meta


# --- pieces -------------------------------------------------------------------------------------


def completion(
    header: Header,
    value: bytes,
    changes: Mapping[str, bytes | None],
    info: bytes,
    token: str,
    begins: float | None = None,
) -> Completion:
    """The completion of the job of *header*; *begins* is when the next one of its chain does."""
    following = None
    if header.next:
        since = time.time() if begins is None else begins
        following = job_due(header.page, header.next), since
    barriers, skips = header.barriers, 0
    if header.choices is not None and value:
        choice = chosen(header, codec.decode_result(value))
        barriers, skips = choice.barriers, choice.skips
    return Completion(
        run=header.run,
        address=header.at,
        generation=header.generation,
        value=value,
        token=token,
        barriers=barriers,
        next=following,
        changes=changes,
        info=info,
        skips=skips,
    )


def chosen(header: Header, value: Any) -> pages.Choice:
    """What follows the decider of *header*, which has returned *value*.

    Raises:
        NoSuchChoice: nothing does.
    """
    assert header.choices is not None
    choice = header.choices.of(value)
    if choice is None:
        keys = ", ".join(str(option.key) for option in header.choices.options)
        raise NoSuchChoice(
            f"job {header.at} has decided for {value!r:.80}, which is no option, and there is no "
            f"default; the options are {keys}"
        )
    return choice


def finished_event(
    header: Header, task: str, task_id: str, info: bytes
) -> Callable[[], JobFinished]:
    """Makes what observers are told of a job that has its result."""

    def make() -> JobFinished:
        known = orjson.loads(info) if info else {}
        return JobFinished(
            header.run,
            header.generation,
            header.at,
            task,
            task_id,
            attempt=record.attempt_of(info),
            at=time.time(),
            seconds=known.get("seconds", 0.0),
            context=header.context,
        )

    return make


def header_of(app: Celery, origin: Header, address: str) -> Header:
    """The header of the job at *address*, from the pages of its run."""
    outbox = Outbox(app, origin)
    return outbox.find(pages.ROOT, address)


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


def _chains(starts: Iterable[Start]) -> Iterable[pages.Chain]:
    for start in starts:
        if isinstance(start, Narrow):
            yield from _chains(start.starts)
        elif isinstance(start, tuple):
            yield start


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


def is_plain(tasks: Sequence[Signature]) -> bool:
    """Whether the first of *tasks* is not a ClutchTask, and so does not say that it begins."""
    return len(tasks) > 1 and tasks[1]["task"] == canvas.COLLECT


def _add_receipt(task: Signature, key: str) -> None:
    header = task.options["headers"][NAME]
    known = header.get("due", [])
    if key not in known:
        new = {**header, "due": [*known, key]}
        task.options["headers"] = {**task.options["headers"], NAME: new}
