"""The Celery app of the integration tests and its tasks: for the tests, and for their workers.

Environment variables:
    CLUTCH_TEST_REDIS: the Redis server; default ``redis://localhost:6379``.
    CLUTCH_TEST_DB: the number of its database for the broker; the next one is for results. Default 8;
        each process of pytest-xdist uses two more.
    CLUTCH_TEST_STORE: the URL of another result store than Redis.
    CLUTCH_IT_CONF: Celery settings of this worker, as JSON.
    CLUTCH_IT_WORKER: set in workers, so that there are tasks that only they know.

Tasks and the signal handler here note in Redis what happens, where the tests read it:
    ``it:ran:<run>``: the addresses of the jobs whose function was called, in order.
    ``it:notes:<tag>``: what handlers were called with.
    ``it:sent:<run>``: a hash, how often each task was published for the run, ``n`` of all together, how
    many through each ``queue``, and ``bytes`` of all. Handlers count for the run "".
    ``it:ids:<run>``: the task id of each job, by address.
    ``it:flag:<name>``: a list that jobs wait on.
    ``it:failing:<run>``: a hash, how often the job at an address is still to fail.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import celery
import fakeredis
import redis
from celery import Celery, shared_task, signals
from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult
from celery.worker import state as worker_state
from celery.worker.control import inspect_command
from unit.reference import value_of

import celery_clutch.runtime.task
import celery_clutch.signals
from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    Failed,
    ResultStore,
    Skipped,
    Stop,
    hookimpl,
    parallel,
    previous_results,
)
from celery_clutch.compile import publish
from celery_clutch.errors import ClutchError
from celery_clutch.extend.plugins import runtime

from . import faults

FLAG_PATIENCE = 60
"""Seconds for which a job waits for a flag before it fails."""


def database(offset: int = 0) -> str:
    """The URL of one of the databases that the tests may use."""
    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    first = int(os.environ.get("CLUTCH_TEST_DB", "8"))
    first += 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # side by side, two each
    return f"{server}/{first + offset}"


def make_app(conf: Mapping[str, Any]) -> Celery:
    """An app with the tasks of this module."""
    made = Celery("clutch_it", task_cls="celery_clutch:ClutchTask", set_as_current=False)
    made.conf.update(
        broker_url=database(0),
        result_backend=database(1),
        broker_connection_retry_on_startup=True,
        worker_lost_wait=1.0,
        worker_send_task_events=False,
        result_expires=600,
        clutch_max_starts=3,
        clutch_lease=3.0,
        clutch_max_result_bytes=100_000,
    )
    if store := os.environ.get("CLUTCH_TEST_STORE"):
        made.conf.clutch_store = store
    made.conf.update(conf)
    return made


_local_notebook: redis.Redis | None = None


def notebook() -> redis.Redis:
    """Where the tests and their workers write down what happens."""
    return _local_notebook or _redis_notebook()


@functools.cache
def _redis_notebook() -> redis.Redis:
    return redis.Redis.from_url(
        database(1), decode_responses=True, socket_timeout=FLAG_PATIENCE + 10
    )


@contextmanager
def local_notebook() -> Iterator[None]:
    """Write down in this process, where no worker of another process is asked."""
    global _local_notebook
    _local_notebook = fakeredis.FakeRedis(server=fakeredis.FakeServer(), decode_responses=True)
    try:
        with counting():
            yield
    finally:
        _local_notebook = None


_counters = 0


@contextmanager
def counting() -> Iterator[None]:
    """Note what this process publishes, while anyone wants that."""
    global _counters
    _counters += 1
    signals.before_task_publish.connect(count)
    try:
        yield
    finally:
        _counters -= 1
        if not _counters:
            signals.before_task_publish.disconnect(count)


@inspect_command(name="clutch_it_busy")
def busy(state: Any, **_: Any) -> dict[str, int]:
    """How many tasks this worker has ever accepted, and how many it has at hand."""
    return {
        "ever": sum(worker_state.total_count.values()),
        "now": len(worker_state.reserved_requests),
    }


def count(
    sender: Any = None, headers: Any = None, body: Any = None, routing_key: Any = None, **_: Any
) -> None:
    """Note every message and its size."""
    job = headers.get("clutch") or {}
    run = job.get("run", "")
    size = len(json.dumps([headers, body], default=str))
    pipe = notebook().pipeline(transaction=False)
    pipe.hincrby(f"it:sent:{run}", sender, 1)
    pipe.hincrby(f"it:sent:{run}", "n", 1)
    pipe.hincrby(f"it:sent:{run}", "bytes", size)
    pipe.hincrby(f"it:sent:{run}", f"queue {routing_key}", 1)
    if job:
        pipe.hset(f"it:ids:{run}", job["at"], headers["id"])
    pipe.execute()


def header(task: Any) -> dict[str, Any]:
    """What the message of a running job says of its run; eager requests have it in `headers` only."""
    return getattr(task.request, "clutch", None) or (task.request.headers or {}).get("clutch") or {}


def ran(task: Any) -> None:
    """Note that the function of a job was called."""
    job = header(task)
    if job:
        notebook().rpush(f"it:ran:{job['run']}", job["at"])


def wait_for(flag: str) -> None:
    """Wait until the test raises *flag*."""
    if notebook().blpop([f"it:flag:{flag}"], timeout=FLAG_PATIENCE) is None:
        raise RuntimeError(f"nobody raised the flag {flag}")


# --- handlers -------------------------------------------------------------------------------


@shared_task(name="it.note")
def note(status: dict[str, Any], tag: str, kind: str) -> None:
    """A handler that writes down what it was told."""
    notebook().rpush(f"it:notes:{tag}", json.dumps({"kind": kind, "status": status}))


@shared_task(name="it.note_queue", bind=True)
def note_queue(self: Any, status: dict[str, Any], tag: str, kind: str) -> None:
    """A handler that writes down which queue it came through."""
    queue = self.request.delivery_info["routing_key"]
    notebook().rpush(f"it:notes:{tag}", json.dumps({"kind": kind, "status": {"queue": queue}}))


@shared_task(name="it.bad_note")
def bad_note(status: dict[str, Any], tag: str, kind: str) -> None:
    """A handler that fails."""
    note(status, tag, kind)
    raise RuntimeError("the handler is broken")


@shared_task(name="it.linked")
def linked(value: Any, tag: str) -> None:
    """A task's own ``link``: gets the value."""
    notebook().rpush(f"it:notes:{tag}", json.dumps({"kind": "link", "status": value}))


@shared_task(name="it.link_failed")
def link_failed(request: Any, exc: Any, traceback: Any, tag: str = "") -> None:
    """A task's own ``link_error``."""
    kind = type(exc).__name__
    notebook().rpush(f"it:notes:{tag}", json.dumps({"kind": "link_error", "status": kind}))


# --- jobs that succeed ----------------------------------------------------------------------


@shared_task(name="it.value", bind=True)
def value(self: Any, x: Any = None) -> Any:
    """Return *x*."""
    ran(self)
    return x


@shared_task(name="it.seen", bind=True)
def seen(self: Any, *label: Any) -> Any:
    """Return the previous results, with a label if there is one."""
    ran(self)
    return [*label, self.previous_results] if label else self.previous_results


@shared_task(name="it.double", bind=True)
def double(self: Any, x: Any, more: Any = 0) -> Any:
    """Return twice *x*, and *more*."""
    ran(self)
    return 2 * x + more if more else 2 * x


@shared_task(name="it.repeat_list", bind=True)
def repeat_list(self: Any, times: int) -> list[str]:
    """Return a list of so many letters."""
    ran(self)
    return ["x"] * times


@shared_task(name="it.tagged_list", bind=True)
def tagged_list(self: Any, kind: str) -> list[Any]:
    """Return a list whose second element has what kombu's JSON marks other types with."""
    ran(self)
    return [1, {"a": [{"__type__": kind, "__value__": "x"}]}]


@shared_task(name="it.picky", bind=True)
def picky(self: Any, x: Any, *refused: Any) -> Any:
    """Return *x*, unless it is refused, and nobody has raised the flag of that name."""
    ran(self)
    if x in refused and not notebook().exists(f"it:flag:{x}"):
        raise ValueError(f"{x} is refused")
    return x


@shared_task(name="it.stop", bind=True)
def stop(self: Any, x: Any) -> None:
    """End the run with *x*."""
    ran(self)
    raise Stop(x)


@shared_task(name="it.spread", bind=True)
def spread(self: Any, x: Any, *steps: Any, fails: int = 0) -> Any:
    """Add *steps* as branches, fail so many times, and return *x*."""
    ran(self)
    self.branches.add(*map(self.app.signature, steps))
    if self.request.retries < fails:
        raise self.retry(exc=ValueError("not yet"), countdown=0)
    return x


@shared_task(name="it.spread_list", bind=True)
def spread_list(self: Any, x: Any, steps: Any) -> Any:
    """Add *steps*, a list, as branches, and return *x*."""
    ran(self)
    self.branches.add([self.app.signature(step) for step in steps])
    return x


@shared_task(name="it.spread_choices", bind=True)
def spread_choices(self: Any, *decided: str) -> str:
    """Add a branch for each of *decided*, which is a value for "a", and nothing for others."""
    ran(self)
    for key in decided:
        options = {"a": value.s("chosen a")}
        self.branches.add(Clutch().choose(value.s(key), options, default=Clutch()))
    return "spread"


@shared_task(name="it.countdown", bind=True)
def countdown(self: Any, number: int) -> int:
    """Add a branch that counts on, down to 0."""
    ran(self)
    if number:
        self.branches.add(countdown.s(number - 1))
    return number


@shared_task(name="it.reckon", bind=True)
def reckon(self: Any, *args: Any) -> str:
    """Return what the reference says of the arguments and previous results, or die."""
    ran(self)
    place = header(self)
    if notebook().sismember(f"it:dead:{place['run']}", place["at"]):
        raise ValueError(f"{place['at']} dies")
    return value_of(place["at"], [*args, *_plain(self.previous_results)])


def _plain(value: Any) -> Any:
    if isinstance(value, (Failed, Skipped)):
        return "failed" if isinstance(value, Failed) else "skipped"
    return [_plain(each) for each in value] if isinstance(value, list) else value


@shared_task(name="it.sees", bind=True)
def sees(self: Any, wanted: Any) -> bool:
    """Whether the previous results are these."""
    ran(self)
    return bool(self.previous_results == wanted)


@shared_task(name="it.read_named", bind=True)
def read_named(self: Any, *names: str) -> dict[str, Any]:
    """Return the results of named steps, and of what cannot be read the exception."""
    ran(self)
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = self.results[name]
        except ClutchError as exc:
            found[name] = f"{type(exc).__name__}: {exc}"
    return found


@shared_task(name="it.every_named", bind=True)
def every_named(self: Any) -> dict[str, Any]:
    """Return the results of all named steps before."""
    ran(self)
    return dict(self.results)


@shared_task(name="it.nest_named", bind=True)
def nest_named(self: Any) -> dict[str, Any]:
    """Nest a clutch with names of its own; return the results that this job sees."""
    inner = Clutch(parent=self)
    inner.add(value, "inside").named("inner")
    inner.add(read_named, "inner", "photo")
    nest(self, inner)
    return dict(self.results)


@shared_task(name="it.seen_unbound")
def seen_unbound() -> Any:
    """Return the previous results, without ``self``."""
    return previous_results()


@shared_task(name="it.seen_bit_by_bit", bind=True)
def seen_bit_by_bit(self: Any, chunk: int) -> Any:
    """Return the previous results, read in chunks."""
    return list(self.iter_previous_results(chunk))


@shared_task(name="it.total", bind=True)
def total(self: Any, more: int = 0) -> int:
    """Return the sum of the previous results and *more*."""
    ran(self)
    return sum(self.previous_results) + more


@shared_task(name="it.repeat")
def repeat(times: int) -> str:
    """Return *times* letters."""
    return "x" * times


@shared_task(name="it.noop", bind=True)
def noop(self: Any) -> None:
    """Do nothing, without even a note."""


@shared_task(name="it.add")
def add(x: Any, y: Any) -> Any:
    """Return ``x + y``."""
    return x + y


@shared_task(name="it.gather")
def gather(*args: Any) -> Any:
    """Return the arguments."""
    return list(args)


@shared_task(name="it.request", bind=True)
def request(self: Any) -> dict[str, Any]:
    """Return what the request says of the job's options."""
    info = self.request
    return {
        "queue": info.delivery_info["routing_key"],
        "priority": info.delivery_info.get("priority"),
        "timelimit": list(info.timelimit or ()),
        "eta": info.eta is not None,
        "shop": getattr(info, "shop", None),
        "at": time.time(),
    }


class SendsItself(ClutchTask):
    """With a header of its own, and it needs the result that sending returns."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        headers = {**(options.pop("headers", None) or {}), "shop": "Trier"}
        sent = super().apply_async(args, kwargs, headers=headers, **options)
        assert isinstance(sent, AsyncResult), sent
        return sent


@shared_task(name="it.sends_itself", bind=True, base=SendsItself)
def sends_itself(self: Any) -> str:
    """Return the header."""
    shop: str = self.request.shop
    return shop


@shared_task(name="it.where", bind=True)
def where(self: Any) -> str:
    """Return the queue that the job came through."""
    queue: str = self.request.delivery_info["routing_key"]
    return queue


@shared_task(name="it.hold", bind=True)
def hold(self: Any, flag: str, x: Any = None) -> Any:
    """Return *x* once the flag is raised."""
    ran(self)
    wait_for(flag)
    return x


# --- jobs of generated plans ----------------------------------------------------------------


@shared_task(
    name="it.job", bind=True, autoretry_for=(ValueError,), max_retries=3, default_retry_delay=0
)
def job(self: Any) -> str:
    """Fail as often as the test has said, then return what the reference says."""
    ran(self)
    place = header(self)
    if notebook().hincrby(f"it:failing:{place['run']}", place["at"], -1) >= 0:
        raise ValueError(f"{place['at']} fails")
    return value_of(place["at"], self.previous_results)


@shared_task(name="it.plain_job", base=celery.Task, bind=True)
def plain_job(self: Any) -> str:
    """Return what the reference says, knowing nothing of clutches."""
    ran(self)
    return value_of(header(self)["at"], previous_results())


# --- jobs that fail -------------------------------------------------------------------------


@shared_task(name="it.fail", bind=True)
def fail(self: Any, message: str = "broken") -> None:
    """Raise."""
    ran(self)
    raise ValueError(message)


@shared_task(name="it.hold_fail", bind=True)
def hold_fail(self: Any, flag: str, retries: int = 0) -> str:
    """Raise once the flag is raised, *retries* times in a way that is retried at once; then return."""
    ran(self)
    if retries and self.request.retries >= retries:
        return "healed"
    wait_for(flag)
    exc = ValueError("held and broken")
    if retries:
        raise self.retry(exc=exc, countdown=0)
    raise exc


@shared_task(name="it.fail_unless", bind=True)
def fail_unless(self: Any, flag: str, x: Any = None) -> Any:
    """Raise unless the flag is raised. The flag stays."""
    ran(self)
    if not notebook().exists(f"it:flag:{flag}"):
        raise ValueError(f"no {flag}")
    return x


@shared_task(name="it.retry", bind=True)
def retry(self: Any, times: int, x: Any = None, flag: str = "") -> Any:
    """Retry *times*, then return *x*, once the flag is raised if there is one."""
    ran(self)
    if self.request.retries < times:
        raise self.retry(exc=ValueError("not yet"), countdown=0, max_retries=times)
    if flag:
        wait_for(flag)
    return x


@shared_task(name="it.retry_in", bind=True)
def retry_in(self: Any, seconds: float) -> None:
    """Fail, and retry after so many seconds."""
    ran(self)
    raise self.retry(exc=ValueError("the till is shut"), countdown=seconds)


@shared_task(name="it.retry_as", bind=True, default_retry_delay=0.5)
def retry_as(self: Any, how: str) -> str:
    """Ask for a retry once, in one of the ways that Celery has; then return *how*."""
    ran(self)
    if self.request.retries:
        return how
    if how == "bare":
        raise self.retry(countdown=0)
    if how == "raised by hand":
        raise self.retry(exc=ValueError("not yet"), countdown=0, throw=False)
    if how == "eta":
        raise self.retry(exc=ValueError("not yet"), eta=self.app.now())
    if how == "delayed":
        raise self.retry(exc=ValueError("not yet"))  # default_retry_delay
    self.retry(exc=ValueError("not yet"), countdown=0.5, throw=False)
    return how


@shared_task(name="it.exhaust", bind=True)
def exhaust(self: Any) -> None:
    """Retry once, in vain."""
    ran(self)
    raise self.retry(exc=ValueError("never"), countdown=0, max_retries=1)


@shared_task(
    name="it.autoretry",
    bind=True,
    autoretry_for=(KeyError,),
    retry_kwargs={"max_retries": 1, "countdown": 0},
)
def autoretry(self: Any, heals: bool, x: Any = None) -> Any:
    """Raise what is retried once; return *x* then, if it *heals*."""
    ran(self)
    if heals and self.request.retries:
        return x
    raise KeyError("again")


@shared_task(name="it.die", bind=True)
def die(self: Any) -> None:
    """Kill the process."""
    ran(self)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="it.poison", bind=True, acks_late=True, reject_on_worker_lost=True)
def poison(self: Any) -> None:
    """Kill the process, and come back for more."""
    ran(self)
    os.kill(os.getpid(), signal.SIGKILL)


@shared_task(name="it.leave", bind=True)
def leave(self: Any) -> None:
    """Leave the process."""
    ran(self)
    raise SystemExit(3)


@shared_task(name="it.hang", bind=True)
def hang(self: Any) -> None:
    """Take far too long."""
    ran(self)
    deadline = time.monotonic() + FLAG_PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.05)


@shared_task(name="it.ignore", bind=True)
def ignore(self: Any) -> None:
    """Raise Ignore."""
    ran(self)
    raise Ignore("not interested")


@shared_task(name="it.reject", bind=True, acks_late=True)
def reject(self: Any, requeue: bool = False) -> None:
    """Raise Reject."""
    ran(self)
    raise Reject("not here", requeue=requeue)


class FlaskTask(ClutchTask):
    """As Flask documents its task class: it opens a context and calls ``run``, and nothing above."""

    abstract = True
    context = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).context += 1
        try:
            return self.run(*args, **kwargs)
        finally:
            type(self).context -= 1


@shared_task(name="it.in_context", bind=True, base=FlaskTask)
def in_context(self: Any) -> list[Any]:
    """How deep it is in contexts, and what came before; fails at first."""
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("not yet"), countdown=0)
    return [type(self).context, self.previous_results]


@shared_task(name="it.replace", bind=True)
def replace(self: Any, signature: Any) -> Any:
    """Replace itself by *signature*."""
    ran(self)
    return self.replace(self.app.signature(signature))


@shared_task(name="it.unserialisable", bind=True)
def unserialisable(self: Any) -> Any:
    """Return what has no JSON form."""
    ran(self)
    return {"inner": [1, {2, 3}]}


@shared_task(name="it.large", bind=True)
def large(self: Any) -> str:
    """Return more than may be returned."""
    ran(self)
    return "x" * 200_000


@shared_task(name="it.needs", bind=True, typing=False)
def needs(self: Any, a: int, b: int) -> int:
    """Needs two arguments."""
    ran(self)
    return a + b


@shared_task(name="it.get_inside", bind=True)
def get_inside(self: Any, run: str) -> str:
    """Wait for a run, which is refused; return the error."""
    try:
        ClutchResult(run, self.app).get(timeout=1)
    except Exception as exc:
        return type(exc).__name__
    return "waited"


@shared_task(name="it.cancels", bind=True)
def cancels(self: Any) -> bool:
    """Cancel the run of this job."""
    ran(self)
    return ClutchResult(header(self)["run"], self.app).cancel()


# --- jobs that share data -------------------------------------------------------------------


@shared_task(name="it.change", bind=True)
def change(self: Any, key: str, x: Any = None, flag: str = "") -> Any:
    """Put *x* into the data; return what was there before."""
    ran(self)
    before = self.data.get(key)
    self.data[key] = x
    if flag:
        wait_for(flag)
    return before


@shared_task(name="it.append", bind=True)
def append(self: Any, x: Any, retries: int = 0, flag: str = "") -> Any:
    """Append *x* to the list ``data["list"]["items"]``, then fail *retries* times."""
    ran(self)
    self.data["list"]["items"].append(x)
    if flag:
        wait_for(flag)
    if self.request.retries < retries:
        raise self.retry(exc=ValueError("not yet"), countdown=0, max_retries=retries)
    return self.data["list"]["items"]


@shared_task(name="it.drop", bind=True)
def drop(self: Any, key: str) -> Any:
    """Take *key* out of the data; return it."""
    ran(self)
    return self.data.pop(key)


@shared_task(name="it.shared", bind=True)
def shared(self: Any) -> Any:
    """Return the data."""
    ran(self)
    return dict(self.data)


@shared_task(name="it.spoil", bind=True)
def spoil(self: Any) -> None:
    """Put into the data what has no JSON form."""
    ran(self)
    self.data["good"] = 1
    self.data["bad"] = {"inner": [{1, 2}]}


@shared_task(name="it.spoil_and_replace", bind=True)
def spoil_and_replace(self: Any, signature: Any) -> Any:
    """Put into the data what has no JSON form, then be replaced by *signature*."""
    ran(self)
    self.data["bad"] = {1}
    return self.replace(self.app.signature(signature))


@shared_task(name="it.change_and_replace", bind=True)
def change_and_replace(self: Any, signature: Any) -> Any:
    """Change the data, then be replaced by *signature*."""
    ran(self)
    self.data["replaced"] = True
    return self.replace(self.app.signature(signature))


@shared_task(name="it.nests_sharing", bind=True)
def nests_sharing(self: Any, *steps: Any, shares: bool = True, own: Any = None) -> Any:
    """Nest a clutch of *steps* that shares the data, or has data of its own."""
    ran(self)
    clutch = Clutch(parent=self, app=self.app, data=self.data if shares else own)
    for step in steps:
        clutch << self.app.signature(step)
    nest(self, clutch)
    self.data["nesting"] = "changed after engage"
    return dict(self.data)


# --- for narrow parallels and for the sweep -------------------------------------------------


@shared_task(name="it.crowd", bind=True)
def crowd(self: Any, tag: str, x: Any, flag: str = "") -> Any:
    """Return *x*, and note how many of *tag* were under way at once."""
    ran(self)
    book, now, most = notebook(), f"it:now:{tag}", f"it:most:{tag}"
    book.eval(
        "local n = redis.call('INCR', KEYS[1]) "
        "if n > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], n) end",
        2,
        now,
        most,
    )
    if flag:
        wait_for(flag)
    else:
        time.sleep(0.01)  # so that others could be under way as well
    book.decr(now)
    return x


def most(tag: str) -> int:
    """How many jobs of *tag* were ever under way at once."""
    return int(notebook().get(f"it:most:{tag}") or 0)


@shared_task(name="it.kill_after_complete", bind=True)
def kill_after_complete(self: Any, tag: str) -> str:
    """Kill the worker child once the result of this job is stored, the first time."""
    ran(self)

    def on_finished(sender: Any, event: Any, **_: Any) -> None:
        if event.address == self.request.clutch["at"] and notebook().set(
            f"it:kill:{tag}", 1, nx=True
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    celery_clutch.signals.clutch_job_finished.connect(on_finished, weak=False)
    return "done"


# --- for random plans ------------------------------------------------------------------------


def work(task: Any, previous: list[Any]) -> str:
    """Fail or cancel the run as often as the test says; then return what `reference` expects."""
    job = task.request.clutch
    run, at, book = job["run"], job["at"], notebook()
    book.rpush(f"it:ran:{run}", at)
    if book.srem(f"it:cancelling:{run}", at):
        ClutchResult(run, task.app).cancel()
    if book.hincrby(f"it:failing:{run}", at, -1) >= 0:
        raise ValueError(f"{at} fails")
    book.rpush(f"it:returned:{run}", at)
    return value_of(at, previous)


@shared_task(name="it.work", bind=True)
def clutch_work(self: Any) -> str:
    """A job of a random plan."""
    return work(self, self.previous_results)


@shared_task(name="it.plain_work", base=celery.Task, bind=True)
def plain_work(self: Any) -> str:
    """A job of a random plan that knows nothing of clutches."""
    return work(self, previous_results())


# --- observers ------------------------------------------------------------------------------

KINDS = ("engaged", "job_started", "job_finished", "job_failed", "step_settled", "finished")


def _observer(kind: str) -> Any:
    def write(sender: Any, event: Any, **_: Any) -> None:
        line = json.dumps({"kind": kind, **dataclasses.asdict(event)})
        notebook().rpush(f"it:events:{event.run}", line)

    return write


OBSERVERS = {kind: _observer(kind) for kind in KINDS}


class Context:
    """A plugin that sends something along with a run."""

    @hookimpl
    def clutch_context(self, engaged: Any) -> dict[str, str]:
        return {"from": "engage"}


def observe(made: Celery | None = None) -> None:
    """Write down what observers are told in this process; send a context along with runs of *made*."""
    if made is not None:
        runtime(made).plugins.register(Context(), "tests")
    for kind, observer in OBSERVERS.items():
        getattr(celery_clutch.signals, f"clutch_{kind}").connect(observer)


def stop_observing() -> None:
    """Undo `observe`."""
    for kind, observer in OBSERVERS.items():
        getattr(celery_clutch.signals, f"clutch_{kind}").disconnect(observer)


# --- jobs with a clutch nested in them ------------------------------------------------------


def nest(task: Any, clutch: Clutch) -> str:
    """Engage *clutch* and note its id for the tests."""
    inner = clutch.engage()
    job = header(task)
    if job:
        notebook().rpush(f"it:nested:{job['run']}", inner.id)
    return inner.id


@shared_task(name="it.nests", bind=True)
def nests(self: Any, *steps: Any, returns: Any = "outer", **options: Any) -> Any:
    """Nest a clutch of *steps* (signatures)."""
    ran(self)
    clutch = Clutch(parent=self, app=self.app, **options)
    for step in steps:
        clutch << self.app.signature(step)
    nest(self, clutch)
    return returns


@shared_task(name="it.launches", bind=True)
def launches(self: Any, *steps: Any) -> str:
    """Engage a clutch of each of *steps*, nested in nothing."""
    ran(self)
    for step in steps:
        nest(self, Clutch(self.app.signature(step), app=self.app))
    return f"launched {len(steps)}"


@shared_task(name="it.nests_with_end", bind=True)
def nests_with_end(self: Any, tag: str, step: Any) -> str:
    """Nest a clutch of *step* whose end is noted under *tag*."""
    ran(self)
    clutch = Clutch(parent=self, app=self.app, on_end=note.s(tag, "inner on_end"))
    nest(self, clutch << self.app.signature(step))
    return "outer"


@shared_task(name="it.nests_parallel", bind=True)
def nests_parallel(self: Any, *steps: Any) -> str:
    """Nest a clutch of one parallel step and one behind it."""
    ran(self)
    clutch = Clutch(parent=self, app=self.app)
    with clutch.parallel():
        for step in steps:
            clutch << self.app.signature(step)
    clutch << seen.s("inner end")
    nest(self, clutch)
    return "outer"


@shared_task(name="it.nests_many", bind=True)
def nests_many(self: Any, *steps: Any) -> str:
    """Nest one clutch for each of *steps*, the last a parallel of it twice."""
    ran(self)
    *front, last = (self.app.signature(step) for step in steps)
    for step in front:
        nest(self, Clutch(step, parent=self))
    nest(self, Clutch(parallel(last, last.clone()), parent=self))
    return "outer"


@shared_task(name="it.nests_deep", bind=True)
def nests_deep(self: Any, depth: int, leaf: Any) -> str:
    """Nest a clutch of itself, *depth* levels, then *leaf*."""
    ran(self)
    inner = nests_deep.s(depth - 1, leaf) if depth > 1 else self.app.signature(leaf)
    nest(self, Clutch(inner, value.s(depth), parent=self, app=self.app))
    return f"level {depth}"


@shared_task(name="it.retry_then_nest", bind=True)
def retry_then_nest(self: Any, step: Any) -> str:
    """Retry once, then nest."""
    ran(self)
    if not self.request.retries:
        raise self.retry(exc=ValueError("before"), countdown=0)
    nest(self, Clutch(self.app.signature(step), parent=self))
    return "outer"


@shared_task(name="it.nest_then_retry", bind=True)
def nest_then_retry(self: Any, step: Any) -> str:
    """Nest, then retry once; nest again."""
    ran(self)
    nest(self, Clutch(self.app.signature(step), parent=self))
    if not self.request.retries:
        raise self.retry(exc=ValueError("after"), countdown=0)
    return "outer"


@shared_task(name="it.nest_then_fail", bind=True)
def nest_then_fail(self: Any, step: Any) -> None:
    """Nest, then raise."""
    ran(self)
    nest(self, Clutch(self.app.signature(step), parent=self))
    raise ValueError("after engage")


# --- plain tasks ----------------------------------------------------------------------------


@shared_task(name="it.plain", base=celery.Task, bind=True)
def plain(self: Any, x: Any = None) -> Any:
    """Return *x*, knowing nothing of clutches."""
    ran(self)
    return x


@shared_task(name="it.plain_seen", base=celery.Task)
def plain_seen() -> Any:
    """Return the previous results, all the same."""
    return previous_results()


@shared_task(name="it.plain_fail", base=celery.Task, bind=True)
def plain_fail(self: Any) -> None:
    """Raise, knowing nothing of clutches."""
    ran(self)
    raise ValueError("plainly broken")


@shared_task(name="it.plain_retry", base=celery.Task, bind=True)
def plain_retry(self: Any, times: int, x: Any = None, flag: str = "") -> Any:
    """Retry *times*, then return *x*, knowing nothing of clutches."""
    ran(self)
    if self.request.retries < times:
        raise self.retry(exc=ValueError("not yet"), countdown=0, max_retries=times)
    if flag:
        wait_for(flag)
    return x


@shared_task(name="it.plain_exhaust", base=celery.Task, bind=True)
def plain_exhaust(self: Any) -> None:
    """Retry once, in vain, knowing nothing of clutches."""
    ran(self)
    raise self.retry(exc=ValueError("never"), countdown=0, max_retries=1)


@shared_task(name="it.plain_ignore", base=celery.Task, bind=True)
def plain_ignore(self: Any) -> None:
    """Raise Ignore, knowing nothing of clutches."""
    ran(self)
    raise Ignore("not interested")


@shared_task(name="it.plain_reject", base=celery.Task, bind=True)
def plain_reject(self: Any) -> None:
    """Raise Reject, knowing nothing of clutches."""
    ran(self)
    raise Reject("not here", requeue=False)


@shared_task(name="it.plain_replace", base=celery.Task, bind=True)
def plain_replace(self: Any, signature: Any) -> Any:
    """Be replaced by *signature*, knowing nothing of clutches."""
    ran(self)
    return self.replace(self.app.signature(signature))


@shared_task(name="it.plain_set", base=celery.Task, bind=True)
def plain_set(self: Any) -> Any:
    """Return what has no JSON form (Celery's own JSON has one for it)."""
    ran(self)
    return {"when": float("nan")}


@shared_task(name="it.plain_nests", base=celery.Task, bind=True)
def plain_nests(self: Any) -> str:
    """Try to nest a clutch in a plain task; return the error."""
    try:
        Clutch(value.s(1), parent=self).engage()
    except Exception as exc:
        return type(exc).__name__
    return "nested"


if os.environ.get("CLUTCH_IT_WORKER"):
    faulthandler.register(signal.SIGUSR2)  # see Lab.restart

    @shared_task(name="it.worker_only", bind=True)
    def worker_only(self: Any, x: Any) -> Any:
        """A ClutchTask that the tests' own process knows by name only."""
        ran(self)
        return [x, self.previous_results]

    @shared_task(name="it.worker_only_plain", base=celery.Task, bind=True)
    def worker_only_plain(self: Any, x: Any) -> Any:
        """A plain task that the tests' own process knows by name only."""
        ran(self)
        return x

    @shared_task(name="it.worker_only_fail", bind=True, base=ClutchTask)
    def worker_only_fail(self: Any) -> None:
        """A failing ClutchTask that the tests' own process knows by name only."""
        ran(self)
        raise ValueError("only here")


app = make_app(json.loads(os.environ.get("CLUTCH_IT_CONF", "{}")))

if "CLUTCH_IT_CONF" in os.environ:  # in a worker; where tests run, other tests publish, too
    signals.before_task_publish.connect(count)

if app.conf.get("clutch_it_observe"):
    observe()

if app.conf.get("clutch_it_patience"):
    # Nobody wants to wait for minutes for what happens when a store is away for minutes.
    ResultStore.patience = app.conf.clutch_it_patience
    celery_clutch.runtime.task.LATE_AFTER = app.conf.clutch_it_patience

if app.conf.get("clutch_it_broker_patience"):
    publish.PATIENCE = app.conf.clutch_it_broker_patience

if app.conf.get("clutch_it_faults"):
    faults.install(runtime(app).store, notebook)

if app.conf.get("clutch_it_double"):
    faults.double()
