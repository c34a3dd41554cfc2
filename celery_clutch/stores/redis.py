"""Runs in Redis: ``redis://``, ``rediss://``, ``redis+socket://``, ``sentinel://``, ``redis+cluster://``.

A run is nine hashes, all with the hash tag ``{run}`` so that they live together in a cluster, all
with a time to live: ``:run`` (what there is once), ``:pages``, ``:results`` and ``:jobs`` (what
`complete` was given, by address), ``:leases``, ``:marks`` (the smaller kinds of rows, each field
with its kind in front), ``:members``, ``:data`` and ``:due``. Two keys are of all runs:
``<prefix>:runs`` is an index for listings, and ``<prefix>:owners`` says which processes live. The
hashes ``<prefix>:counts:<bucket>`` are of none, and live for as long as who counts says.

Whatever must be atomic is a script in ``lua/``. What every job needs, `begin`, `complete` and
`fail`, is one script each, for runs and jobs as most are. Everything else reads, decides by the
rules in `machine`, and writes with one script that refuses if the run has changed since; then it is
done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import threading
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from importlib import resources
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from ..errors import ConfigurationError, CorruptRecord, MissingExtra, StoreUnavailable
from ..model.status import State
from .base import (
    ENDED,
    NOTHING,
    TURNS,
    Attempted,
    Barrier,
    Begun,
    Claim,
    Completed,
    Completion,
    Failed,
    Settles,
    StoreOptions,
    Turn,
    Verdict,
    without_secrets,
)
from .buckets import Buckets
from .machine import TransactionalStore
from .redis_ear import Ear
from .redis_url import connection
from .rows import Head, Rows, Wanted

try:
    import redis
    import redis.asyncio
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError
    from redis.retry import Retry
except ImportError as exc:  # pragma: no cover - exercised in a bare environment
    raise MissingExtra(
        "the Redis store needs the redis package: pip install 'celery-clutch[redis]'"
    ) from exc

T = TypeVar("T")

logger = logging.getLogger(__name__)

_RECHECK = 10.0  # seconds after which a waiting client looks at the state itself
_LOOK_UP = 1.0  # seconds after which a watching client is told that nothing has changed
_CONFLICTS = 3  # after so many a transaction has the run to itself
_LOCKED = 2.0  # seconds for which it has it, should it never come to its end
_GIVE_UP = 10.0  # seconds after which a run that is always busy is unavailable
_LISTED_FOR = 600  # seconds for which a run of a cluster may be in the index and not be there
_KEPT = (State.RUNNING, State.SUCCEEDED, State.FAILED)  # a cancelled run as one that failed
_SENTINEL = b"\xff"  # as in lua/common.lua
_UNUSUAL = 0  # what a script answers where the rules have to decide

_NAMES = ("run", "pages", "results", "jobs", "leases", "marks", "members", "data", "due")
"""What the names of the keys of a run end with, in the order in which scripts get them."""

_PLACES = {
    "page": ("pages", ""),
    "result": ("results", ""),
    "info": ("jobs", ""),
    "lease": ("leases", ""),
    "member": ("members", ""),
    "data": ("data", ""),
    "due": ("due", ""),
    **{kind: ("marks", f"{kind}:") for kind in ("failure", "held", "child", "barrier", "mark")},
}
"""Where the rows of a kind are, and what their fields start with."""


_PLACE = {"host": "localhost", "port": 6379, "db": 0, "username": None, "password": None}
"""Where a server is, by default."""


class _Conflict(StoreUnavailable):
    """Another process has changed the run meanwhile, or has it to itself."""


class _Script:
    """Lua scripts that follow each other as one, called by its digest."""

    def __init__(self, *names: str) -> None:
        folder = resources.files(__package__) / "lua"
        self.text = "".join((folder / f"{name}.lua").read_text("utf-8") for name in names)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[Any], *args: Any) -> Any:
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.execute_command("EVAL", self.text, len(keys), *keys, *args)


class _Line:
    """One connection of a client's pool.

    What a client does around a command (retries, measurements, locks) takes as long as to send it
    and to read the answer. A client that has a connection to itself gives it back when it is
    collected; if that is while a thread has the lock of the pool, up to redis-py 5.2 that thread
    waits for itself. So this is given back by whoever has it.
    """

    def __init__(self, client: Any) -> None:
        self._pool = client.connection_pool
        command = () if _MAJOR > 5 else ("_",)
        self._connection: Any = self._pool.get_connection(*command)

    def is_open(self) -> bool:
        """Whether the server has neither closed it nor said what nobody has asked for."""
        try:
            return not self._connection.can_read(timeout=0)
        except (redis.ConnectionError, OSError):
            return False

    def execute_command(self, *args: Any) -> Any:
        self._connection.send_packed_command([_packed(args)])
        return self._connection.read_response()

    def release(self) -> None:
        """Give it back to the pool."""
        self._pool.release(self._connection)

    def close(self) -> None:
        """Close the connection, which may be out of step, and give it back."""
        self._connection.disconnect()
        self.release()


def _packed(args: Iterable[Any]) -> bytes:
    """A command as Redis reads it. redis-py takes three times as long, and sends what is large in
    pieces."""
    parts = [b""]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    parts[0] = b"*%d\r\n" % (len(parts) - 1)
    return b"".join(parts)


_create, _begin, _complete, _fail, _commit, _lock, _read, _delete = [
    _Script("common", name)
    for name in ("create", "begin", "complete", "fail", "commit", "lock", "read", "delete")
]
_unlist, _renew, _owners, _finished = [
    _Script(name) for name in ("unlist", "renew", "owners", "finished")
]


class RedisStore(TransactionalStore, Buckets):
    """Runs in one Redis server, a master found by Sentinel, or a cluster.

    Args:
        url: see the module; credentials, database and client options as redis-py reads them from
            a URL. ``sentinel://host:port,host:port/service`` or Celery's form with ``;`` and
            ``?master_name=service``.
        client: a ready client, instead of one made from *url* (for tests).
    """

    def __init__(
        self, url: str, options: StoreOptions = StoreOptions(), *, client: Any = None
    ) -> None:
        super().__init__(url, options)
        self._given = client
        self._own: dict[str, Any] = {}  # the client, once there is one
        self._kept: list[_Line] = []
        self._kept_by = 0  # the process
        self._ears: list[Ear] = []
        self._ears_of = 0
        self._kept_for = [_milliseconds(options.kept(state)) for state in _KEPT]
        self._index = f"{options.prefix}:runs"
        self._living = f"{options.prefix}:owners"
        self._buckets = f"{options.prefix}:counts"
        self._thread = _Thread()
        # A worker has many jobs of few runs; and redis-py sends bytes as they are.
        self._keys = lru_cache(maxsize=64)(self._made_keys)
        self._common = lru_cache(maxsize=64)(self._made_common)
        if client is None:
            _check(url)  # a URL that makes no sense is an error now, not at the first job

    # --- what every job needs: one script each ------------------------------------------------

    def begin(self, claim: Claim) -> Begun:
        if claim.unless:
            return self._repeat(super().begin, claim)
        numbers = f"{claim.limit} {claim.turn} {claim.turn // TURNS}"
        # Few arguments: redis-py takes a microsecond to send one.
        joined = f"{claim.generation} {claim.owner} {numbers} {claim.page} {claim.lapsed}"
        with _errors, _reading(claim.run):
            answer = self._call(_begin, claim.run, claim.address, joined, *claim.receipts)
            if isinstance(answer, int):
                return Begun(Verdict(answer))
            number, more = answer
            verdict = Verdict(number)
            if verdict is Verdict.BUSY:
                return Begun(verdict, owner=more.decode())
            return Begun(verdict, more)

    def complete(self, done: Completion) -> Completed:
        if not done.is_usual:
            return self._repeat(super().complete, done)
        key, since = done.next or ("", "")
        queue, message = done.message or ("", b"")
        args = [done.address, done.value, done.token, done.info, key, since]
        args += [done.generation if queue else "", message]
        args += [*_if_any(_settles(done.settles)), len(done.barriers)]
        for barrier in done.barriers:
            args += [barrier.name, _width(barrier), barrier.then]
            args += [*_if_any(_settles(barrier.settles)), *_if_any(_turn(barrier.turn))]
        for name, value in done.changes.items():
            args += [name, int(value is not None), value or b""]
        with _errors, _reading(done.run):
            answer = self._call(_complete, done.run, *args, queue=queue)
            if answer == _UNUSUAL:
                return self._repeat(super().complete, done)
            return _completed(answer)

    def fail(self, failed: Attempted) -> Failed:
        if failed.final and failed.tolerances:
            return self._repeat(super().fail, failed)
        retry, since = failed.retry or ("", "")
        args = [failed.address, failed.generation, failed.failure, failed.attempt]
        args += [int(failed.final), failed.token, retry, since, len(failed.settles)]
        for settles in failed.settles:
            args += [*_settles(settles), int(settles.loud)]
        for turn in failed.turns:
            args += _turn(turn)
        with _errors, _reading(failed.run):
            answer = self._call(_fail, failed.run, *args)
            if answer == _UNUSUAL:
                return self._repeat(super().fail, failed)
            recorded, died, settled, due, pages = answer
            return Failed(
                recorded=bool(recorded),
                died=bool(died),
                settled=_texts(settled),
                due=tuple(sorted(_texts(due))),
                pages=_texts_by(pages),
            )

    # --- what is decided by the machine: again, if another process came first -------------------

    def checkpoint(
        self, run: str, address: str, held: bytes, generation: int, due: Sequence[str] = ()
    ) -> bool:
        return self._repeat(super().checkpoint, run, address, held, generation, due)

    def report(
        self, run: str, address: str, child: str, outcome: bytes
    ) -> tuple[bytes, dict[str, bytes]] | None:
        return self._repeat(super().report, run, address, child, outcome)

    def release(self, run: str, address: str, owner: str, turn: int) -> None:
        self._repeat(super().release, run, address, owner, turn)

    def transition(
        self,
        run: str,
        sources: Iterable[State],
        target: State,
        generation: int,
        *,
        retry_tolerated: bool = False,
    ) -> bool:
        move = partial(super().transition, retry_tolerated=retry_tolerated)
        return self._repeat(move, run, tuple(sources), target, generation)

    def skip(self, run: str, address: str, number: int, generation: int, idle: int = 0) -> None:
        self._repeat(super().skip, run, address, number, generation, idle)

    def remind(self, run: str, due: Mapping[str, float]) -> None:
        self._repeat(super().remind, run, due)

    def tried(self, run: str, keys: Sequence[str]) -> None:
        self._repeat(super().tried, run, keys)

    def published(self, run: str, keys: Sequence[str]) -> None:
        self._repeat(super().published, run, keys)

    # --- rows -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, run: str, wanted: Wanted = NOTHING) -> Iterator[Rows | None]:
        """The rows of a run; see `TransactionalStore.transaction`.

        Raises:
            StoreUnavailable: at the end, if the run has changed meanwhile; nothing is written.
        """
        token = self._thread.token
        with _errors, _reading(run):
            fields = self._fields(run, token)
            head = _head(run, fields) if fields else None
        if head is None:
            yield None
            return
        reads: list[str] = [kind for kind, keys in wanted.items() if keys]

        def load(kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
            reads.append(kind)
            return self.rows(run, kind, keys)

        rows = Rows(replace(head), load, self._known(run, wanted))
        try:
            yield rows
        except BaseException:
            if token:
                with suppress(StoreUnavailable):  # then it lapses
                    self._write(run, "", token, head, Rows(head, load))
            raise
        # What has been read of nothing but that there is the run need not be so still.
        version = fields[b"version"] if reads or rows.head != head else b""
        if token or rows.head != head or rows.cleared or rows.changed:
            self._write(run, version, token, head, rows)

    def _known(self, run: str, wanted: Wanted) -> dict[str, dict[str, bytes | None]]:
        """Rows of several kinds, read in one round trip."""
        kinds = [(kind, list(keys)) for kind, keys in wanted.items() if keys]
        if not kinds:
            return {}
        names = self._keys(run)
        with _errors, _reading(run):
            pipe = self._client.pipeline(transaction=False)
            for kind, keys in kinds:
                place, start = _PLACES[kind]
                pipe.hmget(names[_NAMES.index(place)], [start + key for key in keys])
            found = zip(kinds, pipe.execute(), strict=True)
            return {kind: dict(zip(keys, values, strict=True)) for (kind, keys), values in found}

    def notify(self, run: str) -> None:
        with _errors:
            self._client.publish(f"{self._channels(run)}changed", "")

    def insert(self, head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> bool:
        return self.insert_and_push(head, rows, "", b"")

    def insert_and_push(
        self, head: Head, rows: Mapping[str, Mapping[str, bytes]], queue: str, message: bytes
    ) -> bool:
        horizon = min(self._kept_for)
        fields = {**_changeable(head), "meta": head.meta}
        fields["name"] = orjson.dumps(head.name)
        fields["tags"] = orjson.dumps(list(head.tags))
        fields["ends"] = " ".join(head.ends)
        del fields["ended"]  # the script has the time
        args = [head.run, horizon, head.state.value, message, len(fields), *_flat(fields)]
        for kind, some in rows.items():
            place, start = _PLACES[kind]
            for key, value in some.items():
                args += [_NAMES.index(place) + 1, start + key, value]
        with _errors:
            if self._clustered:
                return self._create_listed(head.run, args)
            keys = [*self._keys(head.run), self._index]
            if queue:
                keys.append(queue)
            common = self._common(head.run)
            created = self._on_kept(lambda client: _create(client, keys, *common, *args), idle=True)
            if created:
                self._forget_gone([run.decode() for run in created[1:]])
        return created is not None

    def snapshot(
        self, run: str, kinds: Sequence[str]
    ) -> tuple[Head, dict[str, dict[str, bytes]]] | None:
        places = list(dict.fromkeys(_PLACES[kind][0] for kind in kinds))
        numbers = [_NAMES.index(place) + 1 for place in places]
        with _errors, _reading(run):
            found = _read(self._client, self._keys(run), *self._common(run), *numbers)
            if not found:
                return None
            hashes = dict(zip(places, map(_pairs, found[1:]), strict=True))
            rows = {kind: _rows(kind, hashes[_PLACES[kind][0]]) for kind in kinds}
            return _head(run, _pairs(found[0])), rows

    def rows(self, run: str, kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
        place, start = _PLACES[kind]
        name = self._keys(run)[_NAMES.index(place)]
        with _errors, _reading(run):
            if keys is None:
                return _rows(kind, self._client.hgetall(name))
            if not keys:
                return {}
            values = self._asked("HMGET", name, *(start + key for key in keys))
            found = zip(keys, values, strict=True)
            return {key: value for key, value in found if value is not None}

    def some_rows(self, run: str, kind: str, count: int) -> Iterator[Mapping[str, bytes]]:
        place, start = _PLACES[kind]
        name = self._keys(run)[_NAMES.index(place)]
        seen: set[str] = set()  # a field may come twice
        cursor, more = 0, True
        while more:
            with _errors, _reading(run):
                cursor, fields = self._client.hscan(name, cursor, f"{start}*", count)
                rows = _rows(kind, fields)
            yield {key: value for key, value in rows.items() if key not in seen}
            seen |= rows.keys()
            more = bool(int(cursor))

    def heads(self, before: tuple[float, str] | None, count: int) -> list[Head]:
        found: list[Head] = []
        more, number = True, count + 100
        with _errors:
            while more and len(found) < count:
                upper = "+inf" if before is None else before[0]
                batch = self._client.zrevrangebyscore(
                    self._index, upper, "-inf", start=0, num=number, withscores=True
                )
                listed = [(score, run.decode()) for run, score in batch]
                later = [each for each in listed if before is None or each < before]
                more = len(batch) == number
                if later:
                    before = later[-1]
                    found += self._heads(later)
                else:  # so many runs were created at the same moment
                    number *= 2
        return found[:count]

    def delete(self, run: str) -> bool:
        with _errors:
            existed = _delete(self._client, self._keys(run), *self._common(run))
            self._client.zrem(self._index, run)
        return bool(existed)

    # --- owners of leases -----------------------------------------------------------------------

    def renew(self, owners: Sequence[str], seconds: float) -> None:
        with _errors:
            _renew(self._client, [self._living], seconds, self.options.longest(), *owners)

    def owners(self) -> dict[str, float]:
        with _errors:
            now, found = _owners(self._client, [self._living])
            return {owner: float(till) - float(now) for owner, till in _texts_by(found).items()}

    def retire(self, owners: Sequence[str]) -> None:
        if owners:
            with _errors:
                self._client.zrem(self._living, *owners)

    # --- counts by time ---------------------------------------------------------------------

    def add_counts(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> None:
        with _errors:
            pipe = self._client.pipeline(transaction=False)
            for bucket, more in counts.items():
                key = f"{self._buckets}:{bucket}"
                for name, number in more.items():
                    pipe.hincrby(key, name, number)
                pipe.pexpire(key, _milliseconds(seconds))
            pipe.execute()

    def read_counts(self, buckets: Sequence[str]) -> list[dict[str, int]]:
        with _errors:
            pipe = self._client.pipeline(transaction=False)
            for bucket in buckets:
                pipe.hgetall(f"{self._buckets}:{bucket}")
            found = pipe.execute()
        return [{name.decode(): int(number) for name, number in each.items()} for each in found]

    # --- made faster ------------------------------------------------------------------------

    def serves(self, place: Mapping[str, Any]) -> bool:
        if self._given or _connection(self.url)[0] != "server":
            return False
        options = self._client.connection_pool.connection_kwargs
        own = {name: options.get(name) or default for name, default in _PLACE.items()}
        return "path" not in options and place == own

    def push(self, queue: str, messages: Sequence[bytes]) -> None:
        with _errors:
            self._on_kept(lambda client: client.execute_command("LPUSH", queue, *messages))

    def data(self, run: str) -> dict[str, bytes] | None:
        found = self.rows(run, "data", None)
        with _errors:
            if not found and not self._client.exists(self._keys(run)[0]):
                return None
        return dict(found)

    def peek(self, run: str) -> tuple[State, int] | None:
        with _errors, _reading(run):
            name, generation = self._asked("HMGET", self._keys(run)[0], "state", "gen")
            return None if name is None else (_state(name), int(generation))

    def outline(self, run: str) -> tuple[State, bytes] | None:
        with _errors, _reading(run):
            name, meta = self._asked("HMGET", self._keys(run)[0], "state", "meta")
            return None if name is None else (_state(name), meta)

    def finished(self, run: str, addresses: Sequence[str]) -> set[str]:
        if not addresses:
            return set()
        results = self._keys(run)[_NAMES.index("results")]
        with _errors:
            found = _finished(self._client, [results], *addresses)
            return {address for address, done in zip(addresses, found, strict=True) if done}

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with _errors, _reading(run), self._listening(f"{self._channels(run)}ended") as ear:
            while True:
                state = (self.peek(run) or (None,))[0]
                left = _RECHECK if deadline is None else deadline - time.monotonic()
                if state is None or state in ENDED or left <= 0:
                    return state
                told = ear.hear(min(left, _RECHECK))
                if told:  # a run that was deleted has no state
                    return State(told)

    async def wait_async(self, run: str, timeout: float | None = None) -> State | None:
        if self._given is not None or _connection(self.url)[0] != "server":
            return await super().wait_async(run, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        client = self._async_client()
        with _errors, _reading(run):
            async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(f"{self._channels(run)}ended")
                await channel.get_message(timeout=1.0)
                while True:
                    name: Any = await client.hget(self._keys(run)[0], "state")
                    state = None if name is None else _state(name)
                    left = _RECHECK if deadline is None else deadline - time.monotonic()
                    if state is None or state in ENDED or left <= 0:
                        return state
                    pause = min(left, _RECHECK)
                    await asyncio.wait_for(channel.get_message(timeout=pause), pause + 5)

    def watch(self, run: str) -> Generator[bool, None, None]:
        with _errors, self._listening(f"{self._channels(run)}changed") as ear:
            changed, looked = True, time.monotonic()
            while True:
                yield changed
                changed = ear.hear(_LOOK_UP) is not None
                while ear.hear(0) is not None:
                    pass  # what has happened meanwhile is one change
                if time.monotonic() - looked > _RECHECK:
                    changed = True  # perhaps a message was lost
                looked = time.monotonic() if changed else looked

    async def watch_async(self, run: str) -> AsyncGenerator[bool, None]:
        if self._given is not None or _connection(self.url)[0] != "server":
            async for changed in super().watch_async(run):
                yield changed
            return
        with _errors:
            client = self._async_client()
            async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(f"{self._channels(run)}changed")
                await channel.get_message(timeout=1.0)
                changed, looked = True, time.monotonic()
                while True:
                    yield changed
                    changed = await channel.get_message(timeout=_LOOK_UP) is not None
                    while await channel.get_message(timeout=0) is not None:
                        pass
                    if time.monotonic() - looked > _RECHECK:
                        changed = True
                    looked = time.monotonic() if changed else looked

    def check(self) -> list[str]:
        try:
            with _errors:
                # Managed servers allow INFO where they refuse CONFIG.
                policy = self._client.info("memory").get("maxmemory_policy", "noeviction")
        except (CorruptRecord, StoreUnavailable):
            return []  # there is nothing to say then
        if policy == "noeviction":
            return []
        return [
            f"{self!r} evicts keys when memory is short (maxmemory-policy {policy}): runs can lose "
            "results and never end. Set maxmemory-policy to noeviction, or give clutches a Redis "
            "of their own with clutch_store."
        ]

    def close(self) -> None:
        client = self._own.pop("client", None)
        while self._kept:
            self._kept.pop().close()
        while self._ears:
            self._ears.pop().close()
        if client is not None:
            client.close()

    # --- private --------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        # redis-py's pools notice a fork, so one client serves a process and its children.
        client = self._given or self._own.get("client")
        if client is None:
            # Of threads that come here at once one has its client kept, and all use that: redis-py
            # closes the pool of a client that is dropped (5 to 8), also under a call on its way.
            client = self._own.setdefault("client", _connect(self.url))
        return client

    @property
    def _clustered(self) -> bool:
        return isinstance(self._client, redis.RedisCluster)

    def _call(self, script: _Script, run: str, *args: Any, queue: str = "") -> Any:
        """Call *script* about *run*, as soon as nobody has that to itself.

        *queue* is the key of one that it may push to.
        """
        keys, common = self._keys(run), self._common(run)
        if queue:
            keys = (*keys, queue.encode())
        answer = self._called(script, keys, *common, *args)
        deadline = time.monotonic() + _GIVE_UP
        while answer is None:
            if time.monotonic() > deadline:
                raise _Conflict(f"run {run!r} is always busy")
            time.sleep(random.uniform(0.001, 0.005))
            answer = self._called(script, keys, *common, *args)
        return answer

    def _called(self, script: _Script, keys: Sequence[bytes], *args: Any) -> Any:
        """Call *script*, one of those of every job, on a connection that is kept for them."""
        return self._on_kept(lambda client: script(client, keys, *args))

    def _asked(self, *command: Any) -> Any:
        """The answer to a command that only reads, as the server sends it."""
        try:
            return self._on_kept(lambda client: client.execute_command(*command))
        except (redis.ConnectionError, OSError):  # the server has closed it: a pool opens another
            return self._client.execute_command(*command)

    def _on_kept(self, call: Callable[[Any], T], *, idle: bool = False) -> T:
        """What *call* returns of a connection that is kept for what every job needs.

        A pool looks at a connection whenever it lends it; this looks only at one that may have been
        *idle* for so long that the server has closed it.
        """
        client = self._client
        if not isinstance(client, redis.Redis) or self._counted:
            return call(client)
        line = self._line(client, idle)
        try:
            answer = call(line)
        except BaseException:
            line.close()
            raise
        if self._kept:
            line.release()
        else:
            self._kept.append(line)
        return answer

    def _line(self, client: Any, idle: bool) -> _Line:
        """The connection that is kept, or another one."""
        if self._kept_by != os.getpid():
            self._kept, self._kept_by = [], os.getpid()
        try:
            line = self._kept.pop()
        except IndexError:  # there is none yet, or another thread has it
            return _Line(client)
        if not idle or line.is_open():
            return line
        line.close()
        return _Line(client)

    @property
    def _counted(self) -> bool:
        """Whether a connection that is kept may be one too few for others."""
        return bool(self._given) or "max_connections=" in self.url

    @contextmanager
    def _listening(self, name: str) -> Iterator[Ear]:
        """A connection that has subscribed to a channel. It is kept for who listens next."""
        ear = self._kept_ear(name) or self._new_ear(name)
        usable = False
        try:
            yield ear
            usable = True
        except GeneratorExit:  # who watches has seen enough
            usable = True
            raise
        finally:
            if not (usable and self._keep(ear)):
                ear.close()

    def _kept_ear(self, name: str) -> Ear | None:
        """The connection that is kept, with a subscription; None if it is none any more."""
        if self._ears_of != os.getpid():
            for inherited in self._ears:
                inherited.close()
            self._ears, self._ears_of = [], os.getpid()
        try:
            ear = self._ears.pop()
        except IndexError:  # there is none, or another thread has it
            return None
        try:
            return _listens(ear, name)
        except (RedisError, OSError):  # the server has closed it meanwhile
            return None

    def _new_ear(self, name: str) -> Ear:
        return _listens(Ear(self._client), name)

    def _keep(self, ear: Ear) -> bool:
        """Keep a connection that is to listen no more; whether that was done."""
        if self._counted or self._ears:
            return False
        try:
            ear.hush()
        except (RedisError, OSError):
            return False
        self._ears.append(ear)
        return True

    def _async_client(self) -> Any:
        _, url, kwargs = _connection(self.url)
        return redis.asyncio.Redis.from_url(url, **kwargs)

    def _made_keys(self, run: str) -> tuple[bytes, ...]:
        base = self._channels(run)
        return tuple((base + name).encode() for name in _NAMES)

    def _channels(self, run: str) -> str:
        """What the names of the channels of *run* start with."""
        return f"{self.options.prefix}:{{{run}}}:"

    def _made_common(self, run: str) -> tuple[bytes, ...]:
        """The first arguments of every script about *run*."""
        running, *ended = self._kept_for
        common = running, " ".join(map(str, ended)), self._channels(run)
        return tuple(str(value).encode() for value in common)

    def _repeat(self, call: Callable[..., T], *args: Any) -> T:
        """What *call* returns once no other process comes between."""
        deadline = time.monotonic() + _GIVE_UP
        conflicts = 0
        try:
            while True:
                try:
                    return call(*args)
                except _Conflict:
                    if time.monotonic() > deadline:
                        raise
                conflicts += 1
                if conflicts == _CONFLICTS:
                    self._thread.token = uuid4().hex
                time.sleep(random.uniform(0, 0.002))
        finally:
            self._thread.token = ""

    def _fields(self, run: str, token: str) -> dict[bytes, bytes]:
        """The fields of the run's hash; with a *token* nobody else can write until `_write`."""
        if token:
            found = _lock(self._client, self._keys(run), *self._common(run), token, _LOCKED)
            if found is None:
                raise _Conflict(f"another process has run {run!r} to itself")
            return _pairs(found)
        fields: dict[bytes, bytes] = self._client.hgetall(self._keys(run)[0])
        return fields

    def _write(self, run: str, version: bytes | str, token: str, before: Head, rows: Rows) -> None:
        """Write what a transaction has changed, and give up its lock.

        Raises:
            _Conflict: the run is no longer of this *version*, if one is given.
        """
        head, old = rows.head, _changeable(before)
        fields = {key: value for key, value in _changeable(head).items() if old[key] != value}
        moved = (head.state, head.generation) != (before.state, before.generation)
        told = head.state.value if moved else ""
        touched = int(head.updated_at != before.updated_at)
        args = [version, token, touched, told, head.state.value, len(fields), *_flat(fields)]
        args.append(len(rows.cleared))
        for kind in sorted(rows.cleared):
            place, start = _PLACES[kind]
            args += [_NAMES.index(place) + 1, start]
        for kind, changed in rows.changed.items():
            place, start = _PLACES[kind]
            for key, value in changed.items():
                known = int(value is not None)
                args += [_NAMES.index(place) + 1, start + key, known, value or b""]
        with _errors:
            if not _commit(self._client, self._keys(run), *self._common(run), *args):
                raise _Conflict(f"run {run!r} has changed meanwhile")

    def _create_listed(self, run: str, args: Sequence[Any]) -> bool:
        """`insert` where no script can write a run and the index.

        The run is listed first: if this process dies then, there is no run that nobody finds.
        """
        if not self._client.exists(self._keys(run)[0]):
            self._list(run, time.time())
        created = _create(self._client, self._keys(run), *self._common(run), *args)
        if created is None:
            return False
        self._list(run, float(created[0]))
        horizon = float(created[0]) - min(self._kept_for) / 1000
        old = self._client.zrangebyscore(self._index, "-inf", horizon, start=0, num=10)
        self._forget_gone([each.decode() for each in old])
        return True

    def _list(self, run: str, created: float) -> None:
        pipe = self._client.pipeline(transaction=False)
        pipe.zadd(self._index, {run: created})
        pipe.pexpire(self._index, 2 * max(self._kept_for))
        pipe.execute()

    def _forget_gone(self, runs: Sequence[str]) -> None:
        """Take those of *runs* that are gone out of the index."""
        pipe = self._client.pipeline(transaction=False)
        for run in runs:
            pipe.exists(self._keys(run)[0])
        there = pipe.execute() if runs else []
        self._unlist([run for run, found in zip(runs, there, strict=True) if not found])

    def _unlist(self, gone: Sequence[str]) -> None:
        """Take runs that were not there out of the index, unless they are there now.

        In a cluster, where a run is listed first, they may be there soon.
        """
        keys = [] if self._clustered else [self._keys(run)[0] for run in gone]
        if gone:
            _unlist(self._client, [self._index, *keys], _LISTED_FOR, *gone)

    def _heads(self, listed: Sequence[tuple[float, str]]) -> list[Head]:
        """What is there of runs in the index."""
        pipe = self._client.pipeline(transaction=False)
        for _, run in listed:
            keys = self._keys(run)
            pipe.hmget(keys[0], *_LISTED)
            pipe.hlen(keys[_NAMES.index("due")])
        answers = pipe.execute(raise_on_error=False)
        found, gone = [], []
        for (created, run), fields, due in zip(listed, answers[::2], answers[1::2], strict=True):
            try:
                head = _listed_head(run, fields, due)
            except (AttributeError, KeyError, TypeError, ValueError, ResponseError) as exc:
                logger.warning("the record of run %r cannot be read: %r", run, exc)
                continue
            if head is None:
                gone.append(run)
            else:
                # The index has the order, and so the cursor of a listing.
                found.append(replace(head, created_at=created))
        self._unlist(gone)
        return found


class _Thread(threading.local):
    """What a thread is doing.

    Attributes:
        token: of its lock, while a transaction is to have the run to itself.
    """

    token = ""


_LISTED = (
    *("state", "gen", "left", "failing", "dead", "ender", "ended"),
    *("jobs", "name", "tags", "ends", "created", "updated"),
)


def _listed_head(run: str, values: Any, due: Any) -> Head | None:
    """The head of a run in a listing, if it is there."""
    for each in (values, due):
        if isinstance(each, Exception):
            raise each
    fields = {name.encode(): value for name, value in zip(_LISTED, values, strict=True)}
    if fields[b"state"] is None:
        return None
    fields[b"meta"] = b""  # it can be large
    # The field that is always there is not due.
    return replace(_head(run, fields), due=max(0, due - 1))


def _head(run: str, fields: Mapping[bytes, bytes]) -> Head:
    ended = fields[b"ended"]
    return Head(
        run=run,
        meta=fields[b"meta"],
        name=orjson.loads(fields[b"name"]),
        tags=tuple(orjson.loads(fields[b"tags"])),
        ends=tuple(fields[b"ends"].decode().split()),
        jobs=int(fields[b"jobs"]),
        remaining=int(fields[b"left"]),
        state=_state(fields[b"state"]),
        generation=int(fields[b"gen"]),
        failing=int(fields[b"failing"]),
        dead=int(fields[b"dead"]),
        ender=fields[b"ender"].decode(),
        created_at=float(fields[b"created"]),
        updated_at=float(fields[b"updated"]),
        ended_at=float(ended) if ended else None,
    )


def _completed(answer: Any) -> Completed:
    """What `complete` answers; few parts, as redis-py takes some microseconds to read one."""
    if isinstance(answer, bytes):
        answer = answer, (), (), ()
    numbers, settled, due, pages = answer
    remaining, fresh, generation, succeeded = map(int, numbers.split())
    return Completed(
        remaining=remaining,
        fresh=bool(fresh),
        generation=generation,
        succeeded=bool(succeeded),
        settled=_texts(settled),
        due=tuple(sorted(_texts(due))),
        pages=_texts_by(pages),
    )


def _width(barrier: Barrier) -> int | str:
    """The width of a barrier, a plus if it grows, and behind a blank its gate."""
    if not barrier.gate and not barrier.grows:
        return barrier.width
    return f"{barrier.width}{'+' if barrier.grows else ''} {barrier.gate}"


def _changeable(head: Head) -> dict[str, Any]:
    """The fields of the run's hash that change; of the times scripts write their own."""
    return {
        "state": head.state.value,
        "gen": head.generation,
        "jobs": head.jobs,
        "left": head.remaining,
        "failing": head.failing,
        "dead": head.dead,
        "ender": head.ender,
        "ended": "" if head.ended_at is None else head.ended_at,
    }


def _rows(kind: str, fields: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """The rows of a kind among the fields of the hash that has them."""
    start = _PLACES[kind][1].encode()
    return {
        field[len(start) :].decode(): value
        for field, value in fields.items()
        if field != _SENTINEL and field.startswith(start)
    }


def _settles(settles: Settles | None) -> list[Any]:
    return [settles.step, settles.member, settles.width] if settles else ["", "", 0]


def _turn(turn: Turn | None) -> list[Any]:
    return [turn.address, turn.member, turn.limit, turn.width] if turn else ["", "", 0, 0]


def _listens(ear: Ear, name: str) -> Ear:
    """*ear*, which listens to a channel. An error closes it."""
    try:
        ear.listen(name)
    except BaseException:
        ear.close()
        raise
    return ear


def _if_any(args: list[Any]) -> list[Any]:
    """Arguments that end with a width, behind a flag; the flag alone where there are none."""
    return [1, *args] if args[-1] else [0]


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _texts(values: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)


def _texts_by(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in _pairs(flat).items()}


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [part for pair in fields.items() for part in pair]


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _state(value: bytes) -> State:
    return State(value.decode())


# Codes of replies that say: not now. (redis-py has classes for some of them, and then leaves the
# code out of the text; which ones differs from 4.5 to 8.1.)
_NOT_NOW = re.compile(
    r"\b(OOM|READONLY|LOADING|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|NOPERM)\b"
    r"|can't run this command|unauthenticated"
)
_NOT_NOW_TYPES = (
    "OutOfMemoryError",
    "ReadOnlyError",
    "MasterDownError",
    "ClusterDownError",
    "TryAgainError",
    "NoPermissionError",
)


class _Errors:
    """redis-py's exceptions as ours."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if exc is None or isinstance(exc, StoreUnavailable):
            return
        if isinstance(exc, ResponseError):
            text = str(exc)
            if type(exc).__name__ in _NOT_NOW_TYPES or _NOT_NOW.search(text):
                raise StoreUnavailable(f"Redis does not do what it is asked: {text}") from exc
            raise CorruptRecord(f"Redis refused a command: {text}") from exc
        if isinstance(exc, (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)):
            raise StoreUnavailable(f"Redis cannot be reached: {exc}") from exc


_errors = _Errors()


@contextmanager
def _reading(run: str) -> Iterator[None]:
    """What cannot be read back is a `CorruptRecord` that names the run."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"the record of run {run!r} cannot be read: {exc!r}") from None


_MAJOR = int(redis.__version__.partition(".")[0])


def _connection(url: str) -> tuple[str, Any, dict[str, Any]]:
    return connection(url, _MAJOR)


def _check(url: str) -> None:
    """Refuse what redis-py would refuse at the first command only.

    Raises:
        ConfigurationError: without the credentials of *url*.
    """
    place = without_secrets(url)
    try:
        kind, target, kwargs = _connection(url)
    except ValueError as exc:
        raise ConfigurationError(f"{place} is not the URL of a Redis: {exc}") from None
    try:
        if kind != "sentinel":
            redis.ConnectionPool.from_url(target, **kwargs).make_connection()
    except (TypeError, ValueError, RedisError) as exc:
        problem = str(exc)
        if "@" in url or "password" in url:  # the text may have a piece of it
            problem = "redis-py refuses its options. In a password & is written as %26, = as %3D"
        raise ConfigurationError(f"{place} is not the URL of a Redis: {problem}") from None


def _connect(url: str) -> Any:
    kind, target, kwargs = _connection(url)
    retry = Retry(NoBackoff(), 0)  # a call that is sent twice may be done twice
    if kind == "sentinel":
        service = kwargs.pop("service_name")
        db = kwargs.pop("db", 0)
        # The password is the master's; Sentinels with one of their own are rare.
        own = {"socket_connect_timeout": 5.0, "socket_timeout": 5.0, "retry": retry}
        sentinel = redis.Sentinel(target, sentinel_kwargs=own)
        return sentinel.master_for(service, db=db, retry=retry, **kwargs)
    if kind == "cluster":
        once = {"retry": retry} if _MAJOR > 5 else {"cluster_error_retry_attempts": 0}
        return redis.RedisCluster.from_url(target, **once, **kwargs)
    return redis.Redis.from_url(target, **kwargs)
