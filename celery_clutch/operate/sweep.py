"""Find what was lost, and send it again.

The store knows what is due and has not begun, and whose owners have died; a run without an event
for the grace period has perhaps lost a message that had arrived. All of that is sent again, in the
same generation, and waits twice as long each time: a copy is harmless, so nothing needs guessing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

import orjson
from celery import Celery, shared_task

from ..compile import pages, record
from ..compile.compat import App
from ..compile.header import Header, job_due
from ..extend.plugins import runtime
from ..handle import tree
from ..handle.result import ClutchResult
from ..model.plan import EACH
from ..model.status import State
from ..runtime import advance
from ..runtime.attempt import too_late
from ..runtime.handlers import describe
from ..runtime.internal import InternalTask
from ..runtime.outbox import Outbox, is_plain
from ..stores.base import Due, Lease, Record, ResultStore, Summary, every

logger = logging.getLogger(__name__)

LOOK = "look"
"""What is due to a run in which nothing happens: that its plan is looked through for what is left.
It is recorded only to wait twice as long the next time."""


def sweep(app: App, *, grace: float | None = None, silent_for: float | None = None) -> list[str]:
    """Send again what was lost; the ids of the runs it was lost from.

    Nothing that has a result runs again, what has a time to begin at is left alone until then, and
    what is under way is not disturbed. What was sent again waits twice as long the next time,
    because it may only be far back in a queue. Runs past their deadline (``Clutch(expires=)``)
    that nobody has started are failed.

    Args:
        app: the Celery app.
        grace: seconds for which something is due, or a run is without an event, before it is looked
            at; default ``clutch_grace``.
        silent_for: also resume every run that is RUNNING and has had no event for so many seconds,
            for what no lease can see: tasks that are not a ClutchTask. A job that runs for
            longer than that is run twice.
    """
    own = runtime(app)
    wait = own.settings.grace if grace is None else grace
    owners = own.store.owners()
    alive = {owner for owner, left in owners.items() if left > 0}
    lapsed = owners.keys() - alive
    found: list[str] = []
    for summary in every(own.store.unfinished):
        try:
            quiet = time.time() - summary.updated_at
            silent = silent_for is not None and quiet >= silent_for
            if silent and summary.state is State.RUNNING:
                sent = ClutchResult(summary.run, app).resume()
            else:
                sent = _Look(app, summary, alive, bool(lapsed), wait).sweep()
            if sent:
                found.append(summary.run)
        except Exception:  # one run never stops the sweep for the others
            logger.exception("run %s could not be swept", summary.run)
    if lapsed:
        own.store.retire(sorted(lapsed))
    return found


@shared_task(name="celery_clutch.sweep", base=InternalTask, bind=True)
def sweep_task(
    self: InternalTask, grace: float | None = None, silent_for: float | None = None
) -> list[str]:
    """`sweep`, for beat."""
    return sweep(self.app, grace=grace, silent_for=silent_for)


@shared_task(name="celery_clutch.prune", base=InternalTask, bind=True)
def prune(self: InternalTask, limit: int = 1000) -> int:
    """Delete the expired runs of a store whose server does not do so; how many. For beat."""
    return prune_all(runtime(self.app).store, limit)


def prune_all(store: ResultStore, limit: int = 1000) -> int:
    """Delete the expired runs of *store*, *limit* of them at a time; how many."""
    total = 0
    while deleted := store.prune(limit):
        total += deleted
    return total


class _Look:
    """One run, as the sweep sees it. What is large is read only where it is needed."""

    def __init__(
        self, app: Celery, summary: Summary, alive: Collection[str], lapsed: bool, grace: float
    ) -> None:
        self.app = app
        self.store = runtime(app).store
        self.summary = summary
        self.run = summary.run
        self.alive = alive
        self.lapsed = lapsed
        self.grace = grace
        self.now = time.time()

    @cached_property
    def leases(self) -> dict[str, Lease]:
        return self.store.leases(self.run)

    @cached_property
    def found(self) -> Record | None:
        return self.store.read(self.run)

    def sweep(self) -> bool:
        """Send again what is overdue; whether there was anything."""
        quiet = self.now - self.summary.updated_at >= self.grace
        if not (self.lapsed or self.summary.due or quiet):
            return False
        if self.lapsed and self.summary.state is not State.CANCELLED:
            self._free()
        found = self.found
        if found is None:
            return False
        if quiet and found.state is State.RUNNING and self._expire(found):
            return True
        overdue = [key for key, due in found.due.items() if key != LOOK and self._is_over(due)]
        if overdue:
            self._send(found, overdue)
            return True
        if found.state is not State.RUNNING or not quiet or self._waits(found):
            return False
        return self._look(found)

    def _free(self) -> None:
        """What a process had that has died is due at once."""
        dead = {
            job_due(lease.page, address): 0.0
            for address, lease in self.leases.items()
            if lease.owner not in self.alive
        }
        if dead:
            self.store.remind(self.run, dead)

    def _is_over(self, due: Due) -> bool:
        wait: float = self.grace * 2 ** min(due.tries, 10)
        return self.now >= due.since + wait

    def _waits(self, found: Record) -> bool:
        """Whether the run waits for something that is to begin later, or has been looked through
        since its last event."""
        look = found.due.get(LOOK)
        if look is not None and look.since > found.updated_at:
            return not self._is_over(look)
        return any(due.since > self.now for due in found.due.values())

    def _send(self, found: Record, overdue: list[str]) -> None:
        """Send what is due, again."""
        logger.warning("run %s has lost something, which is sent again: %s", self.run, overdue)
        self.store.tried(self.run, overdue)
        advance.deliver(self._outbox(found, self._busy()), overdue)

    def _look(self, found: Record) -> bool:
        """Look through the plan for jobs that should be under way and are not."""
        if found.due.get(LOOK) is None:
            self.store.remind(self.run, {LOOK: self.now})
        else:
            self.store.tried(self.run, [LOOK])
        waiting = {*self._busy(), *found.held, *record.due_jobs(found)}
        outbox = self._outbox(found, waiting)
        outbox.rest(pages.ROOT)
        outbox.chains = [tasks for tasks in outbox.chains if not is_plain(tasks)]
        held = [address for address in found.held if address not in self.leases]
        for address in held:
            self._recover(found, address)
        if not outbox.chains:
            return False
        logger.warning("run %s has lost a message, which is sent again", self.run)
        outbox.send()
        return True

    def _recover(self, found: Record, address: str) -> None:
        """A job waits for nested runs: one that is gone will never report."""
        held = record.Held.loads(found.held[address])
        if held.replaced:
            return
        for nested in held.runs:
            if self.store.peek(nested) is None:
                header = advance.header_of(self.app, self._origin(found), address)
                advance.wait_for_nested(self.app, header, found.held[address])
                return

    def _busy(self) -> set[str]:
        return {at for at, lease in self.leases.items() if lease.owner in self.alive}

    def _origin(self, found: Record) -> Header:
        return record.Meta.loads(found.meta).origin(self.run, found.generation)

    def _outbox(self, found: Record, skip: Collection[str]) -> Outbox:
        """For what is left of the run; the jobs *skip* need no message now."""
        attempts: dict[str, int] = {}
        dead: set[str] = set()
        for address, data in found.failures.items():
            failure = orjson.loads(data)
            attempts[address] = int(failure["attempt"])
            if failure["final"] and address not in found.finished:
                dead.add(address)
        return advance.outbox_of(self.app, self._origin(found), skip, dead, attempts)

    def _expire(self, found: Record) -> bool:
        """Fail a run past its deadline, in the name of its first job that has not begun."""
        meta = record.Meta.loads(found.meta)
        if not 0 < meta.expires < self.now:
            return False
        handle = ClutchResult(self.run, self.app)
        drawn = tree.of(self.store, handle.plan(), found)
        for node in drawn.walk():
            if node.kind == "job" and node.state == "waiting":
                if EACH in node.address:
                    return False  # its map has not begun: what begins it is sent again
                origin = meta.origin(self.run, found.generation)
                header = advance.header_of(self.app, origin, node.address)
                failure = describe(too_late(header), node.address, node.task, None)
                token = os.urandom(8).hex()
                advance.fail(self.app, header, replace(failure, final=True), token)
                return True
        return False
