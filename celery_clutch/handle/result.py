"""ClutchResult: the handle of a run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from itertools import chain
from typing import Any, NoReturn

from celery import current_app

from ..compile import canvas, compat, pages, publish, record, values
from ..compile.record import Tally
from ..errors import (
    ClutchCancelled,
    ClutchExpired,
    ClutchFailed,
    ClutchTimeout,
    CorruptRecord,
    GetInsideTask,
    MissingResult,
    RunNotFound,
)
from ..extend.plugins import runtime
from ..model import codec, graph, names, plan, shape
from ..model.reason import Reason
from ..model.status import Failure, Progress, State, Status, name_of
from ..runtime import engage, journal, workers
from ..runtime.advance import follow
from ..runtime.handlers import finished
from ..stores.base import ENDED, Missing, Record, ResultStore
from . import places, snapshot, tree, why

FEW = 1000
"""A run of more jobs is not looked through when `get` has waited in vain."""


class ClutchResult:
    """A run, looked at and steered from anywhere.

    Handles are cheap, hold no connection of their own, and compare by id.

    Args:
        id: the run's id, as in ``ClutchResult.id``.
        app: the Celery app; default: the current one.
    """

    def __init__(self, id: str, app: compat.App | None = None) -> None:
        self.id = id
        self.app: compat.App = app or current_app._get_current_object()
        self._begun: shape.Shape | None = None

    @classmethod
    def of_begun(cls, prepared: canvas.Prepared) -> ClutchResult:
        """The handle of a run that has just begun: the first `get` need not look whether it has
        ended, nor ask what its last step is."""
        handle = cls(prepared.run, prepared.app)
        handle._begun = prepared.meta.last
        return handle

    # --- looking --------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """RUNNING, SUCCEEDED, FAILED or CANCELLED; a string too.

        Raises:
            RunNotFound: never engaged, forgotten or expired. So do all the others below.
        """
        peeked = self._store.peek(self.id)
        if peeked is None:
            self._not_found()
        return peeked[0]

    def ready(self) -> bool:
        """Whether the run has ended, one way or another."""
        return self.state in ENDED

    def successful(self) -> bool:
        """Whether every job has a result."""
        return self.state is State.SUCCEEDED

    def failed(self) -> bool:
        """Whether a job has exhausted its retries."""
        return self.state is State.FAILED

    def status(self) -> Status:
        """What is known of the run; ``status().to_dict()`` is JSON-friendly.

        It has 20 failures at most, and counts all of them.
        """
        found = self._brief()
        draining = snapshot.draining(self._store, self.id, found.state)
        failures = self._store.failures(self.id) if found.failing or found.dead else ()
        skipped, tolerated = record.counted(self._store, found, record.Meta.loads(found.meta))
        return record.status(
            found, failures, draining=draining, skipped=skipped, tolerated=tolerated
        )

    def progress(self) -> Progress:
        """How many jobs are done, of how many, how fast, and how long the rest will take."""
        return record.status(self._brief()).progress

    def watch(self, timeout: float | None = None) -> Iterator[Status]:
        """Yield the status now and at every change, until the run has ended.

        Changes that follow one another closely are one. On Redis it waits for messages, elsewhere
        it looks at the store, at most twice a second.

        Args:
            timeout: seconds after which `ClutchTimeout` is raised; None watches for ever.
        """
        news = _News(timeout)
        with closing(self._store.watch(self.id)) as waiting:
            for changed in waiting:
                status = self.status() if changed else None
                if news.too_late(status):
                    raise self._timeout(timeout)
                if (status := news.of(status)) is not None:
                    yield status
                    if status.state in ENDED:
                        return

    async def awatch(self, timeout: float | None = None) -> AsyncIterator[Status]:
        """`watch` for asyncio: the event loop is not blocked."""
        news = _News(timeout)
        async with aclosing(self._store.watch_async(self.id)) as waiting:
            async for changed in waiting:
                status = await asyncio.to_thread(self.status) if changed else None
                if news.too_late(status):
                    raise await asyncio.to_thread(self._timeout, timeout)
                if (status := news.of(status)) is not None:
                    yield status
                    if status.state in ENDED:
                        return

    def failures(
        self, limit: int | None = None, offset: int = 0, *, tolerated: bool = False
    ) -> list[Failure]:
        """The latest failure of every job that is failing or dead, by address.

        Args:
            limit: how many at most; None for all.
            offset: how many to leave out before.
            tolerated: those instead that the run goes on without (``parallel(allow_failures=)`` and
                ``need=``), which do not count as dead.

        Raises:
            ValueError: a negative number.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"limit and offset must not be negative: {limit!r}, {offset!r}")
        most = None if limit is None else offset + limit
        if tolerated:
            return record.tolerated(self.record(), most)[offset:]
        self._brief()  # a run that is not there is said
        (tally,) = self._tallied(Tally(most))
        return tally.failures()[offset:]

    def get(self, timeout: float | None = None, propagate: bool = True) -> list[Any]:
        """Wait for the end and return the results of the last step, always a list.

        Args:
            timeout: seconds; None waits for ever.
            propagate: raise when the run has failed or was cancelled. If False, what is missing is
                None.

        Raises:
            ClutchTimeout: the run has not ended in time.
            ClutchFailed: a job is dead; ``failures`` says which. `ClutchExpired` if that is because
                it had not started by the clutch's deadline.
            ClutchCancelled: the run was cancelled.
            GetInsideTask: called in a task, where it would block the worker the run may need.
        """
        self._refuse_in_task()
        deadline = None if timeout is None else time.monotonic() + timeout
        last, self._begun = self._begun, None
        outline = self._store.outline(self.id) if last is None else (State.RUNNING, b"")
        while outline is not None and outline[0] not in ENDED:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            state = self._store.wait(self.id, left)
            if state is State.SUCCEEDED and last is not None:
                return values.last(self._store, self.id, last)
            outline = self._store.outline(self.id)
            if state not in ENDED:
                break
            # A run that has ended may have been resumed since.
        return self._ended(outline, timeout, propagate)

    def ended(self) -> list[Any]:
        """The results of a run that has ended; raises what `get` raises."""
        return self._ended(self._store.outline(self.id), 0.0, True)

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> list[Any]:
        """`get` for asyncio: the event loop is not blocked while waiting."""
        self._refuse_in_task()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            state = await self._store.wait_async(self.id, left)
            outline = await asyncio.to_thread(self._store.outline, self.id)
            if outline is None or outline[0] in ENDED or state not in ENDED:
                break
        return await asyncio.to_thread(self._ended, outline, timeout, propagate)

    def results(self, address: str | None = None) -> Any:
        """The result at *address*, which may be the name of a step, too; of the last step, as a
        list, without one.

        That of a job is its value, that of a parallel the list of its branches' values, that of a
        series (and of a branch) the value of its last step.

        Raises:
            MissingResult: it is not there yet, its job is dead, or the store has lost it; the
                message says which.
            UnknownAddress: the plan has no such address, or (UnknownName) no step this name.
        """
        found = self.record()
        try:
            if address is None:
                return values.last(self._store, self.id, record.Meta.loads(found.meta).last)
            wanted = self._shape_of(address)
            wanted = values.Decisions(self._store, self.id).resolve(wanted)
            (value,) = values.read(self._store, self.id, [wanted])
        except MissingResult as exc:
            if self._is_skipped(found, exc.address):
                raise values.skipped(self.id, exc.address) from None
            raise
        return value

    def _is_skipped(self, found: Record, address: str) -> bool:
        """Whether the job at *address* will not run, though the run goes on or has failed for
        another reason; False for a run that is too large to look."""
        if found.jobs > FEW:
            return False
        shown = tree.of(self._store, self.plan(), found)
        return any(node.address == address and node.state == "skipped" for node in shown.walk())

    def _shape_of(self, step: str) -> shape.Shape:
        """The shape of the step with this address or name."""
        if not isinstance(step, str) or names.is_address(step):
            decisions = values.Decisions(self._store, self.id)
            return places.shape_at(self.plan(), step, decisions)
        known = canvas.load_names(self._store, self.id)
        if step not in known:
            hint = ", and an address is a string such as '0' or '1.2'"
            raise names.unknown(step, known, hint)
        return known[step].shape

    def plan(self) -> plan.Series:
        """The plan the run was engaged with."""
        data = self._store.page(self.id, canvas.PLAN)
        if data is Missing:
            self._not_found()
        node = plan.loads(pages.decompress(data))
        if not isinstance(node, plan.Series):
            raise CorruptRecord(f"the plan of run {self.id} is not a series")
        return node

    def data(self) -> dict[str, Any]:
        """The data that the jobs of the run share, as the last job to complete has left it."""
        found = self._store.data(self.id)
        if found is None:
            self._not_found()
        return {key: codec.decode_result(value) for key, value in found.items()}

    def why(self, ask: bool = False, timeout: float = 1.0) -> list[Reason]:
        """Why the run does not go on, as facts; what keeps it from going on comes first.

        Each is a sentence (``str()`` of it) and what it is about: which job runs, where and since
        when, whose lease ran out, which retry is due at what time, which messages are due and not
        known to be sent; also for the runs nested in it.

        Args:
            ask: ask the workers, too: which queue nobody consumes, which task no worker knows,
                which worker has another result store, and how many messages lie in the queues.
            timeout: seconds that they have to answer. All of them are waited for.
        """
        self.state  # noqa: B018 - a run that is not there is said before workers are waited for
        with publish.quietly(self.app):
            asked = workers.ask(self.app, timeout) if ask else None
        return why.reasons(snapshot.take(self.app, self.id, asked))

    # --- steering -------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Let no further job start, nested runs included; those that run now finish.

        Returns whether the run was RUNNING or FAILED before. ``resume`` takes it up again.
        """
        found = self.record()
        sources = (State.RUNNING, State.FAILED)
        moved = self._store.transition(self.id, sources, State.CANCELLED, found.generation)
        # A job may have begun to wait for others meanwhile; from here on none does.
        after = self._store.read(self.id)
        for nested in _waited_for(after):
            if self._store.peek(nested):
                ClutchResult(nested, self.app).cancel()
        if moved:
            finished(self.app, self.id, State.CANCELLED)
            origin = record.Meta.loads(found.meta).origin(self.id, found.generation)
            due = after.due if after else ()
            follow(self.app, origin, [key for key in due if key.startswith("end ")], {})
        return moved

    def resume(self, *, retry_tolerated: bool = False) -> bool:
        """Run again what has no result; what has one is not run again.

        With *retry_tolerated*, branches whose death was tolerated run again, too, where what
        follows them has not started.

        For a run that failed, was cancelled, or whose messages were lost. Messages of the run so
        far are dropped when they arrive, so calling this twice is harmless. A nested run is resumed
        through the job that waits for it. Returns whether there was anything to resume.
        """
        found = self.record()
        parent = record.Meta.loads(found.meta).parent
        if parent and self._store.peek(parent.header["run"]):
            above = ClutchResult(parent.header["run"], self.app)
            return above.resume(retry_tolerated=retry_tolerated)
        return engage.resume(self.app, self.id, retry_tolerated=retry_tolerated)

    def forget(self) -> bool:
        """Delete the run, and those nested in it. What still runs of it is dropped.

        Returns whether there was one.
        """
        found = self._store.read(self.id)
        if found is not None and found.state not in ENDED:
            meta = record.Meta.loads(found.meta)
            if meta.parent or meta.scope("").on_end:
                self.cancel()  # the job that waits for it is told, and on_end sent
            else:
                sources = (State.RUNNING, State.FAILED)
                self._store.transition(self.id, sources, State.CANCELLED, found.generation)
            found = self._store.read(self.id)  # from here on no job begins to wait for others
        ended = (record.nested(each.info) for each in self._store.executions(self.id).values())
        for nested in (*_waited_for(found), *chain.from_iterable(ended)):
            ClutchResult(nested, self.app).forget()
        deleted = self._store.delete(self.id)
        if deleted:
            journal.forgotten(self.id)
        return deleted

    # --- private --------------------------------------------------------------------------

    @property
    def _store(self) -> ResultStore:
        return runtime(self.app).store

    def record(self) -> Record:
        """What the store keeps of the run beside pages and results."""
        found = self._store.read(self.id)
        if found is None:
            self._not_found()
        return found

    def _brief(self) -> Record:
        """`record` without failures, checkpoints, and what is due."""
        found = self._store.brief(self.id)
        if found is None:
            self._not_found()
        return found

    def _not_found(self) -> NoReturn:
        raise RunNotFound(
            f"there is no run {self.id!r} in {self._store!r}: it was never engaged, was forgotten, "
            "or has expired (clutch_ttl, clutch_result_ttl, clutch_failed_ttl)"
        )

    def _refuse_in_task(self) -> None:
        if compat.inside_task():
            raise GetInsideTask(
                "waiting for a run inside a task blocks the worker that the run may need. Nest it "
                "(Clutch(parent=self)) or put what comes after it into the clutch."
            )

    def _ended(
        self, outline: tuple[State, bytes] | None, timeout: float | None, propagate: bool
    ) -> list[Any]:
        if outline is None:
            self._not_found()
        state, meta = outline
        if state not in ENDED:
            raise self._timeout(timeout)
        if state is State.SUCCEEDED or not propagate:
            last = record.Meta.loads(meta).last
            return values.last(self._store, self.id, last, whole=state is State.SUCCEEDED)
        if state is State.CANCELLED:
            raise ClutchCancelled(f"run {self.id} was cancelled")
        every, dead = self._tallied(Tally(), Tally(3, final=True))
        first = dead.failures()
        told = "; ".join(f"{f.task} at {f.address}: {f.exception}: {f.message}" for f in first)
        more = f" and {dead.count - len(first):,} more" if dead.count > len(first) else ""
        late = {*dead.exceptions} == {name_of(ClutchExpired)}
        kind = ClutchExpired if late else ClutchFailed
        raise kind(f"run {self.id} has failed: {told}{more}", every.failures(), every.count)

    def _tallied(self, *tallies: Tally) -> Sequence[Tally]:
        """*tallies* with every failure of the run added."""
        for failure in self._store.failures(self.id):
            for tally in tallies:
                tally.add(*failure)
        return tallies

    def _timeout(self, timeout: float | None) -> ClutchTimeout:
        """What is raised when the run has not ended in time: it says why, if that is known."""
        message = f"run {self.id} has not ended within {timeout} seconds"
        try:
            found = why.reasons(snapshot.take(self.app, self.id, most=FEW))
        except Exception:  # forgotten just now, or the store is away: the timeout is what matters
            return ClutchTimeout(message)
        return ClutchTimeout(f"{message}: {why.short(found)}", found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClutchResult) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<ClutchResult {self.id}>"

    def _repr_html_(self) -> str:
        """The run drawn, with the state of every job, for notebooks."""
        found = self.record()
        drawn = tree.of(self._store, self.plan(), found)
        title = f"{drawn.status.name or 'run'} {self.id} {found.state}"
        return graph.html(drawn.plan, title, drawn.states())


class _News:
    """Lets a status through that differs from the one before."""

    def __init__(self, timeout: float | None) -> None:
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.last: Status | None = None

    def too_late(self, status: Status | None) -> bool:
        """Whether the time is over, and the run, whose latest status is given, is not."""
        ended = status is not None and status.state in ENDED
        return not ended and time.monotonic() > self.deadline

    def of(self, status: Status | None) -> Status | None:
        """*status*, the latest, if it is news; None stands for the one before."""
        if status is None or status == self.last:
            return None
        self.last = status
        return status


def _waited_for(found: Record | None) -> list[str]:
    """The runs that jobs of a run wait for; none of a run that is gone."""
    return [*chain.from_iterable(record.held_runs(found).values())] if found else []
