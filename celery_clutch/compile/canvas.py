"""Pages to Celery chains: the only place that builds canvas.

A series within a page is a Celery chain. A parallel that something follows is what a chord is,
with the rest of the plan as its body; its parts are counted by the result store, in the step that
records their results, and whoever completes the last one sends the body. So any result backend will
do, and none at all.

Canvas is built afresh each time: Celery writes ids into what it sends (5.3 to 5.7).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import orjson
from celery import Celery
from celery.canvas import Signature
from kombu.utils.uuid import uuid

from .. import signals
from ..errors import MissingResult, NonJSONArgument
from ..extend import observers
from ..extend.plugins import Runtime, runtime
from ..model import codec, names, plan
from ..model.data import difference
from ..model.events import Engaged
from ..model.names import Names
from ..model.plan import Job, Scope, Series
from ..model.status import isoformat
from ..stores.base import Missing, ResultStore
from ..stores.rows import ROOT
from . import checks, cut, pages, values
from .header import NAME, Header, job_due
from .pages import Chain, Item, Pages, Start
from .record import Meta, Parent

Tasks = list[Any]
"""The tasks of a chain. The first is a Signature; those behind it are, or are dicts as messages
have them, some of them abbreviated (see `carried`)."""

ADVANCE = "celery_clutch.advance"
COLLECT = "celery_clutch.collect"
ON_ERROR = "celery_clutch.on_error"

PLAN = "plan"
"""The key under which the whole plan is stored beside its pages."""
NAMES = "names"
"""The key under which the names of steps are stored, if there are any."""
DATA = "data"
"""The key under which a nested run keeps the shared data as it was at its start."""


class Compiler:
    """Compiles the chains of one run and generation.

    Attributes:
        app: the Celery app.
        origin: what the headers of all jobs have in common.
    """

    def __init__(self, app: Celery, origin: Header) -> None:
        self.app = app
        self.origin = origin

    @cached_property
    def _runtime(self) -> Runtime:
        return runtime(self.app)

    def chain(self, page: str, items: Chain, *, due: bool = False) -> Tasks:
        """The tasks of a chain, one behind the other.

        Args:
            page: the page that the chain is in.
            items: the jobs, or what is left of them.
            due: the first of them is recorded as due.
        """
        tasks: Tasks = []
        # Celery looks at what is behind a task that is not ours: it sends the next, and
        # ``replace()`` makes another chain of all.
        whole = False
        for index, item in enumerate(items):
            following = items[index + 1].at if index + 1 < len(items) else ""
            receipts = (job_due(page, item.at),) if due or index else ()
            header = Header.of_item(self.origin, page, item, next=following, receipts=receipts)
            whole = whole or item.job.plain
            if index and not whole:
                tasks.append(self._abbreviated(item, header))
            else:
                tasks.extend(self.job(item, header))
        return tasks

    def job(self, item: Item, header: Header) -> list[Signature]:
        """A job, and what collects its value if it cannot do so itself."""
        job = item.job
        args = job.args
        if not job.plain:
            args, header = self._own(job, header)
            return [self._job(job.task, args, job.kwargs, job.options, header, plain=False)]
        if header.prepend:
            args = (values.previous_value(self._runtime.store, header), *args)
            header = replace(header, prepend=False)
        plain = self._job(job.task, args, job.kwargs, job.options, header, plain=True)
        return [plain, self.collect(replace(header, task=job.task), job.options.get("queue"))]

    def _own(self, job: Job, header: Header) -> tuple[tuple[Any, ...], Header]:
        """The arguments of a ClutchTask, and its header."""
        # Whoever has given the job an id means to look it up.
        if "task_id" in job.options or self._runtime.settings.keep_results:
            header = replace(header, keep=True)
        # ClutchTask puts the previous result in the place of the None.
        return (None, *job.args) if header.prepend else job.args, header

    def _abbreviated(self, item: Item, header: Header) -> dict[str, Any]:
        """A job in the chain of a message, without what `carried` knows when it comes to be sent.

        The message of a job has all that is behind it, and so much is read and written for each.
        """
        job = item.job
        args, header = self._own(job, header)
        # When a job fails Celery looks into the options for an id; 5.3 requires that there is one.
        options = {"task_id": None, **job.options}
        task = {"task": job.task, "args": args, "options": options, NAME: header.abbreviated()}
        return {**task, "kwargs": job.kwargs} if job.kwargs else task

    def collect(
        self, header: Header, queue: str | None, changes: Mapping[str, Any] | None = None
    ) -> Signature:
        """What records the value of the task before it as the result of the job of *header*."""
        kwargs = {"changes": dict(changes)} if changes else {}
        return self.internal(COLLECT, (), queue, header, immutable=False, kwargs=kwargs)

    def advance(
        self, page: str, queue: str | None, *, behind: str = "", rest: bool = False
    ) -> Signature:
        """What sends a page, or what is left of the run from there on, in a worker.

        Without a *queue* it goes where messages of the task *behind* go.
        """
        kwargs = {"rest": True} if rest else {}
        task = self.internal(ADVANCE, (page,), queue, self.origin, kwargs=kwargs)
        if behind and not queue:
            task.options["route_name"] = behind
        return task

    def internal(
        self,
        name: str,
        args: tuple[Any, ...],
        queue: str | None,
        header: Header,
        *,
        immutable: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Signature:
        """The signature of one of our own tasks."""
        options: dict[str, Any] = {"headers": {NAME: header.to_dict()}}
        if not header.keep:
            options["ignore_result"] = True
        if queue:
            options["queue"] = queue
        if header.at:
            options["link_error"] = [on_error()]
        return Signature(name, args, dict(kwargs or {}), options, app=self.app, immutable=immutable)

    def _job(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Any],
        header: Header,
        *,
        plain: bool,
    ) -> Signature:
        data = header.to_dict()
        # A task that is not ours fails where only its errbacks know of the run.
        options = _options(given, data, on_error(data) if plain else on_error())
        if not plain and not header.keep:
            options["ignore_result"] = True
        if plain and header.expires and options.get("expires") is None:
            options["expires"] = isoformat(header.expires)  # a task that is not ours cannot ask
        return Signature(name, args, dict(kwargs), options, app=self.app, immutable=True)


def carried(app: Celery, header: Header, chain: Sequence[Any]) -> Tasks:
    """What is behind the job of *header* in its message, made ready to be sent.

    Args:
        app: the Celery app.
        header: of the job.
        chain: as Celery has it: the last is next.
    """
    first, *rest = reversed(chain)
    if not is_abbreviated(first):
        return [app.signature(first), *rest]
    data = header.restored(first[NAME], _address(rest[0]) if rest else "")
    options = _options(first["options"], data, on_error())
    if options["task_id"] is None:
        del options["task_id"]
    if not data.get("keep"):
        options["ignore_result"] = True
    args, kwargs = tuple(first["args"]), first.get("kwargs")
    return [Signature(first["task"], args, kwargs, options, app=app, immutable=True), *rest]


def is_abbreviated(task: Mapping[str, Any]) -> bool:
    """Whether a task of a chain is to be made whole by `carried` before it is sent."""
    return NAME in task


def _address(task: Mapping[str, Any]) -> str:
    """The address of a job in a chain."""
    header = task[NAME] if is_abbreviated(task) else task["options"]["headers"][NAME]
    return str(header["at"])


def _options(
    given: Mapping[str, Any], header: Mapping[str, Any], errback: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a job, with what all jobs have besides those *given*."""
    options: dict[str, Any] = {k: list(v) if isinstance(v, list) else v for k, v in given.items()}
    options["headers"] = {**(options.get("headers") or {}), NAME: header}
    options["link_error"] = [*_listed(options.get("link_error")), errback]
    return options


def on_error(header: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The errback of a job, as Celery serialises signatures, without what it does not miss (5.3 to
    5.7): every message carries it.

    Celery calls it inline as ``(request, exc, traceback)`` in workers that know it, and the
    request has the job's header. Where that is not so, *header* comes along as an argument.
    """
    return {
        "task": ON_ERROR,
        "args": [],
        "kwargs": {"job": header} if header else {},
        "options": {},
    }


def drop_own_errbacks(request: Any) -> None:
    """Forget our errback in *request* before ``replace()``, which links it to everything it sends.

    What is sent has its own.
    """
    request.errbacks = [
        errback
        for errback in _listed(request.errbacks)
        if errback["task"] != ON_ERROR or errback["kwargs"]
    ]


def shared_changes(store: ResultStore, run: str) -> dict[str, bytes | None]:
    """What the nested *run* has changed of the data it shares with the run around it.

    Raises:
        MissingResult: the nested run is gone.
    """
    before = store.patiently(store.page, run, DATA)
    after = store.patiently(store.data, run)
    if before is Missing or after is None:
        raise MissingResult(f"the data of the nested run {run} is not in the store")
    return difference({key: value.encode() for key, value in orjson.loads(before).items()}, after)


@dataclass(slots=True)
class Prepared:
    """A run that is ready to be stored and sent."""

    app: Celery
    run: str
    meta: Meta
    cut: Pages
    encoded: dict[str, bytes]
    data: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def first(self) -> tuple[Start, ...]:
        """The page it starts with."""
        return self.cut.first

    def create(self, since: float | None = None, message: tuple[str, bytes] | None = None) -> None:
        """Store it; unless *since* is None, its first page is due from then on.

        *message* is that of the page, behind the key of its queue, for a store that can send it.

        Raises:
            AlreadyEngaged: a run with this id exists.
        """
        sent = {"message": message} if message else {}  # other stores do not know it
        due = {ROOT: since} if since is not None and self.meta.jobs else {}
        store = runtime(self.app).store
        store.create(
            self.run,
            self.meta.dumps(),
            self.encoded,
            self.meta.jobs,
            name=self.meta.name,
            tags=self.meta.tags,
            data=self.data,
            ends=self.meta.ends() if self.meta.jobs else (),  # an empty clutch sends nothing
            due=due,
            **sent,
        )

    def share(self, data: Mapping[str, bytes]) -> None:
        """Start with the *data* of the run around, and remember it, to tell what was changed."""
        self.data = data
        self.encoded[DATA] = orjson.dumps({key: value.decode() for key, value in data.items()})

    @property
    def origin(self) -> Header:
        """What the headers of all jobs have in common."""
        return self.meta.origin(self.run, 0)

    def engaged(self) -> Engaged:
        """What observers are told of it."""
        meta = self.meta
        parent = meta.parent.to_status() if meta.parent else None
        return Engaged(self.run, meta.name, meta.tags, meta.jobs, parent, time.time(), meta.context)


def prepare(
    app: Celery,
    root: Series,
    *,
    run: str | None = None,
    name: str | None = None,
    tags: tuple[str, ...] = (),
    parent: Parent | None = None,
    data: Mapping[str, bytes] | None = None,
    lifetime: float | None = None,
) -> Prepared:
    """Cut, check and encode *root*; nothing is stored or sent.

    *lifetime* is in seconds from now: jobs that have not started by then do not.

    Raises:
        NonJSONArgument: naming the job and the path.
        InvalidStep, InvalidOption: a job that Celery would not send, or its task not take.
        InvalidName: a name that no step can have, or that two have.
    """
    own = runtime(app)
    tally = observers.heard(own, signals.clutch_step_settled)
    jobs = checks.Jobs(app)
    encoded: dict[str, bytes] = {}
    encode = plan.JobEncoder()

    def keep(key: str, starts: tuple[Start, ...]) -> None:
        jobs.check(pages.items(starts))
        encoded[key] = encoded_page(starts, encode)

    found = cut.paginate(root, tally=tally, window=own.settings.window, keep=keep)
    expires = time.time() + lifetime if lifetime is not None else 0.0
    scopes, decides = found.scopes, found.decides
    meta = Meta(found.jobs, found.last, name, tags, scopes, parent, expires, decides=decides)
    checks.handlers(found.scopes)
    _check_handlers(found.scopes)
    jobs.warn()
    encoded[PLAN] = pages.compress(plan.dumps(root, encode))
    if found.names:
        encoded[NAMES] = pages.compress(names.dumps(found.names))
    if found.narrows:
        encoded[pages.NARROWS] = orjson.dumps(found.narrows)
    prepared = Prepared(app, run or uuid(), meta, found, encoded, data or {})
    if context := observers.context(own, prepared.engaged()):
        prepared.meta = replace(meta, context=context)
    return prepared


def load_names(store: ResultStore, run: str) -> Names:
    """The names of the steps of a run; one round trip. None of a run that is gone."""
    data = store.patiently(store.page, run, NAMES)
    return {} if data is Missing else names.loads(pages.decompress(data))


def _check_handlers(scopes: Mapping[str, Scope]) -> None:
    for address, scope in scopes.items():
        where = f" of the clutch at {address}" if address else ""
        for kind in ("on_failure", "on_success", "on_death", "on_end", "errbacks"):
            if handler := getattr(scope, kind):
                codec.check_argument(dict(handler), f"{kind}{where} ({handler['task']})")


def encoded_page(starts: tuple[Start, ...], encode: plan.JobEncoder) -> bytes:
    """A page as a store keeps it.

    Raises:
        NonJSONArgument: naming the job and the path.
    """
    try:
        return pages.dumps(starts, encode)
    except NonJSONArgument:
        _explain(starts)
        raise


def _explain(starts: Iterable[Start]) -> None:
    """Raise `NonJSONArgument` for the job in *starts* that JSON cannot carry."""
    for item in pages.items(starts):
        job, where = item.job, f"job {item.at} ({item.job.task})"
        codec.check_argument(list(job.args), f"{where}, args")
        codec.check_argument(dict(job.kwargs), f"{where}, kwargs")
        codec.check_argument(dict(job.options), f"{where}, options")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
