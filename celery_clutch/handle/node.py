"""The nodes of the tree that a run is looked at as. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from ..compile import record
from ..model.graph import COLOURS
from ..model.plan import Series
from ..model.status import Failure, Status, isoformat
from ..model.workers import place
from ..stores.base import Execution
from .words import headline

NEVER = Execution()
ONE: dict[str, Mapping[str, int]] = {state: {state: 1} for state in COLOURS}


class Node(NamedTuple):  # made by the hundred thousand, which takes a dataclass a second
    """A job, or what is made of jobs, of a run.

    Attributes:
        address: in the run; a branch of a map that is not known yet has `plan.EACH` for its number.
        kind: see `graph.kind_of`.
        task: the name of a job's task, else "".
        state: ``waiting``, ``running``, ``done``, ``failing``, ``dead``, ``cancelled``,
            ``skipped`` (it will not run) or ``tolerated`` (it is dead, and the run goes on without
            its branch).
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
        key: of an option of a choice, for people; else "".
        passed: what follows a parallel or map need not wait for it any longer, though there may be
            jobs in it that run.
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
    key: str = ""
    passed: bool = False

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
            "option": self.key or None,
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


def total(nodes: Iterable[Node]) -> Counter[str]:
    """How many of the jobs in *nodes* are in each state."""
    states: Counter[str] = Counter()
    for each in nodes:
        if each.kind == "job":
            states[each.state] += 1
        else:
            states.update(each.states)
    return states
