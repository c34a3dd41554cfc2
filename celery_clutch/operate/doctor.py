"""What stops people: an app's set-up examined, and what to do about it."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from celery import Celery
from celery.app.defaults import DEFAULTS
from kombu.utils.uuid import uuid

from ..compile import compat
from ..errors import ClutchError, ConfigurationError, NoStore, RunNotFound
from ..extend.plugins import runtime
from ..extend.settings import NAMES, REDIS_SCHEMES, Settings, without_passwords
from ..handle import snapshot, why
from ..model.workers import Worker, Workers
from ..runtime import workers
from ..runtime.task import ClutchTask
from ..stores.base import ResultStore

INTERNAL = ("celery.", "celery_clutch.")
"""What the names of tasks begin with that are not the app's own."""
SKEW = 2.0
"""Seconds by which clocks may differ."""
SHORT = 3600
"""Seconds for which a message may be unacknowledged at least: Celery's default."""


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


def examine(app: Celery, timeout: float = 2.0, run: str | None = None) -> Findings:
    """Look at everything, and at the *run* of this id, if one is given.

    Workers have *timeout* seconds to answer. Changes nothing for good. What others say, or how they
    write a URL, is told without the pieces of passwords in it.
    """
    for check in (_versions, _settings, _tasks, _backend, _store, _times, _sweep):
        yield from _tried(check, app)
    asked: Workers | None = yield from _tried(_broker, app, timeout)
    if run is not None:
        yield from _tried(_run, app, run, asked)


def _tried(check: Callable[..., Iterator[Finding]], *args: Any) -> Generator[Finding, None, Any]:
    """What *check* finds, and returns; whatever goes wrong in it is what the operator wants to
    know."""
    try:
        return (yield from check(*args))
    except Exception as exc:
        what = f"the check of {check.__name__.strip('_')} fails: {type(exc).__name__}: {exc}"
        yield Finding(Severity.PROBLEM, without_passwords(args[0].conf, what))
        return None


def _versions(app: Celery) -> Findings:
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


def _tasks(app: Celery) -> Findings:
    app.loader.import_default_modules()
    own = {name: task for name, task in app.tasks.items() if not name.startswith(INTERNAL)}
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


def _backend(app: Celery) -> Findings:
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
        what = f"the result backend cannot be reached: {_said(app, exc)}"
        yield _problem(what, "Start it, or correct result_backend.")
        return
    yield _ok(f"the result backend {_said(app, backend.as_uri())} can be reached")


def _store(app: Celery) -> Findings:
    try:
        store = runtime(app).store
        skew = _probe(store)
    except ConfigurationError as exc:
        if _wrong(app):
            return  # the check of settings says that
        yield _problem(
            f"the result store is not ready: {_said(app, exc)}", "See clutch_store in the README."
        )
        return
    except ClutchError as exc:
        fix = "Start it, or correct clutch_store. Is it new? Then: celery clutch migrate."
        yield _problem(f"the result store cannot be used: {_said(app, exc)}", fix)
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


def _settings(app: Celery) -> Findings:
    """Settings that make no sense, and those that nobody reads."""
    if wrong := _wrong(app):
        yield _problem(wrong, "Correct it, or leave it out.")
    for name in _written(app):
        plain = name.removeprefix(app.conf.prefix) if app.conf.prefix else name
        likely = plain.lower()
        if likely in NAMES and (likely == name or app.conf.get(likely) is not None):
            continue
        near = difflib.get_close_matches(likely, NAMES, n=1, cutoff=0.75)
        if near:
            wanted = near[0] if plain == name else app.conf.prefix + near[0].upper()
            fix = f"Write {wanted}."
            yield _warning(f"the setting {name} is not read by anybody", fix)
        elif name.startswith("clutch_"):
            fix = f"There are {', '.join(NAMES)}."
            yield _warning(f"there is no setting {name}", fix)


def _wrong(app: Celery) -> str:
    """What is wrong with the value of a setting."""
    try:
        Settings.of(app.conf)
    except NoStore:  # the check of the store says that
        pass
    except ConfigurationError as exc:
        return _said(app, exc)
    return ""


def _written(app: Celery) -> list[str]:
    """The names in the app's configuration that are not Celery's."""
    names = {name for name in app.conf if isinstance(name, str) and not name.startswith("_")}
    prefix = app.conf.prefix
    if prefix:  # the others in such an object are not for Celery
        names = {name for name in names if name.startswith(prefix) or name.islower()}
    return sorted(names - DEFAULTS.keys())


def _sweep(app: Celery) -> Findings:
    if app.conf.task_always_eager:
        return
    if snapshot.schedules_sweep(app):
        yield _ok("the sweep is scheduled")
        return
    yield _warning(
        "this app does not schedule the sweep, without which nothing that is lost is sent again",
        'beat_schedule = {"sweep": {"task": "celery_clutch.sweep", "schedule": 60.0}}, unless '
        "another app with the same store does.",
    )


def _times(app: Celery) -> Findings:
    conf = app.conf
    visibility = (conf.broker_transport_options or {}).get("visibility_timeout")
    if visibility and visibility < SHORT and _is_redis(conf.broker_url):
        yield _warning(
            f"visibility_timeout is {visibility:g} seconds: messages of what takes or waits longer "
            "are delivered again, and again",
            "Jobs bear that, because a lease puts copies off; tasks that are not a ClutchTask run "
            "twice. Set it to longer than your longest job and countdown.",
        )


def _broker(app: Celery, timeout: float) -> Generator[Finding, None, Workers | None]:
    """Broker and workers; returns what those have answered."""
    try:
        with app.connection_for_write() as connection:
            url = connection.as_uri()
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            is_amqp = connection.transport.driver_type == "amqp"
    except Exception as exc:
        what = f"the broker cannot be reached: {_said(app, exc)}"
        yield _problem(what, "Start it, or correct broker_url.")
        return None
    yield _ok(f"the broker {_said(app, url)} can be reached")
    if is_amqp and not compat.confirms(app):
        yield _warning(
            "the broker does not confirm messages: one that it never gets is lost unseen",
            "Use pyamqp://, and let broker_transport_options have no confirm_publish, or True.",
        )
    asked = workers.ask(app, timeout)
    yield from _workers(app, asked)
    return asked


def _workers(app: Celery, asked: Workers) -> Findings:
    if not asked:
        what = f"no worker answers within {asked.timeout:g} seconds"
        yield _warning(what, "Start one (celery worker), or ask again with a longer --timeout.")
        return
    yield _ok(f"workers that answer: {_listed([worker.name for worker in asked])}")
    wanted = snapshot.queues_of(app)
    # Other apps may use the same broker, with queues of their own.
    strangers = [
        worker.name for worker in asked if not worker.has_clutches and worker.queues & wanted
    ]
    if strangers:
        what = f"workers that know nothing of clutches: {_listed(strangers)}"
        yield _problem(what, "Install celery-clutch there, and import it where the app is made.")
    idle = sorted(wanted - asked.queues)
    if idle:
        what = f"no worker consumes from {_listed(idle)}"
        yield _warning(what, f"celery worker -Q {','.join(idle)}")
    known = [worker for worker in asked if worker.has_clutches]
    yield from _stores(app, known, wanted)
    if known and not strangers:
        yield from _clocks(asked, known)


def _stores(app: Celery, known: Sequence[Worker], wanted: set[str]) -> Findings:
    """Whether workers have the store that this machine has."""
    own = {name for name in app.tasks if not name.startswith(INTERNAL)}
    for worker in known:
        serves = bool(worker.queues & wanted)
        if not serves and not worker.tasks & own:
            continue  # of another app on the same broker
        severity = Severity.PROBLEM if serves else Severity.WARNING
        if not worker.store:
            what = f"the worker {worker.name} has no result store: {_said(app, worker.trouble)}"
            fix = "Give it the clutch_store that everybody else has."
            yield Finding(severity, what, fix)
        elif worker.same_store is False:
            theirs = _said(app, worker.store)
            what = (
                f"the worker {worker.name} has another result store: {theirs}, and this machine "
                f"has {workers.described(app)}"
            )
            fix = "Give both the same clutch_store and clutch_key_prefix."
            yield Finding(severity, what, fix)
        elif worker.trouble:
            trouble = _said(app, worker.trouble)
            what = f"the worker {worker.name} cannot reach its result store: {trouble}"
            yield Finding(severity, what, f"Let it reach {worker.store}.")
    same = [worker for worker in known if worker.same_store]
    if known and len(same) == len(known):
        count = sum(len(worker.owners) for worker in same)
        processes = "process" if count == 1 else "processes"
        yield _ok(
            f"their result store is that of this machine, and has {count} {processes} of them"
        )


def _clocks(asked: Workers, known: Sequence[Worker]) -> Findings:
    """The clocks and versions of workers."""
    own = version("celery-clutch")
    apart = {worker.name: _apart(worker.time, asked.asked, asked.heard) for worker in known}
    skewed = [f"{name} ({off:.0f} s)" for name, off in apart.items() if off > SKEW]
    if skewed:
        what = f"clocks differ from this machine's: {_listed(skewed)}"
        yield _warning(what, "Let all of them follow a time server (NTP).")
    other = [
        f"{worker.name} ({worker.versions['celery-clutch']})"
        for worker in known
        if worker.versions["celery-clutch"] != own
    ]
    if other:
        what = f"workers run another celery-clutch than this machine ({own}): {_listed(other)}"
        yield _warning(what, "Deploy one version everywhere.")
    celerys = sorted({f"Celery {worker.versions['celery']}" for worker in known})
    if len(celerys) > 1:
        yield _warning(f"workers run {' and '.join(celerys)}", "Deploy one version everywhere.")
    if not (skewed or other):
        yield _ok("their clocks and their celery-clutch are those of this machine")


_SEVERITIES = {
    "queue": Severity.PROBLEM,
    "task": Severity.PROBLEM,
    "died": Severity.WARNING,
    "due": Severity.WARNING,
    "expired": Severity.WARNING,
    "nested": Severity.OK,
}


def _run(app: Celery, run: str, asked: Workers | None) -> Findings:
    """A run: what `why` says of it, and whether workers are ready for what is left of it."""
    try:
        taken = snapshot.take(app, run, asked)
    except RunNotFound as exc:
        fix = (
            "It was never engaged, was forgotten, or has expired; or it was engaged with another "
            "clutch_store or clutch_key_prefix: give this command the same."
        )
        yield _problem(str(exc), fix)
        return
    except ClutchError:  # the check of the store has said what is wrong with it
        yield _problem(f"run {run} cannot be looked at without its store", "Ask again then.")
        return
    for reason in why.reasons(taken):
        if reason.kind not in ("no worker", "store"):  # those were told before
            severity = _SEVERITIES.get(reason.kind, Severity.OK)
            yield Finding(severity, f"{reason.run}: {reason.sentence}", reason.fix)
    if not asked:
        return
    left = snapshot.remaining(app, run)
    unserved = sorted({queue for _, queue in left if queue} - asked.queues)
    if unserved:
        what = f"{run}: no worker consumes from {_listed(unserved)}, where jobs are still to go"
        yield _problem(what, f"celery worker -Q {','.join(unserved)}")
    unknown = sorted(
        {
            f"{task} ({address})"
            for (task, queue), address in left.items()
            if queue in asked.queues and not asked.know(task, queue)
        }
    )
    if unknown:
        what = f"{run}: tasks still to run that no worker of their queue knows: {_listed(unknown)}"
        yield _problem(what, "Deploy the modules that have them, and name those in imports.")
    if left and not (unserved or unknown):
        yield _ok(f"{run}: workers consume the queues, and know the tasks, of what is left of it")


def _apart(at: float, before: float, after: float) -> float:
    """How far *at* is outside of the time between."""
    return max(before - at, at - after, 0.0)


def _said(app: Celery, text: object) -> str:
    return without_passwords(app.conf, text)


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
