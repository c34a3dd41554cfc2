"""Runs in Redis: ``redis://``, ``rediss://``, ``redis+socket://``, ``sentinel://``, ``redis+cluster://``.

A run is up to seven keys, all with the hash tag ``{run}`` so that they live together in a cluster,
all with a time to live: ``:run`` (counters and state), ``:pages``, ``:results`` (by slot),
``:marks`` (failures, tallies, what is held), ``:jobs`` (executions, by address), ``:data`` and
``:members`` (who has settled a step). One more key, ``<prefix>:runs``, is an index for listings.
Whatever must be atomic is a script in ``lua/``.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

import orjson

from ..errors import (
    AlreadyEngaged,
    ConfigurationError,
    CorruptRecord,
    MissingExtra,
    StoreUnavailable,
)
from ..model.status import State
from .base import (
    ENDED,
    NOTHING,
    Begun,
    Completed,
    Execution,
    Failed,
    Joins,
    Missing,
    MissingType,
    Record,
    ResultStore,
    Settles,
    StoreOptions,
    Summary,
    Verdict,
    without_secrets,
)

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

logger = logging.getLogger(__name__)

_VERDICTS = {int(verdict): Begun(verdict) for verdict in Verdict}
_RECHECK = 10.0  # seconds after which a waiting client looks at the state itself
_LOOK_UP = 1.0  # seconds after which a watching client is told that nothing has changed


class _Script:
    """A Lua script, called by its digest."""

    def __init__(self, name: str) -> None:
        self.text = (resources.files(__package__) / "lua" / f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Any, keys: Sequence[Any], *args: Any) -> Any:
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)


_create, _add_page, _begin, _complete, _fail, _hold, _take, _transition, _read, _delete = [
    _Script(name)
    for name in (
        *("create", "add_page", "begin", "complete", "fail"),
        *("hold", "take", "transition", "read", "delete"),
    )
]


class RedisStore(ResultStore):
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
        self._own: Any = None
        self._kept: list[Any] = []
        self._kept_by = 0  # the process
        self._ttl = max(1, int(options.ttl * 1000))
        self._result_ttl = max(1, int(options.result_ttl * 1000))
        self._index = f"{options.prefix}:runs"
        if client is None:
            _check(url)  # a URL that makes no sense is an error now, not at the first job

    # --- primitives ----------------------------------------------------------------------

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
        flat = [part for pair in (*pages.items(), *data.items()) for part in pair]
        times = (self._ttl, self._result_ttl)
        with _errors:
            created = _create(
                self._client,
                self._keys(run),
                *(meta, units, name or "", orjson.dumps(list(tags)), *times),
                *(jobs, len(pages), *flat),
            )
            if not created:
                raise AlreadyEngaged(f"a run with the id {run!r} exists")
            self._list(run)

    def page(self, run: str, key: str) -> bytes | MissingType:
        with _errors:
            page: bytes | None = self._client.hget(self._keys(run)[1], key)
            return Missing if page is None else page

    def add_page(self, run: str, key: str, page: bytes) -> bool:
        with _errors:
            return bool(_add_page(self._client, self._keys(run), key, page))

    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        times = (self._ttl, self._result_ttl)
        with _errors:
            answer = self._call(_begin, run, address, slot, generation, limit, *times)
        return Begun(Verdict.RUN, answer) if isinstance(answer, bytes) else _VERDICTS[answer]

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
        step = (settles.step, settles.member, settles.width) if settles else ("", "", 0)
        barrier = (joins.barrier, joins.width) if joins else ("", 0)
        flat = [
            part
            for key, changed in changes.items()
            for part in (key, int(changed is not None), changed or b"")
        ]
        with _errors, _reading(run):
            remaining, fresh, succeeded, report, settled, joined = self._call(
                _complete,
                run,
                *(address, slot, value, generation, token, int(job)),
                *(self._ttl, self._result_ttl, self._channels(run)),
                *(info, *step, *barrier, *flat),
            )
        return Completed(
            remaining=remaining,
            fresh=bool(fresh),
            succeeded=bool(succeeded),
            report=step[0] if report else "",
            settled=step[0] if settled else "",
            joined=bool(joined),
        )

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
        flat = [part for s in settles for part in (s.step, s.member, s.width, int(s.loud))]
        with _errors:
            recorded, died, *told = _fail(
                self._client,
                self._keys(run),
                *(address, slot, failure, generation, token, attempt, int(final)),
                *(self._ttl, self._result_ttl, self._channels(run)),
                *flat,
            )
        due = list(zip(settles, told, strict=False))  # nothing is told when the run is gone
        reports = tuple(each.step for each, bits in due if bits & 1)
        settled = tuple(each.step for each, bits in due if bits & 2)
        return Failed(bool(recorded), bool(died), reports, settled)

    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        if not slots:
            return []
        with _errors:
            found = self._client.hmget(self._keys(run)[2], list(slots))
        return [Missing if value is None else value for value in found]

    def hold(self, run: str, address: str, held: bytes) -> None:
        with _errors:
            _hold(self._client, self._keys(run), address, held, self._ttl, self._result_ttl)

    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        times = (self._ttl, self._result_ttl)
        with _errors:
            return int(_take(self._client, self._keys(run), key, lane, after, generation, *times))

    def data(self, run: str) -> dict[str, bytes] | None:
        with _errors, _reading(run):
            keys = self._keys(run)
            found = self._client.hgetall(keys[5])
            if not found and not self._client.exists(keys[0]):
                return None
            return {key.decode(): value for key, value in found.items()}

    def executions(self, run: str) -> dict[str, Execution]:
        with _errors, _reading(run):
            found = self._client.hgetall(self._keys(run)[4])
            return {address.decode(): _execution(value) for address, value in found.items()}

    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        times = (self._ttl, self._result_ttl, self._channels(run))
        states = [state.value for state in sources]
        with _errors:
            moved = _transition(
                self._client, self._keys(run), target.value, generation, *times, *states
            )
        return bool(moved)

    def read(self, run: str) -> Record | None:
        with _errors, _reading(run):
            fields, marked = map(_pairs, _read(self._client, self._keys(run)))
            return _record(run, fields, marked) if fields else None

    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        with _errors:
            upper, start = [*cursor.split(" ", 1), ""][:2] if cursor else ("+inf", "")
            runs = self._client.zrevrangebyscore(
                self._index, upper, "-inf", start=0, num=count + 100, withscores=True
            )
            names = [(run.decode(), score) for run, score in runs]
            if start:
                names = [each for each in names if (each[1], each[0]) < (float(upper), start)]
            page = names[:count]
            more = len(names) > count or (not page and len(runs) == count + 100)
            found = self._summaries([run for run, _ in page])
            if len(found) < len(page):
                seen = {summary.run for summary in found}
                self._unlist([run for run, _ in page if run not in seen])
        following = f"{page[-1][1]!r} {page[-1][0]}" if page and more else ""
        return [each for each in found if each.matches(state, name, tag)], following

    def delete(self, run: str) -> bool:
        with _errors:
            existed = _delete(self._client, self._keys(run), self._channels(run))
            self._client.zrem(self._index, run)
        return bool(existed)

    # --- made faster ------------------------------------------------------------------------

    def peek(self, run: str) -> tuple[State, int] | None:
        with _errors, _reading(run):
            name, generation = self._client.hmget(self._keys(run)[0], "state", "gen")
            return None if name is None else (_state(name), int(generation))

    def finished(self, run: str, slots: Sequence[str]) -> set[str]:
        with _errors:
            pipe = self._client.pipeline(transaction=False)
            for slot in slots:
                pipe.hexists(self._keys(run)[2], slot)
            return {slot for slot, found in zip(slots, pipe.execute(), strict=True) if found}

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with _errors, self._client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(f"{self._channels(run)}ended")
            channel.get_message(timeout=1.0)  # the subscription stands before the state is read
            while True:
                state = (self.peek(run) or (None,))[0]
                left = _RECHECK if deadline is None else deadline - time.monotonic()
                if state is None or state in ENDED or left <= 0:
                    return state
                channel.get_message(timeout=min(left, _RECHECK))

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
        with _errors, self._client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(f"{self._channels(run)}changed")
            channel.get_message(timeout=1.0)
            changed, looked = True, time.monotonic()
            while True:
                yield changed
                changed = channel.get_message(timeout=_LOOK_UP) is not None
                while channel.get_message(timeout=0) is not None:
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
        client, self._own = self._own, None
        self._kept.clear()
        if client is not None:
            client.close()

    # --- private --------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        # redis-py's pools notice a fork, so one client serves a process and its children.
        client = self._given or self._own
        if client is None:
            client = self._own = _connect(self.url)
        return client

    def _call(self, script: _Script, run: str, *args: Any) -> Any:
        """Call *script*, one of the two of every job, on a connection that is kept for them.

        A pool looks at a connection whenever it lends it: a quarter of what such a call takes.
        """
        if self._kept_by != os.getpid():
            self._kept, self._kept_by = [], os.getpid()
        try:
            client = self._kept.pop()
        except IndexError:  # there is none yet, or another thread has it
            client = None
        if client is None:
            client = self._lasting()
        # An exception leaves the connection to the pool: it may be out of step.
        answer = script(client, self._keys(run), *args)
        if not self._kept:
            self._kept.append(client)
        return answer

    def _lasting(self) -> Any:
        """A client that holds one connection of the pool, unless those are counted."""
        client = self._client
        if not isinstance(client, redis.Redis) or self._given or "max_connections=" in self.url:
            return client
        return redis.Redis(connection_pool=client.connection_pool, single_connection_client=True)

    def _async_client(self) -> Any:
        _, url, kwargs = _connection(self.url)
        return redis.asyncio.Redis.from_url(url, **kwargs)

    def _keys(self, run: str) -> list[str]:
        base = f"{self.options.prefix}:{{{run}}}:"
        names = ("run", "pages", "results", "marks", "jobs", "data", "members")
        return [base + name for name in names]

    def _channels(self, run: str) -> str:
        """What the names of the channels of *run* start with."""
        return f"{self.options.prefix}:{{{run}}}:"

    def _list(self, run: str) -> None:
        """Put *run* into the index, and take out some of the oldest if they have expired."""
        now = time.time()
        pipe = self._client.pipeline(transaction=False)
        pipe.zadd(self._index, {run: now})
        # Longer than any of its runs, unless nothing is engaged for all that time.
        pipe.pexpire(self._index, 2 * max(self._ttl, self._result_ttl))
        pipe.zrangebyscore(
            self._index, "-inf", now - min(self._ttl, self._result_ttl) / 1000, start=0, num=10
        )
        self._unlist([old.decode() for old in pipe.execute()[2]])

    def _unlist(self, runs: Sequence[str]) -> None:
        """Take those of *runs* that are gone out of the index."""
        pipe = self._client.pipeline(transaction=False)
        for run in runs:
            pipe.exists(self._keys(run)[0])
        there = pipe.execute() if runs else []
        gone = [run for run, found in zip(runs, there, strict=True) if not found]
        if gone:
            self._client.zrem(self._index, *gone)

    def _summaries(self, runs: Sequence[str]) -> list[Summary]:
        """What is there of *runs*."""
        pipe = self._client.pipeline(transaction=False)
        for run in runs:
            pipe.hmget(self._keys(run)[0], *_LISTED)
        summaries: list[Summary] = []
        for run, values in zip(runs, pipe.execute(raise_on_error=False), strict=True):
            try:
                summaries.extend(_summary(run, values))
            except (AttributeError, KeyError, TypeError, ValueError, ResponseError) as exc:
                logger.warning("the record of run %r cannot be read: %r", run, exc)
        return summaries


def _summary(run: str, values: Any) -> Iterator[Summary]:
    """The run of a listing from its fields, if it is there."""
    if isinstance(values, Exception):
        raise values
    ended, state, name, tags, *counts = values
    if state is None:
        return
    jobs, done, failing, dead, created, updated = counts
    yield Summary(
        run=run,
        name=name.decode() or None,
        tags=tuple(orjson.loads(tags)),
        state=_state(state),
        jobs=int(jobs),
        done=int(done),
        failing=int(failing),
        dead=int(dead),
        created_at=float(created),
        updated_at=float(updated),
        ended_at=float(ended) if ended else None,
    )


_LISTED = (
    *("ended", "state", "name", "tags"),
    *("jobs", "done", "failing", "dead", "created", "updated"),
)


def _execution(value: bytes) -> Execution:
    """A field of ``:jobs``: "!generation info" of a job that has completed, else "starts time"."""
    first, _, rest = value.partition(b" ")
    if first.startswith(b"!"):
        return Execution(info=rest)
    return Execution(int(first), float(rest))


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _record(run: str, fields: Mapping[bytes, bytes], marked: Mapping[bytes, bytes]) -> Record:
    marks: dict[str, dict[str, bytes]] = {"failure": {}, "finished": {}, "held": {}}
    for key, value in marked.items():
        kind, _, address = key.decode().partition(":")
        marks.setdefault(kind, {})[address] = value
    ended = fields.get(b"ended")
    return Record(
        run=run,
        meta=fields[b"meta"],
        state=_state(fields[b"state"]),
        generation=int(fields[b"gen"]),
        remaining=int(fields[b"left"]),
        done=int(fields[b"done"]),
        failing=int(fields[b"failing"]),
        dead=int(fields[b"dead"]),
        created_at=float(fields[b"created"]),
        updated_at=float(fields[b"updated"]),
        ended_at=float(ended) if ended else None,
        failures=marks["failure"],
        finished=frozenset(marks["finished"]),
        held=marks["held"],
    )


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


_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 5.0, "socket_timeout": 20.0}
_MAJOR = int(redis.__version__.partition(".")[0])
_CERT_REQS = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}


def _check(url: str) -> None:
    """Refuse what redis-py would refuse at the first command only.

    Raises:
        ConfigurationError: without the credentials of *url*.
    """
    try:
        kind, target, kwargs = _connection(url)
        if kind != "sentinel":
            redis.ConnectionPool.from_url(target, **kwargs).make_connection()
    except (TypeError, ValueError, RedisError) as exc:
        problem = f"{without_secrets(url)} is not the URL of a Redis: {exc}"
        raise ConfigurationError(problem) from None


def _connection(url: str) -> tuple[str, Any, dict[str, Any]]:
    """What *url* means: ("server" or "cluster", url, options) or ("sentinel", hosts, options)."""
    scheme, _, rest = url.partition("://")
    if scheme == "sentinel":
        return "sentinel", *_sentinel(url)
    place = rest.partition("?")[0]
    parts = urlsplit(f"redis://{rest}")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    query.pop("decode_responses", None)  # what we read is bytes
    if scheme == "redis+socket":
        if not parts.path:
            raise ValueError("it has no path")
        query["db"] = query.pop("virtual_host", query.get("db", "0")).strip("/")
        # redis-py 4 knows no timeouts for these.
        kwargs = {key: value for key, value in _DEFAULTS.items() if key not in query and _MAJOR > 4}
        return "server", f"unix://{place}?{urlencode(query)}", kwargs
    _port(parts)
    database = query.get("db", parts.path.strip("/")) or "0"
    if not database.isdecimal() or (scheme == "redis+cluster" and int(database)):
        allowed = "a cluster has database 0 only" if scheme == "redis+cluster" else "not a number"
        raise ValueError(f"database {database!r}: {allowed}")
    if "ssl_cert_reqs" in query:  # Celery's documents write the names of the ssl module
        query["ssl_cert_reqs"] = _CERT_REQS.get(query["ssl_cert_reqs"], query["ssl_cert_reqs"])
    kwargs = {key: value for key, value in _DEFAULTS.items() if key not in query}
    if query.get("ssl_cert_reqs") == "none":  # redis-py 6 refuses it together with its default
        kwargs["ssl_check_hostname"] = False
    kind, real = ("cluster", "redis") if scheme == "redis+cluster" else ("server", scheme)
    base = f"{real}://{place}"
    return kind, f"{base}?{urlencode(query)}" if query else base, kwargs


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:  # its text may be a piece of the password
        raise ValueError(
            "the port is not a number up to 65535 (a / in a password is written as %2F)"
        ) from None


def _sentinel(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    hosts: list[tuple[str, int]] = []
    kwargs: dict[str, Any] = dict(_DEFAULTS)
    service = ""
    for part in url.replace(",", ";").split(";"):
        split = urlsplit(part if "://" in part else f"sentinel://{part}")
        hosts.append((split.hostname or "localhost", _port(split) or 26379))
        path = split.path.strip("/")
        if path.isdecimal():
            kwargs["db"] = int(path)
        elif path:
            service = path
        if split.password:
            kwargs["password"] = unquote(split.password)
        if split.username:
            kwargs["username"] = unquote(split.username)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        service = query.get("master_name", service)
        if "db" in query:
            kwargs["db"] = int(query["db"])
    if not service:
        raise ValueError(
            "it does not say which master to ask Sentinel for: "
            "sentinel://host:26379/mymaster, or ?master_name=mymaster"
        )
    return hosts, {**kwargs, "service_name": service}


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
