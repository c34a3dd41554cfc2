"""Find runs that have lost a message, and take them up again.

The store shows what the broker has lost: a step whose members all have results, while nothing of
the next has begun and nothing else of the run is under way.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from celery import Celery, shared_task

from . import plan, record
from .attempt import too_late
from .errors import ClutchError, RunNotFound
from .notify import describe, fail
from .plan import Job, Node, Parallel
from .plugins import runtime
from .result import ClutchResult, held_runs
from .status import State
from .stores.base import Execution, Record
from .tasks import InternalTask

logger = logging.getLogger(__name__)


def sweep(app: Celery, *, grace: float | None = None, silent_for: float | None = None) -> list[str]:
    """Resume every run that has lost a message; their ids.

    Nothing that has a result runs again, and what is under way is not disturbed: a run is resumed
    if nothing in it has begun without an outcome. The next time the same run has to be longer
    without an event, twice as long each time, because its messages may only be far back in a queue.
    Runs past their deadline (``Clutch(expires=)``) that nobody has started are failed.

    Args:
        app: the Celery app.
        grace: seconds without an event before a run is looked at; default ``clutch_grace``.
        silent_for: also resume every run that is RUNNING and has had no event for so many seconds,
            whether or not something seems to be under way: a lost queue, a worker killed in a job.
            A job that runs for longer than that is run twice.
    """
    wait = runtime(app).settings.grace if grace is None else grace
    seen: set[str] = set()
    resumed: list[str] = []
    for run in list(_running(app)):
        try:
            root = _root(app, run)
            if root.id not in seen:
                seen.add(root.id)
                if _sweep_one(app, root, wait, silent_for):
                    resumed.append(root.id)
        except RunNotFound:
            pass  # it has expired meanwhile
        except ClutchError:
            logger.exception("run %s could not be swept", run)
    return resumed


@shared_task(name="celery_clutch.sweep", base=InternalTask, bind=True)
def sweep_task(
    self: InternalTask, grace: float | None = None, silent_for: float | None = None
) -> list[str]:
    """`sweep`, for beat."""
    return sweep(self.app, grace=grace, silent_for=silent_for)


@shared_task(name="celery_clutch.prune", base=InternalTask, bind=True)
def prune(self: InternalTask, limit: int = 1000) -> int:
    """Delete the expired runs of a store whose server does not do so; how many. For beat."""
    store, total = runtime(self.app).store, 0
    while deleted := store.prune(limit):
        total += deleted
    return total


@dataclass(slots=True)
class _Look:
    """One run, as the sweep sees it."""

    found: Record
    meta: record.Meta
    executions: Mapping[str, Execution]
    nested: list[_Look]

    def family(self) -> Iterator[_Look]:
        yield self
        for each in self.nested:
            yield from each.family()

    @property
    def idle(self) -> bool:
        """Whether no job has begun without an outcome, and none waits for its retry."""
        begun = {at for at, each in self.executions.items() if each.starts and " " not in at}
        return not self.found.failing and begun <= set(self.found.held)


def _sweep_one(app: Celery, root: ClutchResult, grace: float, silent_for: float | None) -> bool:
    look = _look(app, root)
    members = [each for each in look.family() if each.found.state is State.RUNNING]
    quiet = time.time() - max((each.found.updated_at for each in members), default=time.time())
    if silent_for is not None and members and quiet >= silent_for:
        return root.resume()
    if quiet < grace * 2 ** min(look.found.generation, 10) or not all(m.idle for m in members):
        return False
    late = [each for each in members if 0 < each.meta.expires < time.time()]
    for each in late:
        _expire(app, each)
    if late or not any(_is_broken(app, each) for each in members):
        return False
    logger.warning("run %s has lost a message, and is resumed", root.id)
    return root.resume()


def _running(app: Celery) -> Iterator[str]:
    cursor, more = "", True
    while more:
        page, cursor = runtime(app).store.scan(cursor, 500, state=State.RUNNING)
        yield from (summary.run for summary in page)
        more = bool(cursor)


def _root(app: Celery, run: str) -> ClutchResult:
    """The run that *run* is nested in, however deep, as long as it waits for it."""
    while True:
        handle = ClutchResult(run, app)
        parent = record.Meta.loads(handle.record().meta).parent
        if parent is None or runtime(app).store.peek(parent.header["run"]) is None:
            return handle
        run = parent.header["run"]


def _look(app: Celery, handle: ClutchResult) -> _Look:
    found = handle.record()
    nested = []
    for run in held_runs(found):
        with suppress(RunNotFound):
            nested.append(_look(app, ClutchResult(run, app)))
    executions = runtime(app).store.executions(handle.id)
    return _Look(found, record.Meta.loads(found.meta), executions, nested)


def _is_broken(app: Celery, look: _Look) -> bool:
    """Whether an idle run lacks a message that the store knows should have been."""
    for held in look.found.held.values():
        runs = record.Held.loads(held).runs
        if runs and all(_state(app, run) is State.SUCCEEDED for run in runs):
            return True  # what completes the job that nested them
    handle = ClutchResult(look.found.run, app)
    counts = _Counts(look.executions)
    total = counts.of(handle.plan(), "")
    return counts.gap or total.done == total.jobs


def _state(app: Celery, run: str) -> State | None:
    peeked = runtime(app).store.peek(run)
    return peeked[0] if peeked else None


@dataclass(slots=True)
class _Count:
    jobs: int = 0
    done: int = 0
    begun: int = 0


class _Counts:
    """Counts what is done and begun in every part of a plan, and finds gaps between steps."""

    def __init__(self, executions: Mapping[str, Execution]) -> None:
        self.executions = executions
        self.gap = False

    def of(self, node: Node, at: str) -> _Count:
        if isinstance(node, Job):
            known = self.executions.get(at)
            done = known is not None and known.info is not None
            return _Count(1, int(done), int(known is not None))
        below = plan.children(node)
        counts = [self.of(child, plan.join(at, index)) for index, child in enumerate(below)]
        total = _Count(*(sum(column) for column in zip(*map(_columns, counts), strict=True)))
        if isinstance(node, Parallel):
            # The lanes of a narrow parallel are never all idle before its end.
            self.gap |= node.limit is not None and 0 < total.done < total.jobs
        else:
            for before, after in pairwise(counts):
                self.gap |= before.done == before.jobs and not after.begun
        return total


def _columns(count: _Count) -> tuple[int, int, int]:
    return count.jobs, count.done, count.begun


def _expire(app: Celery, look: _Look) -> None:
    """Fail a run past its deadline, in the name of its first job without a result."""
    found = look.found
    for at, node in plan.walk(ClutchResult(found.run, app).plan()):
        if isinstance(node, Job) and at not in look.executions and at not in found.held:
            header = look.meta.origin(found.run, found.generation).elsewhere(at, at)
            failure = replace(describe(too_late(header), at, node.task, None), final=True)
            fail(app, header, failure, os.urandom(8).hex())
            return
