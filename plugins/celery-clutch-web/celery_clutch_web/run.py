"""What the page of a run shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from celery import Celery
from celery_clutch import ClutchResult, Failure, State
from celery_clutch.compile import record
from celery_clutch.errors import CorruptRecord
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle import snapshot, why
from celery_clutch.handle.tree import Node, Tree, of
from celery_clutch.model import graph
from celery_clutch.model.reason import Reason
from celery_clutch.model.status import Status
from celery_clutch.operate import statistics
from celery_clutch.stores.base import Missing, Record, ResultStore

from .timeline import Timeline, timeline

LARGE = 200_000
"""Jobs of a run whose plan is not read for a page."""
DEEP = 20
"""Runs around a nested one that are named."""
GROUPS = 20
"""Groups of failures that are shown."""


@dataclass(frozen=True, slots=True)
class Around:
    """A run around a nested one, and the address of the job that nests."""

    id: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Page:
    """A run, looked at.

    Attributes:
        status: of the run.
        created_at, ended_at: its times, in seconds since the epoch.
        around: the runs that it is nested in, the outermost first.
        tree: the plan with the state of each job; None of a run that is too large.
        box: what is drawn of it.
        jobs: the jobs by address.
        nested: the runs nested in each job, by its address.
        groups: failures that are alike.
        timeline: None where there is no tree.
        reasons: why it does not go on; none of a run that has succeeded.
        retries: jobs that wait for another attempt, the next one first, `GROUPS` at most.
        now: when it was looked at, in seconds since the epoch.
    """

    status: Status
    created_at: float
    ended_at: float | None
    around: tuple[Around, ...]
    tree: Tree | None
    box: graph.Box | None
    jobs: dict[str, Node]
    nested: dict[str, list[str]]
    groups: list[statistics.Group]
    timeline: Timeline | None
    reasons: list[Reason]
    retries: list[Node]
    now: float

    @property
    def may_cancel(self) -> bool:
        """Whether cancelling it would change something."""
        return self.status.state in (State.RUNNING, State.FAILED)

    @property
    def may_resume(self) -> bool:
        """Whether there is something to resume."""
        return self.status.state in (State.FAILED, State.CANCELLED)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        if self.tree is not None:
            found = self.tree.to_dict()
            for node in found["nodes"]:
                node["nested"] = self.nested.get(node["address"], [])
        else:
            found = self.status.to_dict()
        return {
            **found,
            "around": [{"run": each.id, "address": each.address} for each in self.around],
            "groups": [group.to_dict() for group in self.groups],
            "why": [reason.to_dict() for reason in self.reasons],
        }


@dataclass(frozen=True, slots=True)
class Job:
    """A job, looked at.

    Attributes:
        node: the job in its run.
        failure: the latest of this generation, also where the job has completed since.
        nested: runs that it has nested.
    """

    run: str
    node: Node
    failure: Failure | None
    nested: list[str]

    def attempts(self) -> Iterator[tuple[int, str, Failure | None]]:
        """The number, state and failure of each attempt, the latest first. The store keeps the
        latest failure only."""
        number = self.node.timing()[0] or 0
        failed = self.failure.attempt if self.failure else 0
        if number > failed:
            yield number, self.node.state, None
        if self.failure is not None:
            yield failed, "dead" if self.failure.final else "failing", self.failure
        for earlier in range((failed or number) - 1, 0, -1):
            yield earlier, "failing", None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        failure = self.failure and self.failure.to_dict()
        return {**self.node.to_dict(), "run": self.run, "nested": self.nested, "failure": failure}


def look(app: Celery, id: str) -> Page:
    """The run *id*.

    Raises:
        RunNotFound: there is no such run.
    """
    taken = snapshot.take(app, id, most=LARGE)
    found, tree = taken.record, taken.tree
    status = tree.status if tree else record.status(found, limit=None)
    jobs = {node.address: node for node in tree.walk() if node.kind == "job"} if tree else {}
    retries = [node for node in jobs.values() if node.retry_at is not None]
    retries.sort(key=lambda node: node.retry_at or 0.0)
    return Page(
        status=status,
        created_at=found.created_at,
        ended_at=found.ended_at,
        around=tuple(_around(runtime(app).store, found)),
        tree=tree,
        box=graph.box(tree.plan, tree.states()) if tree else None,
        jobs=jobs,
        nested=_nested(found, jobs),
        groups=statistics.alike(status.failures)[:GROUPS],
        timeline=timeline(tree, taken.now) if tree else None,
        reasons=[] if found.state is State.SUCCEEDED else why.reasons(taken),
        retries=retries[:GROUPS],
        now=taken.now,
    )


def drawn(app: Celery, id: str) -> tuple[Record, Tree]:
    """A run, and its jobs.

    Raises:
        RunNotFound: there is no such run.
    """
    run = ClutchResult(id, app)
    found = run.record()
    return found, of(runtime(app).store, run.plan(), found)


def job(app: Celery, id: str, address: str) -> Job:
    """The job at *address* of the run *id*.

    Raises:
        RunNotFound: there is no such run.
        LookupError: it has no such job.
    """
    found, tree = drawn(app, id)
    for node in tree.walk():
        if node.address == address and node.kind == "job":
            return Job(
                id, node, _failure(found, address), _nested(found, {address: node}).get(address, [])
            )
    raise LookupError(f"run {id} has no job {address!r}")


def branches(app: Celery, id: str, address: str, most: int) -> tuple[list[Node], int]:
    """The jobs below *address*, those in trouble first and those that run next, *most* at most;
    and how many there are."""
    _, tree = drawn(app, id)
    below = [n for n in tree.walk() if n.kind == "job" and _is_below(n.address, address)]
    order = {state: index for index, state in enumerate(graph.COLOURS)}
    below.sort(key=lambda node: order.get(node.state, len(order)))
    return below[:most], len(below)


def arguments(app: Celery, id: str, address: str) -> str:
    """The arguments of a job, as they are written in a call."""
    return job(app, id, address).node.call


def result(app: Celery, id: str, address: str) -> str:
    """The result of a job as JSON.

    Raises:
        LookupError: there is none, or the store has lost it.
    """
    (value,) = runtime(app).store.values(id, [address])
    if value is Missing:
        raise LookupError(f"job {address} has no result")
    return _indented(value)


def data(app: Celery, id: str) -> str:
    """The data that the jobs of a run share, as JSON."""
    return orjson.dumps(ClutchResult(id, app).data(), option=orjson.OPT_INDENT_2).decode()


def why_asked(app: Celery, id: str) -> list[Reason]:
    """Why a run does not go on, as far as the workers know it, too."""
    return ClutchResult(id, app).why(ask=True)


def _indented(value: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError as exc:
        raise CorruptRecord(f"a result is no JSON: {exc}") from None


def _failure(found: Record, address: str) -> Failure | None:
    data = found.failures.get(address)
    return Failure.from_dict(orjson.loads(data)) if data else None


def _nested(found: Record, jobs: dict[str, Node]) -> dict[str, list[str]]:
    inside = {address: list(runs) for address, runs in record.held_runs(found).items()}
    for address, node in jobs.items():
        if known := record.nested(node.execution.info):
            inside[address] = known
    return inside


def _around(store: ResultStore, found: Record) -> list[Around]:
    around: list[Around] = []
    meta = record.Meta.loads(found.meta)
    while meta.parent and len(around) < DEEP:
        id, address = meta.parent.header["run"], meta.parent.header["at"]
        outline = store.outline(id)
        if outline is None:  # forgotten, or expired
            around.append(Around(id, "", address))
            break
        meta = record.Meta.loads(outline[1])
        around.append(Around(id, meta.name or "", address))
    return around[::-1]


def _is_below(address: str, above: str) -> bool:
    return not above or address == above or address.startswith(f"{above}.")
