"""Why a run does not go on: facts, from a snapshot of what is known of it. Pure.

What has begun says so in the store: leases, checkpoints, failures and what is due. What has not is
found by walking the plan: the jobs whose turn it is, and that nobody has begun. Whether their
messages lie in a queue, or were lost, only the broker knows; what workers answer comes close.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..compile import record as records
from ..compile.header import job_of
from ..errors import NotAList
from ..model import names, plan
from ..model.graph import OVER
from ..model.plan import Job, Map, Parallel, Scope
from ..model.reason import Reason
from ..model.status import Failure, State, name_of
from ..model.workers import JOBS, Worker, Workers, place
from ..stores.base import Due, Lease, Record
from .tree import Node, Tree
from .words import duration, told

LISTED = 5
"""How many jobs, or runs, of a kind are named one by one."""
FRONTIER = 1000
"""How many jobs that have not begun are looked at; of a wide step the others are like them."""
RECENT = 5.0
"""Seconds after which a message that is nowhere is not on its way any more."""
SILENT = 0.5
"""The part of a lease that is left when its owner has missed a renewal."""

LONGEST = 200
"""How many characters of the message of a failure are told."""

SWEEP = "The sweep sends it again: schedule celery_clutch.sweep, or celery -A proj clutch sweep"

ADVANCE = "celery_clutch.advance"
"""The task that begins a map."""

_HANDLERS = {"failure": "on_failure", "success": "on_success", "death": "on_death"}


class Pending(NamedTuple):
    """A job whose turn it is, and that has not begun.

    Attributes:
        address, job: in the plan; of a map whose turn it is, its own address, and `ADVANCE`.
        queue: that of the clutch or branch it is in, which goes before its own.
        since: when its turn came, as far as is known.
    """

    address: str
    job: Job
    queue: str | None
    since: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a run.

    Attributes:
        record: of the run.
        now: the time, in seconds since the epoch.
        grace, lease: the settings.
        tree: its jobs; None where that was too much to read.
        leases: the jobs that are under way, by address.
        owners: as `ResultStore.owners` has them.
        pending: the jobs whose turn it is, at most `FRONTIER`.
        queues: where the messages of those go, by address; "" where routes do not say.
        internal: the queues of celery-clutch's own messages, where such may be on their way.
        ours: the queues that the app sends to, as far as its routes say.
        sweeps: whether the app schedules the sweep.
        nested: the runs that jobs wait for, by address; None for one that is gone.
        workers: what workers have answered; None if they were not asked.
        store: the run's store, for people to read.
    """

    record: Record
    now: float
    grace: float = 30.0
    lease: float = 60.0
    tree: Tree | None = None
    leases: Mapping[str, Lease] = field(default_factory=dict)
    owners: Mapping[str, float] = field(default_factory=dict)
    pending: Sequence[Pending] = ()
    queues: Mapping[str, str] = field(default_factory=dict)
    internal: Collection[str] = ()
    ours: Collection[str] = ()
    sweeps: bool = False
    nested: Mapping[str, Mapping[str, Snapshot | None]] = field(default_factory=dict)
    workers: Workers | None = None
    store: str = ""


def reasons(snapshot: Snapshot) -> list[Reason]:
    """The facts, what keeps the run from going on first."""
    return _Why(snapshot).reasons()


def short(found: Sequence[Reason]) -> str:
    """The first of them, for the message of an exception."""
    more = f" (and {len(found) - 2} more reasons; see why())" if len(found) > 2 else ""
    return "; ".join(reason.sentence for reason in found[:2]) + more


def pending(tree: Tree, created_at: float) -> list[Pending]:
    """The jobs whose turn it is and that nobody has begun, at most `FRONTIER`."""
    found: list[Pending] = []
    for each in _pending(tree.plan, tree.root, Scope(), created_at):
        found.append(each)
        if len(found) == FRONTIER:
            break
    return found


def remaining(tree: Tree) -> list[Pending]:
    """The jobs that have no result and that nobody has begun: the first of each task and queue."""
    found: dict[tuple[str, str | None, str], Pending] = {}
    for each in _remaining(tree.plan, tree.root, Scope()):
        found.setdefault((each.job.task, each.queue, str(each.job.options.get("queue"))), each)
    return list(found.values())


class _Why:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.record = snapshot.record
        self.now = snapshot.now
        self.failures = {failure.address: failure for failure in records.failures(self.record)}
        self.due_jobs = records.due_jobs(self.record)
        self.told = {
            job_of(key)
            for key, due in self.record.due.items()
            if due.since > self.now or self._is_news(key, due)
        }
        self.tasks: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        if snapshot.tree is not None:
            nodes = list(snapshot.tree.walk())
            self.tasks = {node.address: node.task for node in nodes if node.task}
            self.names = {node.address: node.name for node in nodes if node.name}
            self.kinds = {node.address: node.kind for node in nodes if node.kind != "job"}

    def reasons(self) -> list[Reason]:
        found = [*self._ended()]
        if self.record.state is not State.SUCCEEDED:
            found += self._asked()
            found += self._expired()
            found += self._died()
            found += self._waiting()
            found += self._due()
            found += self._retries()
            found += self._nested()
            found += self._running()
        if not found:
            found.append(self._quiet())
        return found

    # --- what is over ---------------------------------------------------------------------------

    def _ended(self) -> Iterator[Reason]:
        record = self.record
        ended = record.ended_at if record.ended_at is not None else record.updated_at
        if record.state is State.SUCCEEDED:
            sentence = f"the run succeeded {self._at(ended)}; nothing is left to do"
            yield self._reason("ended", sentence, since=ended)
        elif record.state is State.CANCELLED:
            sentence = f"the run was cancelled {self._at(ended)}"
            yield self._reason("ended", sentence, since=ended, fix="resume() takes it up again.")
        elif record.state is State.FAILED:
            dead = [failure for failure in self.failures.values() if failure.final]
            for failure in dead[:LISTED]:
                sentence = (
                    f"the run failed {self._at(ended)}: {self._job(failure.address, failure.task)} "
                    f"is dead{_attempt(failure)}: {told(failure, LONGEST)}"
                )
                fix = "resume() runs it again."
                if _is_of_a_list(failure):
                    fix = "Its list is a result, which resume() keeps: engage a changed clutch."
                yield self._reason("ended", sentence, failure.address, ended, fix)
            if len(dead) > LISTED:
                sentence = f"{len(dead) - LISTED:,} more jobs of the run are dead"
                yield self._reason("ended", sentence, since=ended, fix="failures() has them all.")

    def _expired(self) -> Iterator[Reason]:
        expires = records.Meta.loads(self.record.meta).expires
        if self.record.state is State.RUNNING and 0 < expires < self.now:
            sentence = f"the deadline of the run has passed, {self._since(expires)}"
            fix = "The next job that would begin fails of it, or the sweep fails the run."
            yield self._reason("expired", sentence, since=expires, fix=fix)

    # --- what workers have answered -------------------------------------------------------------

    def _asked(self) -> Iterator[Reason]:
        workers = self.snapshot.workers
        if workers is None or self.record.state is State.CANCELLED:
            return
        if not workers:
            sentence = f"no worker has answered within {workers.timeout:g} seconds"
            fix = "Start one: celery -A proj worker. One that is busy may need longer to answer."
            yield self._reason("no worker", sentence, fix=fix)
            return
        ours = {*self.snapshot.queues.values(), *self.snapshot.internal, *self.snapshot.ours}
        for worker in workers:
            if worker.same_store is False and worker.queues & ours:
                yield self._other_store(worker)
        yield from self._unserved(workers)
        yield from self._unknown(workers)

    def _other_store(self, worker: Worker) -> Reason:
        sentence = (
            f"the worker {worker.name} has another result store, {worker.store}; this run is in "
            f"{self.snapshot.store}"
        )
        return self._reason("store", sentence, fix="Give both the same clutch_store.")

    def _unserved(self, workers: Workers) -> Iterator[Reason]:
        waiting: dict[str, list[Pending]] = defaultdict(list)
        for each in self.snapshot.pending:
            if queue := self.snapshot.queues.get(each.address):
                waiting[queue].append(each)
        for queue, jobs in sorted(waiting.items()):
            if queue in workers.queues:
                continue
            since = min(each.since for each in jobs)
            sentence = (
                f'no worker that answers consumes the queue "{queue}", which {self._jobs(jobs)} '
                f"{_verb(jobs, 'waits', 'wait')} in, {self._since(since)}"
            )
            fix = f"celery -A proj worker -Q {queue}"
            yield self._reason("queue", sentence, jobs[0].address, since, fix)
        for queue in sorted(set(self.snapshot.internal) - workers.queues - waiting.keys()):
            sentence = (
                f'no worker that answers consumes the queue "{queue}", which the messages go '
                "through that send the jobs of the run"
            )
            yield self._reason("queue", sentence, fix=f"celery -A proj worker -Q {queue}")

    def _unknown(self, workers: Workers) -> Iterator[Reason]:
        strange: dict[tuple[str, str], list[Pending]] = defaultdict(list)
        for each in self.snapshot.pending:
            queue = self.snapshot.queues.get(each.address, "")
            served = queue in workers.queues
            if served and not workers.know(each.job.task, queue):
                strange[each.job.task, queue].append(each)
        for (task, queue), jobs in sorted(strange.items()):
            sentence = (
                f'no worker that consumes the queue "{queue}" knows the task {task} of '
                f"{self._jobs(jobs, named=False)}"
            )
            fix = "Deploy the module that has it, and name it in imports or include."
            yield self._reason("task", sentence, jobs[0].address, jobs[0].since, fix)

    # --- what has begun -------------------------------------------------------------------------

    def _died(self) -> Iterator[Reason]:
        dead = [address for address in self.snapshot.leases if self._left(address) <= 0]
        if self.record.state is State.CANCELLED:  # nobody expects those that were given back
            dead = [address for address in dead if not self.snapshot.leases[address].released]
        for address in dead[:LISTED]:
            yield self._dead(address)
        if len(dead) > LISTED:
            yield self._reason(
                "died", f"{len(dead) - LISTED:,} more jobs had processes that have died", fix=SWEEP
            )

    def _dead(self, address: str) -> Reason:
        lease, job = self.snapshot.leases[address], self._job(address)
        host, process = place(lease.owner)
        if not host:
            sentence = f"{job} was given back by its worker; its message is to come again"
            return self._reason("died", sentence, address, lease.started_at)
        left = self.snapshot.owners.get(lease.owner)
        since = None if left is None else self.now + left
        when = "" if since is None else f", {self._since(since)}"
        sentence = (
            f"the process {process} on {host} that had {job} has died: its lease ran out{when}"
        )
        return self._reason("died", sentence, address, since, self._swept())

    def _running(self) -> Iterator[Reason]:
        found = [each for each in self.snapshot.leases.items() if self._left(each[0]) > 0]
        found.sort(key=lambda each: each[1].started_at)
        for address, lease in found[:LISTED]:
            host, process = place(lease.owner)
            sentence = (
                f"{self._job(address)} runs on {host} (process {process}), "
                f"{self._since(lease.started_at)}"
            )
            left = self._left(address)
            if left < self.snapshot.lease * SILENT:
                silent = duration(self.snapshot.lease - left)
                sentence += (
                    f"; nothing was heard of that process for {silent}, and its lease runs out in "
                    f"{duration(left)}"
                )
            sentence += self._decides(address)
            yield self._reason("running", sentence, address, lease.started_at)
        if len(found) > LISTED:
            sentence = f"{len(found) - LISTED:,} more jobs run"
            yield self._reason("running", sentence, since=found[LISTED][1].started_at)

    def _left(self, address: str) -> float:
        return self.snapshot.owners.get(self.snapshot.leases[address].owner, 0.0)

    def _nested(self) -> Iterator[Reason]:
        for address, data in self.record.held.items():
            held = records.Held.loads(data)
            if held.replaced:
                sentence = f"other tasks stand in the place of {self._job(address)} (self.replace)"
                yield self._reason("replaced", sentence, address)
                continue
            for run, inner in self.snapshot.nested.get(address, {}).items():
                yield from self._inner(address, run, inner)

    def _inner(self, address: str, run: str, inner: Snapshot | None) -> Iterator[Reason]:
        job = self._job(address)
        if inner is None:
            sentence = f"{job} waits for the nested run {run}, which is gone"
            yield self._reason(
                "nested", sentence, address, fix="The sweep fails the job, or resume()."
            )
            return
        record = inner.record
        sentence = (
            f"{job} waits for the nested run {run}, which is {record.state} with {record.done:,} "
            f"of {record.jobs:,} jobs done"
        )
        yield self._reason("nested", sentence, address, record.created_at)
        if record.state is State.RUNNING:
            yield from reasons(inner)

    # --- what has not ---------------------------------------------------------------------------

    def _waiting(self) -> Iterator[Reason]:
        groups: dict[tuple[str, str, str], list[Pending]] = defaultdict(list)
        for each in self.snapshot.pending:
            if each.address in self.told:
                continue  # with what is due
            queue = self.snapshot.queues.get(each.address, "")
            groups[each.job.task, queue, self._holder(each.address)].append(each)
        for (_, queue, holder), jobs in list(groups.items())[:LISTED]:
            since = min(each.since for each in jobs)
            where = self._where(jobs, queue, holder, since)
            has = _verb(jobs, "has", "have")
            sentence = f"{self._jobs(jobs)} {has} not begun, {self._since(since)}{where}"
            sentence += self._decides(jobs[0].address) if len(jobs) == 1 else ""
            if jobs[0].job.plain:
                sentence += "; or it runs, which nobody knows, because it is not a ClutchTask"
            yield self._reason("waiting", sentence, jobs[0].address, since)
        if len(groups) > LISTED:
            rest = list(groups.values())[LISTED:]
            sentence = f"{sum(map(len, rest)):,} jobs of {len(rest)} more tasks have not begun"
            yield self._reason("waiting", sentence)

    def _holder(self, address: str) -> str:
        """The worker that has the message of a job, as far as is known."""
        for worker in self.snapshot.workers or ():
            if f"{self.record.run} {address}" in worker.jobs:
                return worker.name
        return ""

    def _where(self, jobs: Sequence[Pending], queue: str, holder: str, since: float) -> str:
        """Where the messages of *jobs* are, as the end of a sentence."""
        messages = _verb(jobs, "its message", "their messages")
        workers = self.snapshot.workers
        if holder:
            return f": the worker {holder} has {messages}, and is busy with others"
        if not queue:
            return ""
        length = workers.lengths.get(queue) if workers else None
        if workers and length == 0:
            were = _verb(jobs, "it was", "they were")
            if any(len(worker.jobs) >= JOBS for worker in workers):  # it does not tell of more
                return f': the queue "{queue}" is empty: a worker has {messages}, or {were} lost'
            if self.now - since < RECENT:
                were = _verb(jobs, "it is on its way, or was", "they are on their way, or were")
            nobody = f"no worker that answers has {messages}"
            return f': {nobody}, and the queue "{queue}" is empty: {were} lost'
        lies, were = _verb(jobs, "lies", "lie"), _verb(jobs, "was", "were")
        if length is None:
            return f': {messages} {lies} in the queue "{queue}", or {were} lost'
        many = f"{length:,} {'message' if length == 1 else 'messages'}"
        return f': {messages} {lies} in the queue "{queue}", which has {many}'

    def _due(self) -> Iterator[Reason]:
        overdue = [
            (due.since, key, due)
            for key, due in self.record.due.items()
            if self._is_news(key, due) and self._what(key, due)
        ]
        overdue.sort(key=lambda each: each[:2])
        for since, key, due in overdue[:LISTED]:
            sentence = f"{self._what(key, due)}, {self._since(since)}, and not known to be sent"
            if due.tries:
                sentence += f"; it was sent again {_times(due.tries)}"
            address = job_of(key) or due.cause
            if job_of(key):
                for each in self.snapshot.pending:
                    if each.address == address:
                        queue = self.snapshot.queues.get(address, "")
                        holder = self._holder(address)
                        sentence += self._where([each], queue, holder, since)
            yield self._reason("due", sentence, address, since, self._swept(due))
        if len(overdue) > LISTED:
            sentence = f"{len(overdue) - LISTED:,} more messages are due and not known to be sent"
            yield self._reason("due", sentence)

    def _is_news(self, key: str, due: Due) -> bool:
        """Whether what is due is more than a message that waits for its turn in a queue.

        What was sent is due until the last of the messages begins. So where jobs have not begun,
        that is told, and what is due only when the sweep would send it again.
        """
        if due.since > self.now:
            return False
        if not self.snapshot.pending or not key.startswith(("job ", "page ")):
            return True
        if job_of(key) in self.failures:
            return True
        return bool(due.tries) or self.now - due.since >= self.snapshot.grace

    def _what(self, key: str, due: Due) -> str:
        """What is due, as the beginning of a sentence; "" for what is no news."""
        kind, _, rest = key.partition(" ")
        if kind == "job":
            address = job_of(key)
            failure, job = self.failures.get(address), self._job(address)
            if failure is not None:
                return f"attempt {failure.attempt + 1} of {job} is due ({told(failure, LONGEST)})"
            return f"the message of {job} is due"
        if kind == "page":
            if branches := _branches(rest):
                return f"the messages of {branches} are due"
            if not due.cause:
                return "the first messages are due"
            return f"the messages of what follows {self._job(due.cause)} are due"
        if kind in _HANDLERS:
            step = names.label(self.names.get(rest, ""), rest, "")
            where = f" of step {step}" if rest and kind == "failure" else ""
            return f"{_HANDLERS[kind]}{where} is due"
        if kind == "nested":
            return f"the start of the nested run {rest} is due"
        if kind == "end":
            return "the word of the end of the run is due"
        return ""

    def _retries(self) -> Iterator[Reason]:
        later = sorted(
            (due.since, address) for address, due in self.due_jobs.items() if due.since > self.now
        )
        for when, address in later[:LISTED]:
            failure = self.failures.get(address)
            at = f"at {self._clock(when)} (in {duration(when - self.now)})"
            if failure is None:
                sentence = f"{self._job(address)} is to begin {at}"
                yield self._reason("later", sentence, address, when)
                continue
            sentence = (
                f"{self._job(address)} has failed in attempt {failure.attempt}, and is retried "
                f"{at}: {told(failure, LONGEST)}"
            )
            yield self._reason("retry", sentence, address, when)
        if len(later) > LISTED:
            sentence = f"{len(later) - LISTED:,} more jobs are to begin, or to be retried, later"
            yield self._reason("later", sentence, since=later[LISTED][0])
        yield from self._unplanned()

    def _unplanned(self) -> Iterator[Reason]:
        """Jobs that are failing, and of whose next attempt nothing is known: plain tasks."""
        for failure in self.failures.values():
            address = failure.address
            if failure.final or address in self.due_jobs or address in self.snapshot.leases:
                continue
            sentence = (
                f"{self._job(address, failure.task)} has failed in attempt {failure.attempt}, and "
                f"Celery retries it: {told(failure, LONGEST)}"
            )
            yield self._reason("retry", sentence, address)

    def _quiet(self) -> Reason:
        since = self.record.updated_at
        sentence = f"nothing has happened in the run, {self._since(since)}, and nothing is due"
        return self._reason("quiet", sentence, since=since)

    # --- words ----------------------------------------------------------------------------------

    def _reason(
        self,
        kind: str,
        sentence: str,
        address: str = "",
        since: float | None = None,
        fix: str = "",
    ) -> Reason:
        return Reason(kind, sentence, self.record.run, address, since, fix)

    def _job(self, address: str, task: str = "") -> str:
        if address.startswith("page "):
            return "what follows"
        name, task = self.names.get(address, ""), task or self.tasks.get(address, "")
        kind = self.kinds.get(address)
        return (
            f"the {kind} {names.label(name, address, '')}"
            if kind
            else f"job {names.label(name, address, task)}"
        )

    def _decides(self, address: str) -> str:
        """What a job decides, as the end of a sentence."""
        around, _, index = address.rpartition(".")
        if index == "0" and self.kinds.get(around) in ("choose", "when"):
            where = names.label(self.names.get(around, ""), around, "")
            return f"; it decides what follows at {where}"
        return ""

    def _jobs(self, jobs: Sequence[Pending], *, named: bool = True) -> str:
        if len(jobs) == 1:
            only = jobs[0]
            if only.job.task == ADVANCE:
                return f"the map {names.label(only.job.name, only.address, '')}"
            return f"job {names.label(only.job.name, only.address, only.job.task * named)}"
        addresses = [each.address for each in jobs]
        tasks = sorted({each.job.task for each in jobs}) if named else []
        some = ", ".join(addresses[:3])
        if len(addresses) == FRONTIER:
            some = f"(1,000 or more) {some}, ..."
        elif len(addresses) > 3:
            some = f"({len(addresses):,}) {some}, ..."
        if tasks == [ADVANCE]:
            return f"the maps {some}"
        name = f" {', '.join(tasks[:3])}" if tasks else ""
        return f"jobs {some}{name}"

    def _swept(self, due: Due | None = None) -> str:
        if not self.snapshot.sweeps:
            return SWEEP + "."
        if due is None:
            return "The next sweep sends it again."
        when = due.since + self.snapshot.grace * 2 ** min(due.tries, 10)
        return f"A sweep after {self._clock(when)} sends it again."

    def _since(self, when: float) -> str:
        return f"since {self._clock(when)} ({duration(max(self.now - when, 0))})"

    def _at(self, when: float) -> str:
        return f"at {self._clock(when)} ({duration(max(self.now - when, 0))} ago)"

    def _clock(self, when: float) -> str:
        day, now = time.gmtime(when), time.gmtime(self.now)
        form = "%H:%M:%S UTC" if day[:3] == now[:3] else "%Y-%m-%d %H:%M:%S UTC"
        return time.strftime(form, day)


# --- the walk through the plan ----------------------------------------------------------------


def _pending(node: plan.Node, drawn: Node, outer: Scope, since: float) -> Iterator[Pending]:
    if isinstance(node, Job):
        if drawn.state == "waiting":
            yield Pending(drawn.address, node, outer.queue, since)
        return
    scope = node.scope.inherit(outer)
    if isinstance(node, Map):  # how many branches it has is not known
        if drawn.state == "dead":
            return
        yield Pending(drawn.address, Job(ADVANCE, name=node.name), scope.queue, since)
        return
    steps = _steps(node, drawn)
    if isinstance(node, Parallel):
        for child, below in _startable(steps, node.limit):
            yield from _pending(child, below, scope, since)
        return
    for child, below in steps:
        if not _is_over(below):
            yield from _pending(child, below, scope, since)
        if not _is_over(below) and not below.passed:
            return
        since = max(since, _ended_at(below))


def _remaining(node: plan.Node, drawn: Node, outer: Scope) -> Iterator[Pending]:
    if isinstance(node, Job):
        if drawn.state not in OVER:
            yield Pending(drawn.address, node, outer.queue, 0.0)
        return
    scope = node.scope.inherit(outer)
    for child, below in _steps(node, drawn):
        if not _is_over(below):
            yield from _remaining(child, below, scope)


def _steps(node: plan.Node, drawn: Node) -> Iterator[tuple[plan.Node, Node]]:
    """The children of a node, as planned and as drawn; without branches that were added."""
    return zip(plan.children(node), drawn.below, strict=False)


def _startable(
    branches: Iterable[tuple[plan.Node, Node]], limit: int | None
) -> Iterator[tuple[plan.Node, Node]]:
    """The branches of a parallel that may be under way: *limit* of those that are not over."""
    left = limit
    for child, below in branches:
        # A branch with a dead job is over, and the next one runs.
        if _is_over(below) or below.states.get("dead") or below.state == "tolerated":
            continue
        if left is not None:
            if not left:
                return
            left -= 1
        yield child, below


def _is_over(node: Node) -> bool:
    return all(state in OVER for state, count in node.states.items() if count)


def _branches(key: str) -> str:
    """The branches of a map, or of a narrow parallel, that a page starts; "" for another page."""
    head, colon, number = key.partition(":")
    if colon:
        _, plus, first = number.partition("+")
        return f"the branches from {first} on of the map at {head}" if plus else f"branch {head}"
    head, slash, branch = key.partition("/")
    return f"branch {head}.{branch}" if slash else ""


def _ended_at(node: Node) -> float:
    """When the last job of a node ended, by the clocks of workers; 0 if nobody knows."""
    if node.kind == "job":
        _, start, seconds = node.timing()
        return (start or 0.0) + (seconds or 0.0)
    return max((_ended_at(each) for each in node.below), default=0.0)


def _attempt(failure: Failure) -> str:
    """The attempt that a job has died of; what died before it could begin had none."""
    return "" if failure.task == ADVANCE else f" since its attempt {failure.attempt}"


def _is_of_a_list(failure: Failure) -> bool:
    """Whether it is the list of a map that is wrong, found when the map was to begin."""
    return failure.task == ADVANCE and failure.exception == name_of(NotAList)


def _verb(jobs: Sequence[Pending], one: str, many: str) -> str:
    return one if len(jobs) == 1 else many


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
