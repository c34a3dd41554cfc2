"""Pages to Celery chains and chords: the only place that builds canvas.

Canvas is built afresh for each dispatch: Celery writes ids into what it sends (5.3 to 5.7).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import orjson
from celery import Celery, group
from celery.canvas import Signature
from celery.exceptions import NotRegistered, Retry
from kombu.utils.uuid import uuid

from .. import signals
from ..errors import ChordUnsupported, MissingResult, NonJSONArgument
from ..extend import observers
from ..extend.plugins import runtime
from ..model import codec, plan
from ..model.data import difference
from ..model.events import Engaged
from ..model.plan import Scope, Series
from ..model.status import isoformat
from ..stores.base import Missing, ResultStore
from . import compat, pages, publish
from .header import NAME, Header, Lane
from .pages import CloseItem, Expand, Item, JobItem, LanesItem, Pages, ParallelItem
from .record import Meta, Parent

EXPAND = "celery_clutch.expand"
CLOSE = publish.CLOSE
COLLECT = "celery_clutch.collect"
SETTLE = "celery_clutch.settle"
LANE = "celery_clutch.lane"
ON_ERROR = "celery_clutch.on_error"

PLAN = "plan"
"""The key under which the whole plan is stored beside its pages."""
DATA = "data"
"""The key under which a nested run keeps the shared data as it was at its start."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles the items of one run and generation.

    Attributes:
        app: the Celery app.
        origin: the header that those of the items derive from.
        native: whether the result backend counts the parts of chords.
    """

    app: Celery
    origin: Header
    native: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "native", compat.counts_natively(self.app.backend))

    def page(self, items: Sequence[Item], *, counted: bool = False) -> Signature | None:
        """The canvas of a page; None when nothing is left of it.

        Args:
            items: the page.
            counted: its last task is part of a chord.
        """
        return self.series(items, counted) if items else None

    def series(self, items: Sequence[Item], counted: bool) -> Signature:
        signatures: list[Signature] = []
        for index, item in enumerate(items):
            rest = items[index + 1 :]
            if isinstance(item, (ParallelItem, LanesItem)):
                if rest:
                    header = self.branches(item, counted=True)
                    body = self.series(rest, counted)
                    signatures.append(publish.chord_of(header, body))
                else:
                    branches = self.branches(item, counted=False)
                    signatures.append(group(branches, app=self.app))
                break
            last = counted and not rest
            if isinstance(item, JobItem):
                signatures.extend(self.job(item, last))
            elif isinstance(item, CloseItem):
                signatures.append(self.close(item, last))
            else:
                signatures.append(self.expand(item.page, item.queue, last))
        return self.chain(signatures)

    def branches(self, item: ParallelItem | LanesItem, counted: bool) -> list[Signature]:
        if isinstance(item, ParallelItem):
            return [self.series(branch, counted) for branch in item.branches]
        start = Lane(
            at=item.at,
            width=item.width,
            lane=0,
            number=-1,
            queue=item.queue,
            outer=self.origin.lane,
        )
        return [self.lane({**start, "lane": lane}, counted) for lane in range(item.lanes)]

    def lane(self, lane: Lane, counted: bool) -> Signature:
        """What lets a lane of a narrow parallel take its next branch."""
        at = f"{lane['at']} lane {lane['lane']}"
        header = self.origin.elsewhere(at, at, lane=lane)
        return self.internal(LANE, (), lane["queue"] or None, counted, header)

    def chain(self, signatures: Sequence[Signature]) -> Signature:
        """*signatures* one after another."""
        if len(signatures) == 1:
            return signatures[0]
        return compat.Chain(*signatures, app=self.app)

    def job(self, item: JobItem, counted: bool) -> list[Signature]:
        job = item.job
        header = Header.of_item(self.origin, item)
        args = job.args
        if not job.plain:
            if header.prepend:
                args = (None, *args)  # ClutchTask puts the previous result in its place
            return [self._job(job.task, args, job.kwargs, job.options, header, counted)]
        if header.prepend:
            args = (previous_value(runtime(self.app).store, header), *args)
            header = replace(header, prepend=False)
        plain = self._job(job.task, args, job.kwargs, job.options, header, None)
        queue = job.options.get("queue")
        named = replace(header, task=job.task)
        collect = self.internal(COLLECT, (), queue, counted, named, immutable=False)
        return [plain, collect]

    def close(self, item: CloseItem, counted: bool) -> Signature:
        if not pages.close_slot(item):
            return self.internal(CLOSE, (), item.queue, counted)
        header = Header.of_item(self.origin, item)
        return self.internal(CLOSE, (item.scope or None,), item.queue, counted, header)

    def expand(self, page: str, queue: str | None, counted: bool) -> Signature:
        at = f"page {page}"
        header = self.origin.elsewhere(at, at)
        return self.internal(EXPAND, (page,), queue, counted, header)

    def internal(
        self,
        name: str,
        args: tuple[Any, ...],
        queue: str | None,
        counted: bool,
        header: Header | None = None,
        *,
        immutable: bool = True,
    ) -> Signature:
        """The signature of one of our own tasks."""
        options: dict[str, Any] = {"ignore_result": self.native or not counted}
        if queue:
            options["queue"] = queue
        if header:
            options["headers"] = {NAME: header.to_dict()}
            options["link_error"] = [on_error()]
        return Signature(name, args, {}, options, app=self.app, immutable=immutable)

    def _job(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, Any],
        header: Header,
        counted: bool | None,
    ) -> Signature:
        options: dict[str, Any] = {
            k: list(v) if isinstance(v, list) else v for k, v in given.items()
        }
        data = header.to_dict()
        options["headers"] = {**(options.get("headers") or {}), NAME: data}
        # A task that is not ours fails where only its errbacks know of the run.
        errback = on_error() if counted is not None else on_error(data)
        options["link_error"] = [*_listed(options.get("link_error")), errback]
        if counted is not None:
            options["ignore_result"] = self.native or not counted
        elif header.expires and options.get("expires") is None:
            options["expires"] = isoformat(header.expires)  # a task that is not ours cannot ask
        return Signature(name, args, dict(kwargs), options, app=self.app, immutable=True)


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


def previous_value(store: ResultStore, header: Header) -> Any:
    """What Celery would prepend: the previous result, or a list of them after a parallel step."""
    values = previous_values(store, header)
    _, many = pages.expand_slots(header.previous)
    return values if many else values[0]


def previous_values(store: ResultStore, header: Header) -> list[Any]:
    """The previous results of a job, in definition order; one round trip.

    Raises:
        MissingResult: one of them is not in the store.
    """
    slots, _ = pages.expand_slots(header.previous)
    return read_values(store, header.run, slots)


def read_values(store: ResultStore, run: str, slots: Sequence[str]) -> list[Any]:
    """The decoded results in *slots*."""
    return [codec.decode_result(data) for data in read_raw(store, run, slots)]


def read_raw(store: ResultStore, run: str, slots: Sequence[str]) -> list[bytes]:
    """The results in *slots* as they are stored."""
    found: list[bytes] = []
    for slot, data in zip(slots, store.patiently(store.values, run, slots), strict=True):
        if data is Missing:
            raise MissingResult(
                f"the result of {slot} in run {run} is not in the store: the run was forgotten, "
                "has expired, or the server evicts keys"
            )
        found.append(data)
    return found


@dataclass(slots=True)
class Prepared:
    """A run that is ready to be stored and sent."""

    app: Celery
    run: str
    meta: Meta
    cut: Pages
    encoded: dict[str, bytes]
    data: Mapping[str, bytes] = field(default_factory=dict)
    shares: bool = False
    closed: bool = False

    @property
    def first(self) -> tuple[Item, ...]:
        """The page it starts with."""
        return self.cut.pages[pages.ROOT]

    def create(self) -> None:
        """Store it.

        Raises:
            AlreadyEngaged: a run with this id exists.
        """
        runtime(self.app).store.create(
            self.run,
            self.meta.dumps(),
            self.encoded,
            self.cut.units,
            jobs=self.cut.jobs,
            name=self.meta.name,
            tags=self.meta.tags,
            data=self.data,
        )

    def share(self, data: Mapping[str, bytes]) -> None:
        """Start with the *data* of the run around, and remember it, to tell what was changed."""
        self.data = data
        self.encoded[DATA] = orjson.dumps({key: value.decode() for key, value in data.items()})

    def canvas(self) -> Signature:
        """What starts the run: its first page where that is small, else one `expand` of it."""
        compiler = self.compiler()
        if pages.is_direct(self.first):
            return compiler.series(self.first, counted=self.closed)
        return root_canvas(compiler, self.meta, counted=self.closed)

    def compiler(self) -> Compiler:
        return Compiler(self.app, self.meta.origin(self.run, 0))

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
    closed: bool = False,
) -> Prepared:
    """Cut and encode *root*; nothing is stored or sent.

    *lifetime* is in seconds from now: jobs that have not started by then do not. *closed* says
    that something will wait for the end of the run; it does if it has a *parent*.

    Raises:
        NonJSONArgument: naming the job and the path.
        ChordUnsupported: something waits for a parallel step, and the backend cannot do that.
    """
    closed = closed or parent is not None
    tally = observers.heard(runtime(app), signals.clutch_step_settled)
    cut = pages.paginate(root, closed=closed, tally=tally)
    if cut.barriers and not app.conf.task_always_eager:
        _check_chords(app)
    expires = time.time() + lifetime if lifetime is not None else 0.0
    meta = Meta(cut.jobs, cut.last, name, tags, cut.scopes, parent, expires)
    _check_handlers(cut.scopes)
    encoded: dict[str, bytes] = {}
    encode = plan.JobEncoder()
    for key, items in cut.pages.items():
        try:
            encoded[key] = pages.dumps(items, encode)
        except NonJSONArgument:
            _explain(items)
            raise
    encoded[PLAN] = pages.compress(plan.dumps(root, encode))
    prepared = Prepared(app, run or uuid(), meta, cut, encoded, data or {}, closed=closed)
    if context := observers.context(runtime(app), prepared.engaged()):
        prepared.meta = replace(meta, context=context)
    return prepared


def root_canvas(compiler: Compiler, meta: Meta, *, counted: bool | None = None) -> Signature:
    """One `expand` of the first page."""
    waits = meta.parent is not None if counted is None else counted
    return compiler.expand(pages.ROOT, meta.scope("").queue, counted=waits)


def launch(prepared: Prepared, options: Mapping[str, Any]) -> None:
    """Store a run and send its first messages; *options* are for those.

    When they cannot be sent the run is deleted again, so that nothing is left of it.
    """
    app, items = prepared.app, prepared.first
    prepared.create()
    if items and not app.conf.task_always_eager:
        try:
            publish.send(app, prepared.canvas(), options)
        except BaseException:
            runtime(app).store.delete(prepared.run)
            raise
    observers.emit(runtime(app), signals.clutch_engaged, prepared.engaged)
    if items and app.conf.task_always_eager:
        run_eagerly(prepared.compiler(), items)


def run_eagerly(compiler: Compiler, items: Sequence[Item]) -> bool:
    """Run *items* here and now (``task_always_eager``); whether all of them have a result.

    Celery's own eager canvas goes on after a failure in a header, and knows no chord in a request.
    With ``task_eager_propagates`` the error that ends a job is raised, once it is recorded.
    """
    store, run = runtime(compiler.app).store, compiler.origin.run
    for item in items:
        if isinstance(item, LanesItem):
            keys = [pages.lane_page(item.at, i) for i in range(0, item.width, pages.LANE)]
            if not all([run_eagerly(compiler, load_page(store, run, key)) for key in keys]):
                return False
        elif isinstance(item, ParallelItem):
            if not all([run_eagerly(compiler, branch) for branch in item.branches]):
                return False
        elif isinstance(item, Expand):
            if not run_eagerly(compiler, load_page(store, run, item.page)):
                return False
        elif isinstance(item, CloseItem):
            compiler.close(item, False).apply(throw=False)
        elif not store.finished(run, [item.slot]):
            _run_job(compiler, item)
            if not store.finished(run, [item.slot]):
                return False
    return True


def _run_job(compiler: Compiler, item: JobItem) -> None:
    app = compiler.app
    task, *collect = compiler.job(item, False)
    try:
        result = _apply(task)
    except NotRegistered as exc:
        _record_eagerly(compiler, task, exc)
        return
    except Exception as exc:  # thrown by a retry that Celery has applied itself
        if collect:
            _record_eagerly(compiler, task, exc)
        raise
    if collect and result.successful():
        result = collect[0].apply((result.result,), throw=False)
    if app.conf.task_eager_propagates and result.failed():
        raise result.result


def _record_eagerly(compiler: Compiler, task: Signature, exc: Exception) -> None:
    """Tell our errback of a failure that Celery has not told it."""
    header = task.options["headers"][NAME]
    found = runtime(compiler.app).store.read(compiler.origin.run)
    known = found.failures.get(header["at"]) if found else None
    attempts = orjson.loads(known)["attempt"] if known else 0
    request = SimpleNamespace(task=task.task, id="", retries=attempts)
    compiler.app.tasks[ON_ERROR](request, exc, None, job=header)


def _apply(task: Signature) -> Any:
    """Apply *task* with its retries. Celery throws what asks for one where errors propagate."""
    while True:
        try:
            return task.apply(throw=False)
        except Retry as exc:
            task = exc.sig


def load_page(store: ResultStore, run: str, key: str) -> tuple[Item, ...]:
    """A stored page.

    Raises:
        MissingResult: the run or the page is gone.
    """
    data = store.patiently(store.page, run, key)
    if data is Missing:
        raise MissingResult(f"page {key} of run {run} is not in the store")
    return pages.loads(data)


def _check_chords(app: Celery) -> None:
    if compat.supports_chords(app.backend):
        return
    backend = app.conf.result_backend
    problem = (
        f"result_backend {backend!r} cannot do chords" if backend else "there is no result_backend"
    )
    raise ChordUnsupported(
        f"something follows a parallel step, which takes a Celery chord, and {problem}. Set "
        "result_backend, for example to redis://localhost:6379/0."
    )


def _check_handlers(scopes: Mapping[str, Scope]) -> None:
    for address, scope in scopes.items():
        where = f" of the clutch at {address}" if address else ""
        for kind in ("on_failure", "on_success", "on_death"):
            if handler := getattr(scope, kind):
                codec.check_argument(dict(handler), f"{kind}{where} ({handler['task']})")


def _explain(items: Iterable[Item]) -> None:
    """Raise `NonJSONArgument` for the job among *items* that JSON cannot carry."""
    for item in items:
        if isinstance(item, ParallelItem):
            for branch in item.branches:
                _explain(branch)
        elif isinstance(item, JobItem):
            job, where = item.job, f"job {item.at} ({item.job.task})"
            codec.check_argument(list(job.args), f"{where}, args")
            codec.check_argument(dict(job.kwargs), f"{where}, kwargs")
            codec.check_argument(dict(job.options), f"{where}, options")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
