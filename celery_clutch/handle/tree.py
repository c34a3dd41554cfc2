"""A run as a tree: the state of every job of its plan. Pure.

No values are read, so that a run of 100,000 jobs can be looked at.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from ..compile import record
from ..model import names, plan
from ..model.graph import TIMES, WIDE, counts, kind_of, overall, printable
from ..model.plan import Job, Series
from ..model.status import Failure, State, Status, isoformat
from ..model.workers import place
from ..stores.base import Execution, Record, Summary

MARKS = {
    "waiting": "·",
    "running": "▸",
    "done": "✓",
    "failing": "!",
    "dead": "✗",
    "cancelled": "-",
}

NEVER = Execution()
MOST = 60
"""Characters of arguments that are shown."""
NOTABLE = 0.1
"""Seconds that a job has to have waited for it to be said."""


class Node(NamedTuple):  # made by the hundred thousand, which takes a dataclass a second
    """A job, series or parallel of a run.

    Attributes:
        address, kind: in the plan; kind is ``job``, ``series`` or ``parallel``.
        task: the name of a job's task, else "".
        state: ``waiting``, ``running``, ``done``, ``failing``, ``dead`` or ``cancelled``.
        states: how many of the jobs in it are in each state.
        execution: of a job, what is known of it.
        failure: the latest, where there is no result since.
        waited: seconds between the end of what came before a job and its first attempt; None where
            that is not known.
        retry_at: when the next attempt is due, in seconds since the epoch; None if none is.
        call: the arguments of a job, as they are written in a call.
        below: its steps or branches.
        nested: the runs that a job waits for.
        name: that of the step, "" if it has none.
    """

    address: str
    kind: str
    task: str
    state: str
    states: Mapping[str, int]
    execution: Execution = NEVER
    failure: Failure | None = None
    waited: float | None = None
    retry_at: float | None = None
    call: str = ""
    below: tuple[Node, ...] = ()
    nested: tuple[Tree, ...] = ()
    name: str = ""

    def timing(self) -> tuple[int | None, float | None, float | None]:
        """The number of the attempt, when it started (seconds since the epoch), and how long it
        took; None for what is not known."""
        started, failed = self.execution.started_at, self.failure.attempt if self.failure else 0
        if self.execution.info is None:
            return failed + (started is not None) or None, started, None
        try:
            info = orjson.loads(self.execution.info)
            return info.get("attempt"), info.get("start"), info.get("seconds")
        except (AttributeError, ValueError):  # written by internal steps, or by nobody
            return None, None, None

    @property
    def host(self) -> str | None:
        """The host that runs a job, or has run it; None where that is not known."""
        if self.execution.lease is not None:
            return place(self.execution.lease.owner)[0] or None
        return record.host_of(self.execution.info)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data, without what is below it."""
        attempt, started, seconds = self.timing()
        return {
            "address": self.address,
            "name": self.name or None,
            "kind": self.kind,
            "task": self.task or None,
            "state": self.state,
            "jobs": dict(self.states),
            "attempt": attempt,
            "started_at": None if started is None else isoformat(started),
            "seconds": seconds,
            "waited": self.waited,
            "host": self.host,
            "retry_at": None if self.retry_at is None else isoformat(self.retry_at),
            "failure": self.failure and self.failure.to_dict(),
            "nested": [nested.to_dict() for nested in self.nested],
        }


@dataclass(frozen=True, slots=True)
class Tree:
    """A run: its status, its plan, and the plan with the state of each node."""

    status: Status
    plan: Series
    root: Node

    def walk(self) -> Iterator[Node]:
        """Every node of the plan but the root, in definition order."""
        stack = list(reversed(self.root.below))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.below))

    def states(self) -> dict[str, str]:
        """The state of each job by address, for `graph`."""
        found: dict[str, str] = {}
        self._states("", found)
        return found

    def _states(self, prefix: str, found: dict[str, str]) -> None:
        for node in self.walk():
            if node.kind == "job":
                found[prefix + node.address] = node.state
            for number, inner in enumerate(node.nested):
                inner._states(f"{prefix}{node.address}~{number}.", found)

    def inside(self) -> dict[str, list[tuple[str, Series]]]:
        """The title and plan of the runs that were nested in jobs, by the address of the job."""
        found: dict[str, list[tuple[str, Series]]] = {}
        self._inside("", found)
        return found

    def _inside(self, prefix: str, found: dict[str, list[tuple[str, Series]]]) -> None:
        for node in self.walk():
            for number, inner in enumerate(node.nested):
                at = prefix + node.address
                found.setdefault(at, []).append((headline(inner.status), inner.plan))
                inner._inside(f"{at}~{number}.", found)

    def to_dict(self, *, arguments: bool = False) -> dict[str, Any]:
        """The status as a dict, with ``nodes``: every node by address order of the plan; with
        *arguments* those of each job too, as they are written in a call."""
        nodes = [node.to_dict() for node in self.walk()]
        if arguments:
            for node, data in zip(self.walk(), nodes, strict=True):
                data["arguments"] = node.call
        return {**self.status.to_dict(), "nodes": nodes}


class Line(NamedTuple):
    """Something to show: what it says, the state it shows, the lines inside it, and what else
    there is to say, in as many lines as it has."""

    text: str
    state: str = ""
    below: tuple[Line, ...] = ()
    more: str = ""


def build(
    root: Series,
    found: Record,
    executions: Mapping[str, Execution],
    nested: Mapping[str, Sequence[Tree]] | None = None,
) -> Tree:
    """The tree of a run, from what the store says of it; *nested* as in `record.held_runs`."""
    draining = 0
    if found.state in (State.FAILED, State.CANCELLED):
        leases = [each.lease for each in executions.values() if each.lease is not None]
        draining = sum(not lease.released for lease in leases)
    status = record.status(found, limit=None, draining=draining)
    failures = {failure.address: failure for failure in status.failures}
    cancelled = found.state is State.CANCELLED

    retries = _retries(found)

    def job(address: str, job: Job, ready: float | None) -> tuple[Node, float | None]:
        execution, failure = executions.get(address, NEVER), failures.get(address)
        if failure is not None:
            state = "dead" if failure.final else "failing"
        elif execution.info is not None:
            state = "done"
        elif cancelled and execution.lease is not None and execution.lease.released:
            state = "cancelled"
        elif execution.started_at is not None or address in found.held:
            state = "running"
        else:
            state = "cancelled" if cancelled else "waiting"
        inside = tuple(nested.get(address, ())) if nested else ()
        retry_at = retries.get(address) if state == "failing" else None
        node = Node(
            *(address, "job", job.task, state, ONE[state], execution, failure),
            retry_at=retry_at,
            call=_call(job),
            nested=inside,
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

    def build_node(address: str, node: plan.Node, ready: float | None) -> tuple[Node, float | None]:
        """A node that could begin when it was *ready*, and when it has ended."""
        if isinstance(node, Job):
            return job(address, node, ready)
        below: list[Node] = []
        ends: list[float | None] = []
        for index, child in enumerate(plan.children(node)):
            each, end = build_node(plan.join(address, index), child, ready)
            below.append(each)
            ends.append(end)
            if isinstance(node, Series):
                ready = end
        states: Counter[str] = Counter()
        for each in below:
            if each.kind == "job":
                states[each.state] += 1
            else:
                states.update(each.states)
        failure = failures.get(address)
        state = "dead" if failure else overall(states)
        made = Node(
            *(address, kind_of(node), "", state, states, NEVER, failure),
            below=tuple(below),
            name=node.name,
        )
        return made, _last(ends) if isinstance(node, plan.Parallel) else ready

    return Tree(status, root, build_node("", root, found.created_at)[0])


def _last(ends: Sequence[float | None]) -> float | None:
    """The last of the times, if all of them are known."""
    known = [end for end in ends if end is not None]
    return max(known, default=None) if len(known) == len(ends) else None


def _retries(found: Record) -> dict[str, float]:
    """When messages of jobs are to begin, by address."""
    times: dict[str, float] = {}
    for key, due in found.due.items():
        kind, _, rest = key.partition(" ")
        if kind == "job":
            times[rest.rpartition(" ")[2]] = due.since
    return times


def _call(job: Job) -> str:
    """The arguments of a job, as they are written in a call."""
    values = [repr(arg) for arg in job.args]
    values += [f"{key}={value!r}" for key, value in job.kwargs.items()]
    return ", ".join(values)


ONE: dict[str, Mapping[str, int]] = {state: {state: 1} for state in MARKS}


def lines(
    tree: Tree,
    now: float,
    *,
    wide: int = WIDE,
    traceback: bool = False,
    arguments: bool = False,
) -> Line:
    """*tree* as what to show: of a parallel wider than *wide* the branches that are in trouble, or
    running.

    Args:
        tree: the run.
        now: the time by the store's clock, in seconds since the epoch.
        wide: how many branches of a parallel are shown one by one.
        traceback: show the traceback of each failure.
        arguments: show those of each job.
    """

    def line(node: Node) -> Line:
        what = node.task or node.kind
        if arguments and node.kind == "job":
            what += f"({_cut(node.call)})"
        label = names.label(node.name, node.address, what)
        notes = _notes(node, now)
        if node.kind == "parallel" and len(node.below) > wide:
            label += f" {TIMES} {len(node.below):,}"
        below = [*map(line, _shown(node, wide))]
        if (left := len(node.below) - len(below)) and below:
            below.append(Line(f"… and {left:,} more"))
        more = node.failure.traceback if traceback and node.failure else ""
        below += [whole(each, "nested ") for each in node.nested]
        return Line(printable("  ".join([label, *notes])), node.state, tuple(below), more)

    def whole(tree: Tree, prefix: str = "") -> Line:
        known = {node.address for node in tree.walk()}
        below = [line(node) for node in tree.root.below]
        for failure in tree.status.failures:  # of what is in no plan: an internal task
            if failure.address not in known:
                below.append(Line(printable(f"{failure.address}  {_told(failure)}"), "dead"))
        return Line(printable(prefix + headline(tree.status)), "", tuple(below))

    return whole(tree)


def headline(status: Status) -> str:
    """A run in one line."""
    parts = [f"{status.name or ''} {status.id}".strip(), state(status), progress(status)]
    if status.generation:
        parts.append(f"resumed {status.generation} times" if status.generation > 1 else "resumed")
    if status.ended_at:
        start, end = map(datetime.fromisoformat, (status.created_at, status.ended_at))
        parts.append(f"took {duration((end - start).total_seconds())}")
    return "  ".join(parts)


def brief(run: Summary) -> str:
    """``"5/7, 1 failing"``, for tables."""
    trouble = [f"{n:,} {kind}" for kind in ("failing", "dead") if (n := getattr(run, kind))]
    return ", ".join([f"{run.done:,}/{run.jobs:,}", *trouble])


def state(status: Status) -> str:
    """``"FAILED (draining: 3 running)"``, or the state alone."""
    if not status.draining:
        return status.state
    return f"{status.state} (draining: {status.draining:,} running)"


def progress(run: Status | Summary) -> str:
    """``"5 of 7 jobs, 1 failing"``."""
    total = run.total if isinstance(run, Status) else run.jobs
    trouble = [f"{n:,} {kind}" for kind in ("failing", "dead") if (n := getattr(run, kind))]
    return ", ".join([f"{run.done:,} of {total:,} jobs", *trouble])


def duration(seconds: float) -> str:
    """*seconds* for people: two units at most."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, seconds = divmod(round(seconds), size)
        parts += [f"{amount} {unit}"] if amount or parts else []
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


class Pace:
    """How fast something is done, over the last *window* seconds."""

    def __init__(self, window: float = 30.0) -> None:
        self.window = window
        self.seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """At *now*, by some clock in seconds, *done* are done."""
        self.seen.append((now, done))
        while len(self.seen) > 2 and self.seen[1][0] <= now - self.window:
            self.seen.popleft()

    def rate(self) -> float:
        """How many a second."""
        (start, before), (end, after) = self.seen[0], self.seen[-1]
        return max(after - before, 0) / (end - start) if end > start else 0.0

    def left(self, total: int) -> float | None:
        """Seconds until all of *total* are done; None as long as nobody can tell."""
        rate = self.rate()
        return (total - self.seen[-1][1]) / rate if rate else None


def _shown(node: Node, wide: int) -> Sequence[Node]:
    if node.kind != "parallel" or len(node.below) <= wide:
        return node.below
    trouble = [each for each in node.below if each.state in ("failing", "dead")]
    return [*trouble, *(each for each in node.below if each.state == "running")][:wide]


def _notes(node: Node, now: float) -> Iterator[str]:
    if node.kind != "job":
        if sum(node.states.values()) > 1:
            yield counts(node.states)
    else:
        attempt, started, seconds = node.timing()
        if seconds is not None:
            yield duration(seconds)
        elif started is not None:
            yield f"running for {duration(max(now - started, 0))}"
        if node.waited is not None and node.waited >= NOTABLE:
            yield f"waited {duration(node.waited)}"
        if node.host and started is not None:
            yield f"@{node.host}"
        if attempt and attempt > 1:
            yield f"attempt {attempt}"
    if node.failure:
        yield _told(node.failure)
    if node.retry_at is not None:
        left = node.retry_at - now
        yield f"next attempt in {duration(left)}" if left > 0 else "next attempt is due"


def _cut(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"


def _told(failure: Failure) -> str:
    message = failure.message.strip().partition("\n")[0]
    again = "" if failure.final else f" (attempt {failure.attempt}; it is retried)"
    return f"{failure.exception}: {message}{again}"
