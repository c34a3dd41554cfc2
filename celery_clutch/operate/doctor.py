"""What stops people: an app's set-up examined, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from celery import Celery
from kombu.utils.uuid import uuid

from ..compile import canvas, compat
from ..errors import ClutchError, ConfigurationError
from ..extend.plugins import runtime
from ..extend.settings import REDIS_SCHEMES
from ..runtime.task import ClutchTask
from ..stores.base import ResultStore

SKEW = 2.0
"""Seconds by which clocks may differ."""
SHORT = 3600
"""Seconds after which results and unacknowledged messages may go at the earliest."""


class Severity(str, Enum):
    """``ok``; ``warning``: it may do harm; ``problem``: clutches do not run."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, in a sentence, and what helps."""

    severity: Severity
    what: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON-friendly data."""
        return {**asdict(self), "severity": self.severity.value}


Findings = Iterator[Finding]


def examine(app: Celery, timeout: float = 2.0) -> Findings:
    """Look at everything; workers have *timeout* seconds to answer. Changes nothing for good."""
    for check in (_versions, _tasks, _backend, _store, _times, _broker):
        try:
            yield from check(app, timeout)
        except Exception as exc:  # whatever is wrong here is what the operator wants to know
            what = f"the check of {check.__name__.strip('_')} fails: {type(exc).__name__}: {exc}"
            yield Finding(Severity.PROBLEM, what)


def _versions(app: Celery, timeout: float) -> Findings:
    """Requirements of what is installed, also those that pip does not look at."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # Celery 5.3 and 5.4 import it, but do not ask for it
        yield _problem("packaging is not installed", "pip install packaging")
        return
    celery, kombu = version("celery"), version("kombu")
    unfit = []
    for name in ("celery-clutch", "celery", "kombu"):
        for line in requires(name) or ():
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({"extra": "redis"}):
                continue
            try:
                has = version(need.name)
            except PackageNotFoundError:
                continue
            if not need.specifier.contains(has, prereleases=True):
                unfit.append(f"{name} {version(name)} needs {need.name}{need.specifier}, not {has}")
    for what in unfit:
        yield _problem(what, "Install versions that fit, as the table in the README says.")
    series, theirs = (tuple(map(int, each.split(".")[:2])) for each in (celery, kombu))
    if series < (5, 6) and theirs != series:
        fix = "pip install 'kombu=={}.{}.*'".format(*series)
        yield _problem(f"Celery {celery} does not work with kombu {kombu}", fix)
    elif not unfit:
        yield _ok(f"Celery {celery} and kombu {kombu} fit")


def _tasks(app: Celery, timeout: float) -> Findings:
    app.loader.import_default_modules()
    internal = ("celery.", "celery_clutch.")
    own = {name: task for name, task in app.tasks.items() if not name.startswith(internal)}
    plain = sorted(name for name, task in own.items() if not isinstance(task, ClutchTask))
    if issubclass(app.Task, ClutchTask):
        yield _ok("task_cls is a ClutchTask")
    elif len(plain) == len(own):
        yield _warning(
            "task_cls is not a ClutchTask, and no task is one",
            'Celery(..., task_cls="celery_clutch:ClutchTask"), or base=ClutchTask on tasks.',
        )
    if plain:
        yield _warning(
            f"{len(plain)} of {len(own)} tasks are no ClutchTasks: {_listed(plain)}",
            "They work as plain steps, at one message more, and cannot nest clutches. "
            "base=ClutchTask makes them jobs like the others.",
        )


def _backend(app: Celery, timeout: float) -> Findings:
    if app.conf.task_always_eager:
        yield _warning("task_always_eager is set", "Unset it where workers are to run the jobs.")
        return
    backend = app.backend
    if not app.conf.result_backend:
        yield _ok("there is no result backend, and clutches need none")
        return
    try:
        backend.get_state(f"clutch-doctor-{uuid()}")
    except Exception as exc:
        what = f"the result backend cannot be reached: {exc}"
        yield _problem(what, "Start it, or correct result_backend.")
        return
    yield _ok(f"the result backend {backend.as_uri()} can be reached")


def _store(app: Celery, timeout: float) -> Findings:
    try:
        store = runtime(app).store
        skew = _probe(store)
    except ConfigurationError as exc:
        yield _problem(f"the result store is not ready: {exc}", "See clutch_store in the README.")
        return
    except ClutchError as exc:
        fix = "Start it, or correct clutch_store. Is it new? Then: celery clutch migrate."
        yield _problem(f"the result store cannot be used: {exc}", fix)
        return
    yield _ok(f"the result store {store!r} can be written and read")
    for finding in store.check():
        what, _, fix = finding.partition(". ")
        yield _warning(what, fix)
    if store.url.startswith("memory://") and not app.conf.task_always_eager:
        what = "clutch_store is memory://, which other processes cannot see"
        yield _warning(what, "Set clutch_store to a store that workers share.")
    if skew > SKEW:
        what = f"the clocks of this machine and of the result store differ by {skew:.0f} seconds"
        yield _warning(what, "Let both follow a time server (NTP).")


def _probe(store: ResultStore) -> float:
    """Write, read and delete a run; how much the clocks differ at least, in seconds."""
    run, before = f"clutch-doctor-{uuid()}", time.time()
    store.create(run, b"{}", {}, 0, name="clutch doctor")
    after = time.time()
    try:
        found = store.read(run)
    finally:
        store.delete(run)
    if found is None:
        raise ClutchError("a run that was just written is not there")
    return _apart(found.created_at, before, after)


def _times(app: Celery, timeout: float) -> Findings:
    conf = app.conf
    expires = getattr(conf.result_expires, "total_seconds", lambda: conf.result_expires)()
    if expires and expires < SHORT and _is_redis(conf.result_backend):
        yield _warning(
            f"result_expires is {expires:g} seconds: a parallel step that takes longer never ends",
            "Set it to longer than your longest parallel step; a day is Celery's default.",
        )
    visibility = (conf.broker_transport_options or {}).get("visibility_timeout")
    if visibility and visibility < SHORT and _is_redis(conf.broker_url):
        yield _warning(
            f"visibility_timeout is {visibility:g} seconds: what takes or waits longer runs twice",
            "Set it to longer than your longest job and countdown, in broker_transport_options.",
        )


def _broker(app: Celery, timeout: float) -> Findings:
    try:
        with app.connection_for_write() as connection:
            url = connection.as_uri()
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            is_amqp = connection.transport.driver_type == "amqp"
    except Exception as exc:
        what = f"the broker cannot be reached: {exc}"
        yield _problem(what, "Start it, or correct broker_url.")
        return
    yield _ok(f"the broker {url} can be reached")
    if is_amqp and not compat.confirms(app):
        yield _warning(
            "the broker does not confirm messages: one that it never gets is lost unseen",
            "Use pyamqp://, and let broker_transport_options have no confirm_publish, or True.",
        )
    yield from _workers(app, timeout)


def _workers(app: Celery, timeout: float) -> Findings:
    names = sorted(app.control.inspect(timeout=timeout).ping() or ())
    if not names:
        what = f"no worker answers within {timeout:g} seconds"
        yield _warning(what, "Start one (celery worker), or ask again with a longer --timeout.")
        return
    yield _ok(f"workers that answer: {_listed(names)}")
    inspect = app.control.inspect(names, timeout=timeout, limit=len(names))
    registered = inspect.registered() or {}
    strangers = [
        name
        for name, tasks in sorted(registered.items())
        if canvas.ADVANCE not in {task.partition(" ")[0] for task in tasks}
    ]
    if strangers:
        what = f"workers that know nothing of clutches: {_listed(strangers)}"
        yield _problem(what, "Install celery-clutch there, and import it where the app is made.")
    wanted = {app.conf.task_default_queue}
    wanted |= {queue for name in app.tasks if (queue := _route(app, name))}
    served = inspect.active_queues() or {}
    idle = sorted(wanted - {queue["name"] for queues in served.values() for queue in queues or ()})
    if idle:
        what = f"no worker consumes from {_listed(idle)}"
        yield _warning(what, f"celery worker -Q {','.join(idle)}")
    if not strangers:
        yield from _clocks(app, names, timeout)


def _clocks(app: Celery, names: list[str], timeout: float) -> Findings:
    """The clocks and versions of workers, as the control command of `internal` tells them."""
    before = time.time()
    replies = app.control.broadcast(
        "clutch_hello", reply=True, destination=names, timeout=timeout, limit=len(names)
    )
    after, own = time.time(), version("celery-clutch")
    told = dict(item for reply in replies or () for item in reply.items() if "time" in item[1])
    apart = {name: _apart(hello["time"], before, after) for name, hello in told.items()}
    if skewed := [f"{name} ({apart[name]:.0f} s)" for name in sorted(told) if apart[name] > SKEW]:
        what = f"clocks differ from this machine's: {_listed(skewed)}"
        yield _warning(what, "Let all of them follow a time server (NTP).")
    if other := [
        f"{name} ({told[name]['version']})" for name in sorted(told) if told[name]["version"] != own
    ]:
        what = f"workers run another celery-clutch than this machine ({own}): {_listed(other)}"
        yield _warning(what, "Deploy one version everywhere.")
    if told and not (skewed or other):
        yield _ok("their clocks and their celery-clutch are those of this machine")


def _route(app: Celery, name: str) -> str:
    """The queue that messages of a task go to, as far as its routes say."""
    found = app.amqp.router.route({}, name).get("queue")
    return str(getattr(found, "name", found or ""))


def _apart(at: float, before: float, after: float) -> float:
    """How far *at* is outside of the time between."""
    return max(before - at, at - after, 0.0)


def _is_redis(url: Any) -> bool:
    return isinstance(url, str) and url.partition("://")[0] in REDIS_SCHEMES


def _listed(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _ok(what: str) -> Finding:
    return Finding(Severity.OK, what)


def _warning(what: str, fix: str) -> Finding:
    return Finding(Severity.WARNING, what, fix)


def _problem(what: str, fix: str) -> Finding:
    return Finding(Severity.PROBLEM, what, fix)
