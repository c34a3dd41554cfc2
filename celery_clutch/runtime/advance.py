"""The only way on: what is due is loaded, and what is left of it is sent.

Engage, a barrier that opens, the next branch of a narrow parallel, the end of a nested run, resume,
the sweep and a message that came again all come here. The store says what is due; sending it twice
is harmless, because `ResultStore.begin` gives a job to one owner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from celery import Celery
from celery.canvas import Signature

from .. import signals
from ..compile import canvas, pages, publish, record
from ..compile.header import NAME, Header, job_due
from ..compile.pages import Mapped, is_header
from ..errors import CorruptRecord, MissingResult, NestedClutchFailed, NoSuchChoice, NotAList
from ..extend import observers
from ..extend.plugins import Runtime, runtime
from ..model import codec
from ..model.absent import Failed
from ..model.events import JobFinished
from ..model.names import cut
from ..model.status import Failure, State
from ..stores.base import (
    NOTHING,
    Attempted,
    Completed,
    Completion,
    Record,
)
from . import handlers, journal
from .outbox import Outbox, is_plain

logger = logging.getLogger(__name__)

LISTED = 10
"""How many options an error has at most."""
LONGEST = 80
"""How many characters of each, and of what was decided."""

UNREADABLE = (MissingResult, NotAList, CorruptRecord)
"""What is raised where a run cannot go on from a page; `unreadable` lets it fail of that."""


def outbox_of(
    app: Celery,
    origin: Header,
    skip: Collection[str] = (),
    dead: Collection[str] = (),
    attempts: Mapping[str, int] = NOTHING,
    grown: bool = True,
) -> Outbox:
    """An outbox of a run; see `Outbox`."""
    return Outbox(app, origin, partial(_decide, app, origin), skip, dead, attempts, grown)


def _decide(app: Celery, origin: Header, start: Mapped, width: int) -> None:
    """A map has so many branches, from now on."""
    done = Completion(
        run=origin.run,
        address=start.at,
        generation=origin.generation,
        value=b"%d" % width,
        token=f"map {start.at}",
        barriers=() if width else start.barriers,
        jobs=width * start.size - 1,
        counts=0,
    )
    complete(runtime(app), replace(origin, at=start.at), done, None)


# --- what is due ------------------------------------------------------------------------------


def follow(
    app: Celery,
    origin: Header,
    due: Sequence[str],
    found: Mapping[str, bytes],
    behind: canvas.Tasks | None = None,
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
        behind: the tasks that are behind the job in its message.
        grown: branches may have been added.
    """
    if not due:
        return
    eager = app.conf.task_always_eager
    try:
        outbox = outbox_of(app, origin, grown=grown)
        fresh = not origin.generation
        deliver(outbox, due, found, None if eager else behind, fresh=fresh)
    except Exception:
        if eager:
            raise
        logger.exception("what follows in run %s is due, but could not be sent now", origin.run)


def deliver(
    outbox: Outbox,
    due: Sequence[str],
    found: Mapping[str, bytes] = NOTHING,
    behind: canvas.Tasks | None = None,
    *,
    fresh: bool = False,
) -> None:
    """Send what is due, messages together and first.

    Args:
        outbox: of the run.
        due: the keys.
        found: pages among them.
        behind: as for `follow`.
        fresh: nothing of the pages has begun, so that nobody need ask what is left of them.
    """
    told: list[str] = []
    for key in due:
        kind, _, rest = key.partition(" ")
        try:
            if kind == "page" and fresh:
                outbox.page(rest, found.get(rest))
            elif kind == "page":
                outbox.rest(rest, found.get(rest))
            elif kind != "job":
                told.append(key)
            elif behind and _is_due(behind[0], outbox.generation, key):
                outbox.following(key, behind)
            else:
                page, _, address = rest.partition(" ")
                outbox.job(page, address)
        except UNREADABLE as exc:
            unreadable(outbox.app, outbox.compiler.origin, key, exc)
    outbox.send()
    told.sort(key=_order)
    for key in told:
        tell(outbox.app, outbox.run, key)
    if told:
        outbox.store.patiently(outbox.store.published, outbox.run, told)


def _order(key: str) -> int:
    """A failure is told before the death that it is."""
    return int(not key.startswith("failure "))


def _is_due(task: Signature, generation: int, key: str) -> bool:
    """Whether *key* is that of the job of *task*, and of this generation."""
    header = (task.options.get("headers") or {}).get(NAME) or {}
    due = job_due(header.get("page", ""), header.get("at", ""))
    return bool(due == key and header["gen"] == generation)


def unreadable(app: Celery, origin: Header, key: str, exc: Exception) -> None:
    """A page is gone, or is not what was stored: the run cannot go on. *key* is what was due, and
    is not any more: sent again, it would fail again."""
    what = f"page {key.partition(' ')[2]}"
    address = getattr(exc, "address", "") or what
    failure = handlers.describe(exc, address, canvas.ADVANCE, None)
    failure = replace(failure, final=True)
    fail(app, replace(origin, at=address), failure, what)
    runtime(app).store.patiently(runtime(app).store.published, origin.run, [key])


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
    behind = _behind(own, header, chain) if chain and done.next else None
    if behind:
        done = replace(done, message=_message(own, done, behind))
    answer = own.store.patiently(own.store.complete, done)
    if answer.fresh and event is not None:
        observers.emit(own, signals.clutch_job_finished, event)
    for step in answer.settled:
        if not is_header(step):
            handlers.settled(app, header, step, failed=f"failure {step}" in answer.due)
    if answer.succeeded:
        handlers.finished(app, header.run, State.SUCCEEDED)
    if answer.due:
        origin = replace(header.origin, generation=answer.generation)
        follow(app, origin, answer.due, answer.pages, behind, grown=answer.unusual)
    return answer


def _behind(own: Runtime, header: Header, chain: Sequence[Any]) -> canvas.Tasks | None:
    """The tasks that are behind the job of *header* in its message; None if they cannot be read,
    and the pages of the run have to say."""
    try:
        return canvas.carried(own.app, header, chain)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        logger.debug("what follows in run %s is read from the store", header.run, exc_info=True)
        return None


def _message(own: Runtime, done: Completion, behind: canvas.Tasks) -> tuple[str, bytes] | None:
    """The message of what is behind a job in its own, for a store that can send it at once.

    Observers are told first that the job has finished.
    """
    if observers.heard(own, signals.clutch_job_finished) or is_plain(behind):
        return None
    if done.next is None or not _is_due(behind[0], done.generation, done.next[0]):
        return None
    try:
        return publish.made(own, behind)
    except Exception:
        logger.debug("what follows in run %s is sent as usual", done.run, exc_info=True)
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
        outbox = outbox_of(app, origin)
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
        options = header.choices.options
        keys = ", ".join(cut(str(option.key), LONGEST) for option in options[:LISTED])
        more = f" and {len(options) - LISTED:,} more" if len(options) > LISTED else ""
        raise NoSuchChoice(
            f"job {header.at} has decided for {cut(repr(value), LONGEST)}, which is no option, and "
            f"there is no default; the options are {keys}{more}"
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
    outbox = outbox_of(app, origin)
    return outbox.find(pages.ROOT, address)
