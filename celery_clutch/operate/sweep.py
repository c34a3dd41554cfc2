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
from functools import cached_property
from itertools import pairwise

from celery import Celery, shared_task

from ..compile import record
from ..errors import ClutchError, RunNotFound
from ..extend.plugins import runtime
from ..handle import tree
from ..handle.result import ClutchResult
from ..model import plan
from ..model.plan import Job, Parallel
from ..model.status import State
from ..runtime.attempt import nested_succeeded, too_late
from ..runtime.handlers import describe, fail
from ..runtime.internal import InternalTask
from ..stores.base import Execution, Record, ResultStore, listed

logger = logging.getLogger(__name__)


def sweep(app: Celery, *, grace: float | None = None, silent_for: float | None = None) -> list[str]:
    """Resume every run that has lost a message; their ids.

    Nothing that has a result runs again, and what is under way is not disturbed: a run is resumed
    if nothing in it has begun without an outcome, and no task that is not a ClutchTask, which does
    not say that it begins, is next. The next time the same run has to be longer without an event,
    twice as long each time, because its messages may only be far back in a queue.
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
    running = listed(runtime(app).store, state=State.RUNNING)
    for run in [summary.run for summary in running]:
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
    return prune_all(runtime(self.app).store, limit)


def prune_all(store: ResultStore, limit: int = 1000) -> int:
    """Delete the expired runs of *store*, *limit* of them at a time; how many."""
    total = 0
    while deleted := store.prune(limit):
        total += deleted
    return total


@dataclass
class _Look:
    """One run, as the sweep sees it. What is large is read only where it is needed."""

    app: Celery
    found: Record
    meta: record.Meta
    nested: list[_Look]

    @cached_property
    def executions(self) -> Mapping[str, Execution]:
        return runtime(self.app).store.executions(self.found.run)

    @cached_property
    def tree(self) -> tree.Tree:
        handle = ClutchResult(self.found.run, self.app)
        return tree.build(handle.plan(), self.found, self.executions)

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
    for runs in record.held_runs(found).values():
        for run in runs:
            with suppress(RunNotFound):
                nested.append(_look(app, ClutchResult(run, app)))
    return _Look(app, found, record.Meta.loads(found.meta), nested)


def _is_broken(app: Celery, look: _Look) -> bool:
    """Whether an idle run lacks a message that the store knows should have been."""
    store = runtime(app).store
    for held in map(record.Held.loads, look.found.held.values()):
        if held.runs and nested_succeeded(store, held):
            return True  # what completes the job that nested them
    search = _Search()
    search.through(look.tree.plan, look.tree.root, ready=True)
    return (search.gap and not search.unknown) or _done(look.tree.root)


@dataclass(slots=True)
class _Search:
    """Looks for steps that have not begun though all before them is done.

    Attributes:
        gap: there is one.
        unknown: a task that is not a ClutchTask may be under way: those do not say that they begin.
    """

    gap: bool = False
    unknown: bool = False

    def through(self, node: plan.Node, drawn: tree.Node, *, ready: bool) -> None:
        """*ready* says that everything before *node* is done."""
        if isinstance(node, Job):
            self.unknown |= ready and node.plain and drawn.state == "waiting"
            return
        before = True
        for child, below in zip(plan.children(node), drawn.below, strict=True):
            self.through(child, below, ready=ready and before)
            before = isinstance(node, Parallel) or (before and _done(below))
        if isinstance(node, Parallel):
            # The lanes of a narrow parallel are never all idle before its end.
            done = [*map(_done, drawn.below)]
            self.gap |= node.limit is not None and any(done) and not all(done)
        else:
            for one, following in pairwise(drawn.below):
                self.gap |= _done(one) and following.states.keys() == {"waiting"}


def _done(node: tree.Node) -> bool:
    return node.states.keys() == {"done"}


def _expire(app: Celery, look: _Look) -> None:
    """Fail a run past its deadline, in the name of its first job that has not begun."""
    found = look.found
    for node in look.tree.walk():
        if node.kind == "job" and node.state == "waiting":
            header = look.meta.origin(found.run, found.generation).elsewhere(
                node.address, node.address
            )
            failure = describe(too_late(header), node.address, node.task, None)
            fail(app, header, replace(failure, final=True), os.urandom(8).hex())
            return
