"""The store interface. The docstrings here are the specification; `StoreContract` tests it.

A store keeps *runs*. A run is a record (`Record`), its pages, its results by slot, its failures and
executions by address, and its shared data by key. All values are bytes that mean nothing to the
store. Everything a primitive does happens at once, or not at all, as seen by every other process.

A run is written by many workers at once, and every message may arrive twice, late, or never. So
the rules below are all of the kind "the first one counts".
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
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

from ..errors import StoreUnavailable
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


class Verdict(enum.IntEnum):
    """What `ResultStore.begin` says of a job."""

    RUN = 1
    """Run it."""
    DONE = 2
    """Its result is there already: return at once, so that what follows goes on."""
    DROP = 3
    """The run is cancelled, gone, or of another generation: do nothing, and let nothing follow."""
    GIVE_UP = 4
    """It was started too often without an outcome: it keeps killing its worker."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer of `ResultStore.begin`: the verdict, and what `ResultStore.hold` put away."""

    verdict: Verdict
    held: bytes | None = None


@dataclass(frozen=True, slots=True)
class Settles:
    """One step of a generation that waits for ``width`` members to settle.

    ``loud`` says that a failure of the member is this step's to report; a failure that an inner
    step reports settles the outer ones without a sound.
    """

    step: str
    member: str
    width: int
    loud: bool = True


@dataclass(frozen=True, slots=True)
class Joins:
    """A barrier of a generation that opens when ``width`` slots have their result."""

    barrier: str
    width: int


@dataclass(frozen=True, slots=True)
class Completed:
    """What `ResultStore.complete` did.

    Attributes:
        remaining: results still to come; -1 when there is no such run.
        fresh: this call's value is the one recorded.
        succeeded: this call ended the run.
        report: the step whose ``on_failure`` is due now, or "". Each is returned once.
        settled: the step whose last member this call settled, or "". Each is returned once.
        joined: this call opened the barrier.
    """

    remaining: int
    fresh: bool = False
    succeeded: bool = False
    report: str = ""
    settled: str = ""
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """What `ResultStore.fail` did.

    Attributes:
        recorded: the failure was news.
        died: this call took the run from RUNNING to FAILED.
        reports: the steps whose ``on_failure`` is due now. Each is returned once.
        settled: the steps whose last member this call settled. Each is returned once.
    """

    recorded: bool = False
    died: bool = False
    reports: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A run as it is stored.

    Attributes:
        run: its id.
        meta: what `create` was given, unchanged.
        state, generation: see `ResultStore.transition`.
        remaining: results still to come.
        done: completed jobs (results recorded with ``job=True``).
        failing, dead: jobs without a result whose last failure was not, or was, final.
        created_at, updated_at, ended_at: seconds since the epoch; ``ended_at`` None while running.
        failures: failures of this generation by address, as given to `fail`, those of jobs
            that have completed since included.
        finished: the addresses among ``failures`` whose job has a result.
        held: what `hold` put away, by address.
    """

    run: str
    meta: bytes
    state: State
    generation: int
    remaining: int
    done: int
    failing: int
    dead: int
    created_at: float
    updated_at: float
    ended_at: float | None
    failures: Mapping[str, bytes] = field(default_factory=dict)
    finished: frozenset[str] = frozenset()
    held: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Execution:
    """How the job at an address is being, or was, executed.

    Attributes:
        starts: how often `ResultStore.begin` has said RUN since the job's last outcome.
        started_at: when it last did, in seconds since the epoch; None if it has not since.
        info: what `ResultStore.complete` was given with the result; None while there is none.
    """

    starts: int = 0
    started_at: float | None = None
    info: bytes | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in a listing; the attributes are those of `Record`, and what `create` was given."""

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
        result_ttl: seconds a run is kept after it has ended.
    """

    prefix: str = "clutch"
    ttl: float = 22 * 86400
    result_ttl: float = 86400


class ResultStore(ABC):
    """Keeps runs, and answers the questions of workers about them.

    A store object is shared by the threads of a process, and must survive a fork: connections are
    opened on first use, in the process that uses them.

    Errors: a primitive that cannot reach its server raises `StoreUnavailable` and nothing else;
    what it finds there and cannot understand is `CorruptRecord`. Primitives do not retry: callers
    use `patiently`.

    Args:
        url: as given in ``clutch_store``.
        options: prefix and times to live.
    """

    patience: float = 20.0
    """Seconds for which workers try again when the store cannot be reached."""

    def __init__(self, url: str, options: StoreOptions = StoreOptions()) -> None:
        self.url = url
        self.options = options

    # --- primitives ----------------------------------------------------------------------

    @abstractmethod
    def create(
        self,
        run: str,
        meta: bytes,
        pages: Mapping[str, bytes],
        units: int,
        *,
        jobs: int = 0,
        name: str | None = None,
        tags: Sequence[str] = (),
        data: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """Store a new run: RUNNING, generation 0, ``remaining == units``.

        With ``units == 0`` it is SUCCEEDED from the start. *jobs*, *name* and *tags* are for
        `scan`; *data* is what `data` returns until a `complete` changes it.

        Raises:
            AlreadyEngaged: a run of this id exists; it is left as it is.
        """

    @abstractmethod
    def page(self, run: str, key: str) -> bytes | MissingType:
        """The page stored under *key*; `Missing` when there is no such page or run."""

    @abstractmethod
    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        """Ask whether the job at *address* is to run.

        In this order: no such run, CANCELLED, or another generation: DROP. A result in *slot*:
        DONE. More than *limit* calls that said RUN for this address and generation since its last
        outcome (a `complete`, `fail` or `hold`): GIVE_UP. Else RUN. A FAILED run goes on: the other
        members of the step that failed are to finish. `executions` shows what was said RUN to.

        ``held`` of the answer is what `hold` put away for the address, whatever the generation
        it was put away in; a held job is never given up.
        """

    @abstractmethod
    def complete(
        self,
        run: str,
        address: str,
        slot: str,
        value: bytes,
        *,
        generation: int,
        token: str,
        job: bool = True,
        settles: Settles | None = None,
        joins: Joins | None = None,
        changes: Mapping[str, bytes | None] = NOTHING,
        info: bytes = b"",
    ) -> Completed:
        """Record a result. The first value of a slot wins, in every state and from every
        generation: finished work is never thrown away.

        With the value, and only then: ``remaining`` falls by one, ``done`` rises by one if *job*;
        what was held for the address is dropped; a failure of *address* no longer counts as failing
        or dead, and when that leaves no dead job a FAILED run is RUNNING again. At ``remaining ==
        0`` a RUNNING run is SUCCEEDED. Each key of *changes* is set in the run's data, or deleted
        where it is None. *info* is kept for `executions`.

        *settles*, if given and if *generation* is the run's, counts the member as settled, also
        when the slot has a value already (once for each member and generation, whether it completed
        or failed). When ``width`` members have settled and one of them has failed loudly,
        ``report`` is the step, once for each step and generation. ``settled`` is the step when
        ``width`` members have settled, failed or not, once as well.

        *joins*, if given and if *generation* is the run's, counts *slot* in the barrier, also when
        it has a value already, but once for each slot and generation. The call that makes it
        ``width`` is told that it ``joined``, and so is every later call for the same *address*: a
        message that comes again after its worker was killed has to open the barrier.

        *token* names this execution of the job. A caller that never saw the answer calls again with
        the same token, and is told again that it ``succeeded``, what to ``report`` and what
        it ``settled``.
        """

    @abstractmethod
    def fail(
        self,
        run: str,
        address: str,
        slot: str,
        failure: bytes,
        *,
        attempt: int,
        final: bool,
        generation: int,
        token: str,
        settles: Sequence[Settles] = (),
    ) -> Failed:
        """Record a failed attempt of the job at *address*.

        Nothing happens when there is no such run, when it is of another *generation*, or when this
        attempt or a later one is recorded already (a final record replaces one of the same attempt
        that was not). A job that has a result in *slot* is not counted as failing; otherwise it is
        counted once, as failing or, if *final*, as dead. The first dead job turns a RUNNING
        run FAILED (``died``).

        Each of *settles* is counted as in `complete`; the loud ones have a failed member from
        now on, even when the job's own retry has completed before. *token* is as in `complete`, for
        ``died``, ``reports`` and ``settled``.
        """

    @abstractmethod
    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        """The results in *slots*, in their order."""

    @abstractmethod
    def hold(self, run: str, address: str, held: bytes) -> None:
        """Put something away for the job at *address*, until it completes. The last call wins."""

    @abstractmethod
    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        """Take the next number, from 0, of the counter *key* in this generation.

        *after* is the number that the *lane* took before, -1 at first. The call of a lane that
        is repeated gets the same number again; one with an *after* that is older than that gets -1,
        and so does every call when `begin` would say DROP.
        """

    @abstractmethod
    def data(self, run: str) -> dict[str, bytes] | None:
        """The run's data by key; None when there is no such run."""

    @abstractmethod
    def executions(self, run: str) -> dict[str, Execution]:
        """What is known of the execution of each address that has begun in this generation, or has
        completed in any."""

    @abstractmethod
    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        """Compare and set: move a run of this *generation* from one of *sources* to *target*.

        To RUNNING it is a resumption: the generation rises by one, failures, starts, barriers and
        counters are forgotten, and a run with nothing remaining becomes SUCCEEDED instead. Returns
        whether it moved.
        """

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

    def peek(self, run: str) -> tuple[State, int] | None:
        """The state and generation of a run alone; None when there is no such run."""
        record = self.read(run)
        return (record.state, record.generation) if record else None

    def finished(self, run: str, slots: Sequence[str]) -> set[str]:
        """Those of *slots* that hold a result."""
        found = zip(slots, self.values(run, slots), strict=True)
        return {slot for slot, value in found if value is not Missing}

    def add_page(self, run: str, key: str, page: bytes) -> bool:
        """Store one more page of a run, or store it again; whether `page` will find it.

        It will not if there is no such run. This one stores nothing; messages then carry what would
        be in the page.
        """
        return False

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
    cursor, more = "", True
    while more:
        found, cursor = store.scan(cursor, count, **wanted)
        yield from found
        more = bool(cursor)


def without_secrets(url: str) -> str:
    """*url* for people to read: without user, password and query."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _pauses() -> Iterator[float]:
    pause = 0.005
    while True:
        yield pause
        pause = min(pause * 1.5, 0.5)
