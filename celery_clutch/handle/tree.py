"""A run as a tree: the state of every job of its plan. Pure.

No values are read, so that a run of 100,000 jobs can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..compile import record
from ..model import names, plan
from ..model.graph import kind_of, option_labels, overall
from ..model.plan import Choose, Job, Map, Parallel, Series, is_tolerant
from ..model.shape import addresses, is_open, is_parallel, option_of
from ..model.status import Failure, State, Status
from ..model.unfold import unfold
from ..stores.base import Execution, Record, ResultStore
from . import decided
from .deaths import Deaths
from .decided import NOTHING, Decided
from .node import NEVER, ONE, total
from .node import Node as Node
from .node import Tree as Tree
from .words import duration as duration


def build(
    root: Series,
    found: Record,
    executions: Mapping[str, Execution],
    nested: Mapping[str, Sequence[Tree]] | None = None,
    known: Decided = NOTHING,
    skipped: int = 0,
) -> Tree:
    """The tree of a run, from what the store says of it.

    Args:
        root: its plan.
        found: its record.
        executions: of its jobs, by address.
        nested: as in `record.held_runs`.
        known: what was decided in it.
        skipped: how many of its jobs will not run.
    """
    draining = 0
    if found.state in (State.FAILED, State.CANCELLED):
        leases = [each.lease for each in executions.values() if each.lease is not None]
        draining = sum(not lease.released for lease in leases)
    tolerated = len(found.tolerated)
    status = record.status(
        found, limit=None, draining=draining, skipped=skipped, tolerated=tolerated
    )
    now = unfold(root, known.widths, known.added)
    assert isinstance(now, Series)
    builder = _Builder(found, status, executions, nested or {}, known)
    return Tree(status, now, builder.node("", now, found.created_at)[0])


def of(
    store: ResultStore,
    root: Series,
    found: Record,
    executions: Mapping[str, Execution] | None = None,
    nested: Mapping[str, Sequence[Tree]] | None = None,
) -> Tree:
    """The tree of the run *found*, with what is read of it beside its record; *executions*, if
    given, and *nested* as for `build`."""
    if executions is None:
        executions = store.executions(found.run)
    known = decided.read(store, root, found, executions)
    skipped, _ = record.counted(store, found, record.Meta.loads(found.meta))
    return build(root, found, executions, nested, known, skipped)


class _Builder:
    """Makes the nodes of a tree."""

    def __init__(
        self,
        found: Record,
        status: Status,
        executions: Mapping[str, Execution],
        nested: Mapping[str, Sequence[Tree]],
        known: Decided,
    ) -> None:
        self.found = found
        self.executions = executions
        self.nested = nested
        self.known = known
        self.failures = {failure.address: failure for failure in status.failures}
        for address in found.tolerated:
            self.failures[address] = record.failure_of(found, address)
        self.deaths = Deaths(known.given_up, found.tolerated)
        self.due = record.due_jobs(found)
        self.cancelled = found.state is State.CANCELLED
        self.over = found.state is State.SUCCEEDED
        self.extra = _extra(known.added, [*executions, *self.failures, *found.held])

    def node(
        self, address: str, node: plan.Node, ready: float | None, off: bool = False
    ) -> tuple[Node, float | None]:
        """A node that could begin when it was *ready*, and when it has ended.

        *off* says that it is in an option that was not chosen.
        """
        if isinstance(node, Job):
            return self.job(address, node, ready, off)
        chosen = self.chosen(address, node)
        keys = option_labels(node)
        below: list[Node] = []
        ends: list[float | None] = []
        for index, (place, child) in enumerate(plan.below(node, address)):
            unchosen = off or (chosen is not None and index not in (0, chosen))
            each, end = self.node(place, child, ready, unchosen)
            below.append(each._replace(key=keys[index]) if keys else each)
            ends.append(end)
            if isinstance(node, Series) or (isinstance(node, Choose) and not index):
                ready = end
        below += self.added(address)
        passed = False
        if isinstance(node, (Parallel, Map)) and is_tolerant(node):
            below, passed = self.deaths.branches(node.need, below)
        failure = self.failures.get(address)
        states = total(below)
        state = "dead" if failure else overall(states)
        made = Node(
            *(address, kind_of(node), "", state, states, NEVER, failure),
            below=tuple(below),
            name=node.name,
            passed=passed,
        )
        if isinstance(node, Choose):
            return made, ends[chosen] if chosen is not None else None
        return made, _last(ends) if isinstance(node, (Parallel, Map)) else ready

    def chosen(self, address: str, node: plan.Node) -> int | None:
        """Which child of a choice runs, 0 if nothing does; None if that is not decided."""
        decider = f"{address}.0"
        if not isinstance(node, Choose) or decider not in self.known.values:
            return None
        keys = (key for key, _ in node.branches())
        option = option_of(keys, self.known.values[decider], truth=node.truth)
        return 0 if option is None else option + 1

    def job(
        self, address: str, job: Job, ready: float | None, off: bool
    ) -> tuple[Node, float | None]:
        execution, failure = self.executions.get(address, NEVER), self.failures.get(address)
        state = self.state(address, execution, failure, off)
        if failure is None and state == "tolerated":
            failure = self.deaths.failure(address, job.task)
        retry = self.due.get(address) if state == "failing" else None
        node = Node(
            *(address, "job", job.task, state, ONE[state], execution, failure),
            retry_at=None if retry is None else retry.since,
            call=_call(job),
            nested=tuple(self.nested.get(address, ())),
            name=job.name,
        )
        attempt, started, seconds = node.timing()
        if started is None:
            return node, None
        end = None if seconds is None else started + seconds
        # A later attempt has waited for the earlier ones.
        if ready is None or attempt != 1:
            return node, end
        return node._replace(waited=max(started - ready, 0.0)), end

    def state(self, address: str, execution: Execution, failure: Failure | None, off: bool) -> str:
        if address in self.deaths:
            return "tolerated"
        if failure is not None and failure.final:
            return "dead"
        if failure is not None and not self.over:
            return "failing"
        if execution.info is not None:
            return "done"
        if off:
            return "skipped"
        if self.cancelled and execution.lease is not None and execution.lease.released:
            return "cancelled"
        if execution.started_at is not None or address in self.found.held:
            return "running"
        if self.over:
            return "skipped"
        return "cancelled" if self.cancelled else "waiting"

    def added(self, address: str) -> Iterator[Node]:
        """The branches that were added to the parallel or map at *address*; without their plans,
        the jobs in them that are known, whose tasks are not."""
        known = self.known
        for name, of in known.added.get(address, ()):
            branch = f"{address}.{name}"
            if branch in known.plans:
                node = unfold(known.plans[branch], known.widths, known.added, branch)
                yield self.node(branch, node, None)[0]
                continue
            places = set(self.extra.get(branch, ()))
            if not is_open(of):
                places.update(addresses(of))
            ordered = sorted(places, key=names.order)
            jobs = [self.job(each, Job(""), None, False)[0] for each in ordered]
            if ordered == [branch]:
                yield jobs[0]
                continue
            states = total(jobs)
            kind = "parallel" if is_parallel(of) else "series"
            yield Node(branch, kind, "", overall(states), states, below=tuple(jobs))


def _extra(added: Mapping[str, Sequence[Any]], jobs: Iterable[str]) -> dict[str, list[str]]:
    """The jobs that something is known of, by the branch that was added with them."""
    found: dict[str, list[str]] = {
        f"{address}.{name}": [] for address, some in added.items() for name, _ in some
    }
    if found:
        for job in jobs:
            parts = job.split(".")
            for count in range(1, len(parts) + 1):
                found.get(".".join(parts[:count]), []).append(job)
    return found


def _last(ends: Sequence[float | None]) -> float | None:
    """The last of the times, if all of them are known."""
    known = [end for end in ends if end is not None]
    return max(known, default=None) if len(known) == len(ends) else None


def _call(job: Job) -> str:
    """The arguments of a job, as they are written in a call."""
    values = [repr(arg) for arg in job.args]
    values += [f"{key}={value!r}" for key, value in job.kwargs.items()]
    return ", ".join(values)
