"""The store interface. The docstrings here are the specification; `StoreContract` tests it.

The store decides: it is told what happened and answers what is due. A *run* is a record (`Record`),
its pages, its results, failures, checkpoints, leases and executions by address, its shared data by
key, and what is *due*: what follows from something recorded and is not known to have been sent. All
values are bytes that mean nothing to the store. Everything a primitive does happens at once, or not
at all, as seen by every other process.

A run is written by many workers at once, and every message may arrive twice, late, or never. So
the rules below are all of the kind "the first one counts", and doing twice what is due is harmless.

Whoever writes a store derives from `celery_clutch.stores.machine.TransactionalStore`, which has the
rules and wants rows; what is abstract here is for stores that have rules of their own.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from ..errors import StoreUnavailable
from ..model.secrets import without_secrets as without_secrets
from ..model.status import State

T = TypeVar("T")


class _Missing(enum.Enum):
    MISSING = "Missing"

    def __repr__(self) -> str:
        return "Missing"

    def __bool__(self) -> bool:
        return False


Missing: Final = _Missing.MISSING
"""What stands for a result that is not there. Never None: None is a result."""
MissingType = _Missing

NOTHING: Mapping[str, Any] = MappingProxyType({})

ENDED = frozenset((State.SUCCEEDED, State.FAILED, State.CANCELLED))

END = "end"
"""What the last barrier of a run leads to."""

STOPPED = "stop"
"""In place of an address: the result of a run that one of its jobs has ended early."""

TURNS = 100
"""A message's *turn* is its number of retries times this, plus how often its job was put off
because the store was away: of two messages of a job, the one with the higher turn was sent by the
execution that the lower one started."""


class Verdict(enum.IntEnum):
    """What `ResultStore.begin` says of a job."""

    RUN = 1
    """Run it."""
    DONE = 2
    """Its result is there already; `complete` says what of it is still due."""
    DROP = 3
    """Do nothing: the run is cancelled, gone, or of another generation; or the attempt is known to
    have failed, so that this message is a copy."""
    GIVE_UP = 4
    """Its owners died too often: it seems to kill its worker."""
    BUSY = 5
    """An owner has it: put the message off while that lives."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A process asks for the lease of a job.

    Attributes:
        run, address, generation: the job, and the generation its message is of.
        owner: the process.
        limit: how many owners may die with the job.
        turn: of the message; see `TURNS`.
        page: the page that the job is in.
        receipts: what is no longer due, because the message has come.
        lapsed: an owner that is known to have died, or "".
        unless: barriers, and how many results they are to have, that make the job superfluous.
    """

    run: str
    address: str
    generation: int
    owner: str
    limit: int
    turn: int = 0
    page: str = ""
    receipts: tuple[str, ...] = ()
    lapsed: str = ""
    unless: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer of `ResultStore.begin`.

    Attributes:
        verdict: what to do.
        held: the checkpoint of the job, if it has one; see `ResultStore.checkpoint`.
        owner: with BUSY, who has the job.
    """

    verdict: Verdict
    held: bytes | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Settles:
    """A step that waits for ``width`` members to settle, and the member that does.

    ``loud`` says that a failure of the member is this step's to report; a failure that an inner
    step reports settles the outer ones without a sound.
    """

    step: str
    member: str
    width: int
    loud: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """A branch of a parallel that runs *limit* of its *width* branches at a time.

    When the branch *member* of the parallel at *address* is over, the next branch is due, as the
    page ``"<address>/<number of the branch>"``. In a run that was resumed that is the next one that
    was not over, by a barrier that opened, before: the *member* ``"<address>.<number>"``.
    """

    address: str
    member: str
    limit: int
    width: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """What waits for *width* jobs: opens when so many of those that count towards it have results.

    Attributes:
        name: of the barrier, in its run.
        width: how many results it waits for.
        then: what is due when it opens, or ""; `END` is no key: the run has succeeded.
        settles: the member that is complete when it opens.
        turn: the branch that is over when it opens.
        gate: the name of a barrier before this one: what opens that counts one here, and nothing
            else does. "" for what every result counts towards.
        closes: the name is the address of a branch that may have ended without its barrier, by a
            tolerated death: it has a result then, and opens no gate.
        grows: it is counted although one result is all it waits for, because branches may be added.
    """

    name: str
    width: int
    then: str = ""
    settles: Settles | None = None
    turn: Turn | None = None
    gate: str = ""
    closes: bool = False
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Tolerance:
    """A branch of a parallel that goes on without some of its branches.

    Attributes:
        step: the name of the barrier that counts the branches.
        member: the address of the branch.
        limit: how many branches may die; in the template of a map, as its plan says it.
        need: how many have to succeed for the parallel to go on, or 0 for all that do not die.
        first: the job starts the branch: it does not start when so many have succeeded.
        barriers: what the branch counts towards when its death is tolerated, *step* first; nothing
            where only successes count.
    """

    step: str
    member: str
    limit: int | float
    need: int = 0
    first: bool = False
    barriers: tuple[Barrier, ...] = ()


@dataclass(frozen=True, slots=True)
class Growth:
    """Branches are added to a parallel while it runs.

    Attributes:
        step: the address of the parallel.
        branches: the address of each, behind that of the parallel, and the shape of its values.
        barriers: how many results more barriers wait for, by name.
        jobs: how many jobs there are in the branches.
        pages: of the branches.
        due: which of *pages* are due; with a *limit*, branches are due as pages
            ``"<step>/<branch>"`` when it is their turn.
        limit: see `Turn`.
        width: how many branches there were from the start.
    """

    step: str
    branches: tuple[tuple[str, Any], ...]
    barriers: Mapping[str, int]
    jobs: int
    pages: Mapping[str, bytes]
    due: tuple[str, ...] = ()
    limit: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A job has its result.

    Attributes:
        run, address, generation: the job, and the generation its message is of.
        value: the result.
        token: names this execution of the job.
        settles: a step that the job alone is the member of.
        barriers: what the job counts towards.
        next: what is due behind the job in its chain, and from when (seconds since the epoch).
        message: what is to be sent for that, behind the key of its queue, where the store `serves`
            as the broker. A store that sends it, because that is due, does not answer that it is.
        changes: to the run's data: each key is set, or deleted where the value is None.
        info: kept for `executions`.
        jobs: how many jobs more there are than was known.
        skips: how many jobs will not run because of the value; they count as done.
        counts: how many of the jobs that were known have their result with this one.
        stop: the result of the run, which ends here; None where it goes on.
        growth: branches that the job has added.
    """

    run: str
    address: str
    generation: int
    value: bytes
    token: str = ""
    settles: Settles | None = None
    barriers: tuple[Barrier, ...] = ()
    next: tuple[str, float] | None = None
    changes: Mapping[str, bytes | None] = field(default_factory=dict)
    info: bytes = b""
    jobs: int = 0
    skips: int = 0
    counts: int = 1
    stop: bytes | None = None
    growth: Growth | None = None
    message: tuple[str, bytes] | None = None

    @property
    def is_usual(self) -> bool:
        """Whether it records a result, and nothing that only some jobs have."""
        unusual = self.jobs or self.skips or self.stop is not None or self.growth
        return not unusual and self.counts == 1 and not any(map(_closes, self.barriers))

    @property
    def is_gated(self) -> bool:
        """Whether a barrier counts what another opens, or waits for one result and counts."""
        return any(each.gate or (each.grows and each.width == 1) for each in self.barriers)


def _closes(barrier: Barrier) -> bool:
    return barrier.closes or barrier.then == END


@dataclass(frozen=True, slots=True)
class Completed:
    """What `ResultStore.complete` did.

    Attributes:
        remaining: results still to come; -1 when there is no such run.
        fresh: this call's value is the one recorded.
        generation: the run's, which is that of what is due.
        succeeded: this execution ended the run.
        unusual: branches may have been added to the run.
        settled: the steps whose last member this call settled.
        due: what this call has made due; if it is not fresh, what was due before with the job as
            its cause and has not been sent, as far as is known.
        pages: the pages among ``due``, by key.
    """

    remaining: int
    fresh: bool = False
    generation: int = 0
    succeeded: bool = False
    settled: tuple[str, ...] = ()
    due: tuple[str, ...] = ()
    pages: Mapping[str, bytes] = field(default_factory=dict)
    unusual: bool = False


@dataclass(frozen=True, slots=True)
class Attempted:
    """An attempt of a job has failed.

    Attributes:
        run, address, generation: the job, and the generation its message is of.
        failure: what is to be known of it.
        attempt: its number, from 1.
        final: there is no further attempt: the job is dead.
        token: names this execution of the job.
        settles: the steps that the failure settles a member of.
        turns: the branches that are over with the death of the job.
        retry: what is due if there is a further attempt, and from when.
        tolerances: the branches that the job is in whose death may be tolerated, the innermost
            first.
        stand_in: the result of a branch whose death is.
    """

    run: str
    address: str
    generation: int
    failure: bytes
    attempt: int
    final: bool
    token: str = ""
    settles: tuple[Settles, ...] = ()
    turns: tuple[Turn, ...] = ()
    retry: tuple[str, float] | None = None
    tolerances: tuple[Tolerance, ...] = ()
    stand_in: bytes = b""


@dataclass(frozen=True, slots=True)
class Failed:
    """What `ResultStore.fail` did.

    Attributes:
        recorded: the failure was news.
        tolerated: the run goes on without the branch.
        unusual: see `Completed`.
        died: this execution took the run from RUNNING to FAILED.
        succeeded: this execution ended the run, with a death that is tolerated.
        settled: the steps whose last member this call settled.
        due: what this call has made due; if it repeats what is recorded, what was due before with
            the job as its cause and has not been sent, as far as is known. Not the job's own next
            attempt.
        pages: the pages among ``due``, by key.
    """

    recorded: bool = False
    died: bool = False
    settled: tuple[str, ...] = ()
    due: tuple[str, ...] = ()
    pages: Mapping[str, bytes] = field(default_factory=dict)
    succeeded: bool = False
    tolerated: bool = False
    unusual: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """Something to be sent.

    Attributes:
        since: when it was recorded, sent again, or is to begin at the earliest; seconds since the
            epoch.
        tries: how often it was sent again since.
        cause: the address of the job that it follows from, or "".
    """

    since: float
    tries: int = 0
    cause: str = ""

    def dumps(self) -> bytes:
        """As stored, where a store keeps it as bytes."""
        return f"{self.since!r} {self.tries} {self.cause}".encode()

    @classmethod
    def loads(cls, data: bytes) -> Due:
        """What `dumps` wrote."""
        since, tries, cause = data.decode().split(" ", 2)
        return cls(float(since), int(tries), cause)


NOBODY = "-"
"""The owner of a lease that was released; nobody of this name ever lives."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A job that has begun and has no outcome.

    Attributes:
        owner: the process that has it.
        turn: of the message that it began with; see `TURNS`.
        lapses: how many owners before have died with it.
        started_at: when it began, seconds since the epoch.
        page: the page that the job is in.
    """

    owner: str
    turn: int = 0
    lapses: int = 0
    started_at: float = 0.0
    page: str = ""

    @property
    def released(self) -> bool:
        """Whether its owner has let go of the job, so that nobody runs it."""
        return self.owner == NOBODY

    def dumps(self) -> bytes:
        """As stored, where a store keeps it as bytes."""
        return f"{self.owner} {self.turn} {self.lapses} {self.started_at!r} {self.page}".encode()

    @classmethod
    def loads(cls, data: bytes) -> Lease:
        """What `dumps` wrote."""
        owner, turn, lapses, started_at, page = data.decode().split(" ", 4)
        return cls(owner, int(turn), int(lapses), float(started_at), page)


@dataclass(frozen=True, slots=True)
class Execution:
    """How the job at an address is being, or was, executed.

    Attributes:
        lease: while it is under way.
        info: what `ResultStore.complete` was given with the result; None while there is none.
    """

    lease: Lease | None = None
    info: bytes | None = None

    @property
    def started_at(self) -> float | None:
        """When it began, in seconds since the epoch; None if it is not under way."""
        return self.lease.started_at if self.lease else None


@dataclass(frozen=True, slots=True)
class Record:
    """A run as it is stored.

    Attributes:
        run: its id.
        meta: what `create` was given, unchanged.
        state, generation: see `ResultStore.transition`.
        jobs: how many results there will be; ``remaining`` of them are still to come, ``done`` are
            there.
        failing, dead: jobs without a result whose last failure was not, or was, final.
        created_at, updated_at, ended_at: seconds since the epoch; ``ended_at`` None while
            running; in a run that failed or was cancelled it is when its last job had an outcome.
        failures: failures of this generation by address, as given to `fail`, those of jobs
            that have completed since included.
        finished: the addresses among ``failures`` whose job has a result.
        tolerated: the addresses among ``failures`` whose death is tolerated.
        held: what `checkpoint` put away, by address.
        due: what is to be sent.
    """

    run: str
    meta: bytes
    state: State
    generation: int
    jobs: int
    remaining: int
    failing: int
    dead: int
    created_at: float
    updated_at: float
    ended_at: float | None
    failures: Mapping[str, bytes] = field(default_factory=dict)
    finished: frozenset[str] = frozenset()
    tolerated: frozenset[str] = frozenset()
    held: Mapping[str, bytes] = field(default_factory=dict)
    due: Mapping[str, Due] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Jobs that have a result."""
        return self.jobs - self.remaining


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a listing; the attributes are those of `Record`, and what `create` was given.

    ``due`` is how many things are to be sent. ``skipped`` and ``tolerated`` are as for `Status`,
    and not for a store to say.
    """

    run: str
    name: str | None
    tags: tuple[str, ...]
    state: State
    jobs: int
    done: int
    failing: int
    dead: int
    created_at: float
    updated_at: float
    ended_at: float | None
    due: int = 0
    skipped: int = 0
    tolerated: int = 0

    def matches(self, state: State | None, name: str | None, tag: str | None) -> bool:
        """Whether `ResultStore.scan` with these filters lists it."""
        return (
            (state is None or self.state is state)
            and (name is None or self.name == name)
            and (tag is None or tag in self.tags)
        )


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store is opened with.

    Attributes:
        prefix: names of keys or tables start with it.
        ttl: seconds a run is kept after its last event.
        result_ttl: seconds a run is kept after it has succeeded.
        failed_ttl: seconds a run is kept after its last event if it failed or was cancelled; None:
            as ``ttl``.
    """

    prefix: str = "clutch"
    ttl: float = 22 * 86400
    result_ttl: float = 86400
    failed_ttl: float | None = None

    def kept(self, state: State) -> float:
        """Seconds a run is kept that is in this state."""
        if state is State.SUCCEEDED:
            return self.result_ttl
        if state is State.RUNNING or self.failed_ttl is None:
            return self.ttl
        return self.failed_ttl

    def longest(self) -> float:
        """Seconds for which any run is kept at most."""
        return max(map(self.kept, State))


class ResultStore(ABC):
    """Keeps runs, and answers the questions of workers about them.

    A store object is shared by the threads of a process, and must survive a fork: connections are
    opened on first use, in the process that uses them.

    Errors: a primitive that cannot reach its server raises `StoreUnavailable` and nothing else;
    what it finds there and cannot understand is `CorruptRecord`. Primitives do not retry: callers
    use `patiently`.

    What is due has a key that says what to do; the store itself knows of ``"page <key>"``, which
    it makes due when a branch is over, of ``"failure <step>"``, ``"death <address>"`` and
    ``"end <state>"``, and of the prefix ``"job "``, which is of jobs under way.

    Args:
        url: as given in ``clutch_store``.
        options: prefix and times to live.
    """

    patience: float = 20.0
    """Seconds for which workers try again when the store cannot be reached."""

    def __init__(self, url: str, options: StoreOptions = StoreOptions()) -> None:
        self.url = url
        self.options = options

    # --- the life of a run -----------------------------------------------------------------

    @abstractmethod
    def create(
        self,
        run: str,
        meta: bytes,
        pages: Mapping[str, bytes],
        jobs: int,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        data: Mapping[str, bytes] = NOTHING,
        ends: Iterable[State] = (),
        due: Mapping[str, float] = NOTHING,
        message: tuple[str, bytes] | None = None,
    ) -> None:
        """Store a new run: RUNNING, generation 0, ``remaining == jobs``, listed by `scan`.

        With ``jobs == 0`` it is SUCCEEDED from the start. *name* and *tags* are for `scan`; *data*
        is what `data` returns until a `complete` changes it: its keys are 1 to 255 characters
        without control characters, and each is itself only if every character is. *ends* are the
        states whose reaching makes something due: ``"end SUCCEEDED"``, ``"end CANCELLED"`` unless
        the run was FAILED, and for FAILED ``"death <address of the job that died>"``. *due* is what
        is due from the start, and since when. *message*, behind the key of its queue, is sent in
        the same step; only a store that `serves` as the broker is given one.

        Raises:
            AlreadyEngaged: a run of this id exists; it is left as it is.
        """

    @abstractmethod
    def begin(self, claim: Claim) -> Begun:
        """Ask whether a job is to run, for the process that claims it.

        In this order: no such run, CANCELLED, or another generation: DROP. Otherwise ``receipts``
        are no longer due. A result: DONE. A SUCCEEDED run, or one of the barriers ``unless`` has as
        many results as given there: DROP. A failure that was final, or of this attempt or a later
        one (``turn`` says which attempt the message is of): DROP. A checkpoint: RUN, with ``held``,
        whatever the generation it was put away in. No lease: RUN. A lease of a lower ``turn``: RUN,
        this message was sent by the one that has it. A lease of the owner ``lapsed``, or one
        that was released: that owner has died with the job; RUN, or GIVE_UP when ``limit`` owners
        have. Any other lease: BUSY.

        RUN without ``held`` gives the lease to ``owner``. A FAILED run goes on: the other members
        of the step that failed are to finish. Leases outlive the generation.
        """

    @abstractmethod
    def complete(self, done: Completion) -> Completed:
        """Record a result. The first value of an address wins, in every state and from every
        generation: finished work is never thrown away.

        With the value, and only then (``fresh``): ``remaining`` falls by one; lease and
        checkpoint of the job are dropped; a failure of it no longer counts as failing or dead, and
        when that leaves no dead job a FAILED run is RUNNING again. At ``remaining == 0`` a RUNNING
        run is SUCCEEDED. The changes are made to the run's data. ``settles`` is counted, and
        every barrier counts one result more; one that reaches its width opens: its member
        settles, its branch is over, and its ``then`` is due. In a CANCELLED run barriers count,
        and nothing is due. A barrier with a ``gate`` counts one when that opens in the same call.
        When the one opens that leads to `END`, a RUNNING run is SUCCEEDED, and what has not run
        is skipped.

        ``jobs`` and ``skips`` change how many there are and how many remain. ``stop`` is kept as
        the result `STOPPED` and ends a RUNNING run as SUCCEEDED; what remains is skipped. The
        branches of ``growth`` are there from now on. How many jobs were skipped is counted as
        the barrier ``"skipped"``.

        A step is told to have ``settled`` when ``width`` of its members have completed, in any
        generation, or failed in this one. When one of them has failed loudly in this
        generation, ``"failure <step>"`` is due, once for each step and generation.

        When a branch (`Turn`) is over for the first time in this generation, the next number is
        taken: *limit* the first time, or *width* if that is less, then one more each time. If there
        is such a branch its page is due.

        Whatever is due has the job as its cause. A call that is not fresh, of a message that came
        twice or of a caller that never saw the answer, gets what is still due with this cause.
        ``succeeded`` is told to the *token* that ended the run, however often it asks.
        """

    @abstractmethod
    def fail(self, failed: Attempted) -> Failed:
        """Record a failed attempt of a job.

        The lease of the job is dropped, also if it is of another generation. Nothing else happens
        when there is no such run or it is of another generation, or when this attempt, a later or
        a final one is recorded already (a final record replaces those of attempts up to its own). A
        job that has a result is not counted as failing; otherwise it is counted once, as failing or
        as dead. The first dead job turns a RUNNING run FAILED (``died``), and ``"death
        <address>"`` is due if the run was created so.

        A final failure of a job in a branch of ``tolerances`` is tolerated by the innermost
        parallel that goes on without it: the branch, or the parallel by its need, is over already,
        or not more than ``limit`` branches have died. The first death of a branch is a result:
        ``stand_in`` is recorded for ``member``, and counts towards its barriers. The run is not
        FAILED by it, and the job counts as done.

        Each of ``settles`` is counted as in `complete`; the loud ones have a failed member from
        now on, even when the job's own retry has completed before. ``turns`` are over, as in
        `complete`, if the failure is final; ``retry`` is due if not, and if the job has no result.
        In a CANCELLED run nothing is due. A repeated call gets what is still due with the job as
        its cause, one of an attempt before the recorded one nothing: whoever recorded that one
        sends it. ``died`` is told to the *token* that did it.
        """

    @abstractmethod
    def checkpoint(
        self, run: str, address: str, held: bytes, generation: int, due: Sequence[str] = ()
    ) -> bool:
        """Put the outcome of a job away until it completes; the last call wins.

        The lease is dropped, and *due* is due. Returns False, and does nothing, if there is no such
        run, it is CANCELLED or of another generation, or the job has a result.
        """

    @abstractmethod
    def report(
        self, run: str, address: str, child: str, outcome: bytes
    ) -> tuple[bytes, dict[str, bytes]] | None:
        """Note the outcome of something that a job with a checkpoint waits for.

        Returns the checkpoint and every outcome noted for the job, by child; None if there is no
        such run or checkpoint. The first outcome of a child counts, and lasts until the job
        completes. With an empty *child* nothing is noted.
        """

    @abstractmethod
    def release(self, run: str, address: str, owner: str, turn: int) -> None:
        """Give up the lease of a job that ended without an outcome, if it is that of *owner* and
        *turn*: its owner counts as dead from now on."""

    @abstractmethod
    def transition(
        self,
        run: str,
        sources: Iterable[State],
        target: State,
        generation: int,
        *,
        retry_tolerated: bool = False,
    ) -> bool:
        """Compare and set: move a run of this *generation* from one of *sources* to *target*.

        That is RUNNING or CANCELLED: the other states come of what jobs do. To RUNNING it is a
        resumption: the generation rises by one, failures, failed members and what has been reported
        are forgotten, but not deaths that are tolerated; ``"page 0"`` is due, and a run with
        nothing remaining becomes SUCCEEDED instead. With *retry_tolerated*, deaths are forgotten
        that were tolerated in parallels which wait for more branches. Either way nothing that was
        due before is due any longer, but for ``"failure ..."``, ``"success ..."``,
        ``"death ..."`` and ``"end ..."``: those are of what has happened. Returns whether it moved.

        Raises:
            ValueError: *target* is another state.
        """

    @abstractmethod
    def skip(self, run: str, address: str, number: int, generation: int, idle: int = 0) -> None:
        """Let the next branch that is taken of the parallel at *address* have at least this
        *number*, with *idle* branches fewer under way than it started with (below 0 for more; see
        `Growth`). Nothing happens in another generation, or if the next has the number anyway."""

    # --- what is due -------------------------------------------------------------------------

    @abstractmethod
    def remind(self, run: str, due: Mapping[str, float]) -> None:
        """Make something due, since the time given; what is due already gets that time."""

    @abstractmethod
    def tried(self, run: str, keys: Sequence[str]) -> None:
        """What is due has been sent again: one more of ``tries``, and ``since`` is now."""

    @abstractmethod
    def published(self, run: str, keys: Sequence[str]) -> None:
        """What was due has been sent, and is due no longer."""

    # --- owners of leases ----------------------------------------------------------------------

    @abstractmethod
    def renew(self, owners: Sequence[str], seconds: float) -> None:
        """These processes live, for so many seconds from now."""

    @abstractmethod
    def owners(self) -> dict[str, float]:
        """Every process that was said to live, and for how many more seconds; below 0, it seems to
        have died. One that is not listed has, too."""

    @abstractmethod
    def retire(self, owners: Sequence[str]) -> None:
        """Forget these processes."""

    # --- reading -------------------------------------------------------------------------------

    @abstractmethod
    def page(self, run: str, key: str) -> bytes | MissingType:
        """The page stored under *key*; `Missing` when there is no such page or run."""

    @abstractmethod
    def values(self, run: str, addresses: Sequence[str]) -> list[bytes | MissingType]:
        """The results of the jobs at *addresses*, in their order."""

    @abstractmethod
    def added(self, run: str) -> dict[str, list[tuple[str, Any]]]:
        """The branches that were added, by the address of their parallel; see `Growth`."""

    @abstractmethod
    def counts(self, run: str, barriers: Sequence[str]) -> list[int]:
        """How many results each of these barriers has counted."""

    @abstractmethod
    def data(self, run: str) -> dict[str, bytes] | None:
        """The run's data by key; None when there is no such run."""

    @abstractmethod
    def leases(self, run: str) -> dict[str, Lease]:
        """The jobs that have begun and have no outcome, by address."""

    @abstractmethod
    def infos(self, run: str) -> dict[str, bytes]:
        """The ``info`` of every job that has a result, by address."""

    @abstractmethod
    def read(self, run: str) -> Record | None:
        """The whole record, consistent in itself; None when there is no such run."""

    @abstractmethod
    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        """At most *count* runs, newest first, and the cursor for the next call ("" at the end).

        *state*, *name* and *tag* leave out the runs that do not have them; a store may look at
        *count* runs and return those of them that match, so a page can be empty before the end.
        Runs engaged or forgotten meanwhile may or may not be seen; every other exactly once.
        """

    @abstractmethod
    def delete(self, run: str) -> bool:
        """Forget a run. Returns whether there was one."""

    # --- template methods: right as they are, and free to be made faster -------------------

    def serves(self, place: Mapping[str, Any]) -> bool:
        """Whether the store is the Redis at *place*, and can send messages there with `push`.

        Args:
            place: ``host``, ``port``, ``db``, ``username`` and ``password``, the last two perhaps
                None; empty for no place.
        """
        return False

    def push(self, queue: str, messages: Sequence[bytes]) -> None:
        """Put messages behind the others of a queue of the broker; only where it `serves` as that.

        Args:
            queue: the key that the queue has in Redis.
            messages: as kombu writes them.
        """
        raise NotImplementedError(f"{self!r} is no broker")

    def peek(self, run: str) -> tuple[State, int] | None:
        """The state and generation of a run alone; None when there is no such run."""
        record = self.read(run)
        return (record.state, record.generation) if record else None

    def outline(self, run: str) -> tuple[State, bytes] | None:
        """The state and the ``meta`` of a run alone; None when there is no such run."""
        record = self.read(run)
        return (record.state, record.meta) if record else None

    def brief(self, run: str) -> Record | None:
        """The record of a run without ``failures`` (nor ``finished`` and ``tolerated``), ``held``
        and ``due``."""
        record, none = self.read(run), frozenset[str]()
        if record is None:
            return None
        return replace(record, failures={}, finished=none, tolerated=none, held={}, due={})

    def failures(self, run: str, count: int = 500) -> Iterator[tuple[str, bytes, bool]]:
        """The failures of a run as `read` has them, in any order: the address, what `fail` was
        given, and whether the job has a result since.

        About *count* are in memory at a time. One that comes or goes meanwhile may or may not be
        seen; every other exactly once. There are none of a run that is not there.
        """
        record = self.read(run)
        if record is not None:
            for address, failure in record.failures.items():
                yield address, failure, address in record.finished

    def finished(self, run: str, addresses: Sequence[str]) -> set[str]:
        """Those of *addresses* that have a result."""
        found = zip(addresses, self.values(run, addresses), strict=True)
        return {address for address, value in found if value is not Missing}

    def executions(self, run: str) -> dict[str, Execution]:
        """What is known of each job that is under way or has a result, by address."""
        found = {address: Execution(info=info) for address, info in self.infos(run).items()}
        found.update((at, Execution(lease)) for at, lease in self.leases(run).items())
        return found

    def unfinished(self, cursor: str = "", count: int = 500) -> tuple[list[Summary], str]:
        """`scan` of the runs that are RUNNING, or have something due: those that a sweep is for."""
        found, cursor = self.scan(cursor, count)
        return [each for each in found if each.state is State.RUNNING or each.due], cursor

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        """Wait until the run has ended. Returns its state, also when *timeout* seconds are over.

        This one polls, ever more slowly, up to twice a second.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            state = (self.peek(run) or (None,))[0]
            left = None if deadline is None else deadline - time.monotonic()
            if state is None or state in ENDED or (left is not None and left <= 0):
                return state
            time.sleep(pause if left is None else min(pause, left))
        raise AssertionError("unreachable")

    async def wait_async(self, run: str, timeout: float | None = None) -> State | None:
        """`wait`, without blocking the event loop."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in _pauses():
            state = ((await asyncio.to_thread(self.peek, run)) or (None,))[0]
            left = None if deadline is None else deadline - time.monotonic()
            if state is None or state in ENDED or (left is not None and left <= 0):
                return state
            await asyncio.sleep(pause if left is None else min(pause, left))
        raise AssertionError("unreachable")

    def watch(self, run: str) -> Generator[bool, None, None]:
        """Yield True at once, and again whenever the run may have changed since, until closed.

        In between it yields False now and then, so that a caller with a deadline can look up. This
        one polls, ever more slowly, up to twice a second: it never knows that nothing has changed.
        """
        for pause in _pauses():
            yield True
            time.sleep(pause)

    async def watch_async(self, run: str) -> AsyncGenerator[bool, None]:
        """`watch`, without blocking the event loop."""
        for pause in _pauses():
            yield True
            await asyncio.sleep(pause)

    def check(self) -> list[str]:
        """What is wrong with the server behind the store, in sentences for the operator's log."""
        return []

    def migrate(self) -> list[str]:
        """Create or upgrade what the store needs on its server; what was done, in sentences.

        Raises:
            ConfigurationError: what is there is newer than this code.
        """
        return []

    def prune(self, limit: int = 1000) -> int:
        """Delete at most *limit* expired runs, where the server does not do so itself; how many."""
        return 0

    def close(self) -> None:  # noqa: B027 - a store without connections has nothing to do
        """Let go of connections. The store opens them again when it is used."""

    def patiently(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``call(*args, **kwargs)``, tried again with backoff while the store is unavailable.

        For at most `patience` seconds, after which the last `StoreUnavailable` is raised.
        """
        try:
            return call(*args, **kwargs)
        except StoreUnavailable:
            pass
        deadline = time.monotonic() + self.patience
        pause = 0.05
        while True:
            time.sleep(random.uniform(pause / 2, pause))
            try:
                return call(*args, **kwargs)
            except StoreUnavailable:
                if time.monotonic() >= deadline:
                    raise
            pause = min(pause * 2, 2.0)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {without_secrets(self.url)}>"


def listed(store: ResultStore, count: int = 500, **wanted: Any) -> Iterator[Summary]:
    """Every run that `ResultStore.scan` finds with the filters *wanted*, *count* at a time."""
    return every(partial(store.scan, **wanted), count)


def every(
    look: Callable[[str, int], tuple[list[Summary], str]], count: int = 500
) -> Iterator[Summary]:
    """Every run that *look* finds, which is called as `ResultStore.scan` is, *count* at a time."""
    cursor, more = "", True
    while more:
        found, cursor = look(cursor, count)
        yield from found
        more = bool(cursor)


def _pauses() -> Iterator[float]:
    pause = 0.005
    while True:
        yield pause
        pause = min(pause * 1.5, 0.5)
