"""Send canvas: the messages that Celery would send, together.

Celery sends each task of a group on its own: it copies the signature twice, asks for the queue to
be declared, waits for the broker, and subscribes to the task's result even where that is ignored
(5.3 to 5.7). For the pages of a wide parallel that is half of a worker's time. What follows in the
worker (the next step of a chain, the body of a chord) is Celery's own doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, Task, chord, group
from celery.canvas import Signature
from celery.exceptions import Ignore
from kombu.utils import json as kombu_json
from kombu.utils.uuid import uuid

from ..errors import MissingResult
from ..extend.plugins import runtime
from ..stores.base import Missing
from . import compat
from .header import NAME, Behind, Join, behind_page, completes

CLOSE = "celery_clutch.close"
"""The internal task that chords end in which have nothing else behind them."""

MANY = 6
"""How many jobs it takes at a barrier to store what is behind it, and read it when it opens, rather
than to have all of their messages carry it: a tenth of what such a message costs."""

TOGETHER = 50
"""How many messages go to the broker in one round trip. More would gain little, and let workers
that are idle wait for the first of them."""


def send(app: Celery, canvas: Signature, options: Mapping[str, Any] | None = None) -> None:
    """Send *canvas*; *options* are for its first messages."""
    if options:
        for first in _leading(canvas):
            merged = dict(options)
            if headers := merged.pop("headers", None):
                merged["headers"] = {**headers, **first.options.get("headers", {})}
            first.set(**merged)
    if _is_ours(app, canvas):
        _send(app, canvas)
    else:
        canvas.apply_async()


def replace(task: Task, canvas: Signature) -> Any:
    """Put *canvas*, which ends in one plain task, in the place of the running *task*.

    As ``Task.replace``; the task returns what this returns.
    """
    app, request = task.app, task.request
    if request.callbacks and not request.is_eager:
        pass_links(request, _last(canvas))
    if request.is_eager or request.callbacks or request.errbacks or not _is_ours(app, canvas):
        return Task.replace(task, canvas)
    last = _last(canvas)
    last.options.update(membership(request), task_id=request.id)
    following = [app.signature(each) for each in reversed(request.chain or ())]
    _send(app, followed(canvas, following))
    if not request.ignore_result:
        raise Ignore("replaced")
    # What Ignore is for, without the traceback that Celery formats for it: a twentieth of the time
    # it takes to send a page.
    request.chord = request.chain = None
    return None


def go_past(app: Celery, request: Any, run: str, join: Join) -> None:
    """Let a running task, which has opened a barrier, be followed by what is behind it.

    Raises:
        MissingResult: the run is gone.
    """
    behind = join.behind
    if behind is None:
        store = runtime(app).store
        page = store.patiently(store.page, run, behind_page(join.barrier))
        if page is Missing:
            raise MissingResult(f"what follows {join.barrier} in run {run} is gone, as the run is")
        behind = kombu_json.loads(page)
    request.chain = list(behind["next"])
    if place := behind["place"]:
        request.chord, request.group = place["chord"], place["group_id"]
        request.group_index = place.get("group_index")


def follow(task: Task) -> None:
    """Send the next step of the running *task* if it is a chord or group; other steps Celery sends.

    Celery, sending a group, keeps a result object and a subscription for each of its tasks, in a
    worker for as long as that lives (5.3 to 5.7), and in 5.3 and 5.4 the finaliser of an older one
    can wait for a lock of redis-py that the new one holds: the child hangs.
    """
    chain = task.request.chain
    if not chain or chain[-1].get("subtask_type") not in ("chord", "group"):
        return
    canvas, *following = [task.app.signature(each) for each in reversed(chain)]
    if _is_ours(task.app, canvas):
        _send(task.app, followed(canvas, following))
        task.request.chain = None


def pass_links(request: Any, last: Signature) -> None:
    """Let the links of a task be those of *last*, which ends what replaces it.

    ``Task.replace`` does it itself, but in 5.3 puts them on the chain as well: they run twice.
    """
    last.options["link"] = [*(last.options.get("link") or ()), *(request.callbacks or ())]
    request.callbacks = None


def pass_membership(request: Any, canvas: Signature) -> None:
    """Let what ends *canvas* be the part of a chord that a task was which *canvas* replaces.

    ``Task.replace`` hands that on itself, but not through a chord whose body is a chain (5.7).
    """
    if compat.is_chord(canvas) and isinstance(canvas.body, compat.Chain):
        last = canvas.body.tasks[-1]
        last.options.update(membership(request))
        request.chord = request.group = request.group_index = None


def membership(request: Any) -> dict[str, Any]:
    """What makes a task a part of a chord."""
    found = {"chord": request.chord, "group_id": request.group, "group_index": request.group_index}
    return {key: value for key, value in found.items() if value is not None}


def _send(app: Celery, canvas: Signature) -> None:
    messages = _Messages(app)
    messages.add(canvas)
    messages.send()


class _Messages:
    """The first messages of canvas, to be sent through one producer, each queue declared once."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.found: list[tuple[Signature, dict[str, Any]]] = []

    def add(self, canvas: Signature) -> None:
        if compat.is_chord(canvas):
            self.chord(canvas)
        elif isinstance(canvas, group):
            for branch in canvas.tasks:
                self.add(branch)
        else:
            first, *rest = tasks_of(canvas)
            for task in (first, *rest):  # up to 5.6 Celery wants ids of those behind a failure
                task.options.setdefault("task_id", uuid())
            chain = {"chain": rest[::-1]} if rest else {}
            self.found.append((first, {**first.options, "add_to_parent": False, **chain}))

    def chord(self, canvas: Any) -> None:
        branches, following = list(canvas.tasks), tasks_of(canvas.body)
        for task in following:
            task.options.setdefault("task_id", uuid())
        ends = [_last(branch) for branch in branches]
        if barrier := _barrier(ends):
            join = self.join(barrier, ends, following).to_list()
            for end in ends:
                header = {**end.options["headers"][NAME], "join": join}
                end.options["headers"] = {**end.options["headers"], NAME: header}
        else:
            group_id = uuid()
            self.app.backend.set_chord_size(group_id, len(ends))
            for index, end in enumerate(ends):
                end.options.setdefault("task_id", uuid())
                end.options.update(chord=canvas.body, group_id=group_id, group_index=index)
        for branch in branches:
            self.add(branch)

    def join(self, barrier: str, ends: list[Signature], following: list[Signature]) -> Join:
        place = _place(following[0]) if len(following) == 1 else {}
        behind = Behind(next=[] if place else following[::-1], place=place)
        if len(ends) >= MANY:
            run, store = ends[0].options["headers"][NAME]["run"], runtime(self.app).store
            page = kombu_json.dumps(behind).encode()
            if store.patiently(store.add_page, run, behind_page(barrier), page):
                return Join(barrier, len(ends))
        return Join(barrier, len(ends), behind)

    def send(self) -> None:
        with self.app.producer_or_acquire() as producer:
            try:
                with compat.batch(producer, TOGETHER):
                    self.publish(producer)
            except compat.BATCH_ERRORS:
                # Perhaps all of them are lost. Sent one by one, each is tried again as Celery's
                # task_publish_retry_policy says; what has arrived comes twice.
                self.publish(producer)

    def publish(self, producer: Any) -> None:
        declared: set[Any] = set()
        for signature, options in self.found:
            route = signature.task, options.get("queue")
            declare: dict[str, Any] = {"declare": []} if route in declared else {}
            declared.add(route)
            _publish(self.app, signature, {**options, "producer": producer, **declare})


def _publish(app: Celery, signature: Signature, options: dict[str, Any]) -> None:
    task = app.tasks.get(signature.task)
    args, kwargs = signature.args, signature.kwargs
    if task is not None and hasattr(task, "job_options"):
        options = task.job_options(options)
    if task is None:
        app.send_task(signature.task, args, kwargs, **options)
    elif compat.sends_as_usual(task):
        compat.send_unchecked(task, args, kwargs, {**options, "result_cls": compat.Unread})
    else:
        task.apply_async(args, kwargs, **options)


def _barrier(ends: list[Signature]) -> str | None:
    """The name of the barrier of a chord whose parts the store counts with their results; None
    where it cannot.

    That saves each part a round trip, and unlike Celery's count (5.3 to 5.7) it is right when a
    worker is killed between the two. In a resumed run some parts may be done, and messages from
    before and after a redelivery would tell of different widths.
    """
    headers: list[Any] = [(end.options.get("headers") or {}).get(NAME) for end in ends]
    if not all(headers):
        return None
    first = headers[0]
    if first["gen"] or any(each["run"] != first["run"] or not completes(each) for each in headers):
        return None
    return str(first.get("slot", first["at"]))  # which no other barrier counts


def _place(signature: Signature) -> dict[str, Any]:
    """The place in a chord of an internal task that does nothing but end it; else nothing."""
    options = signature.options
    if signature.task != CLOSE or options.get("headers"):
        return {}
    names = ("chord", "group_id", "group_index")
    return {name: options[name] for name in names if options.get(name) is not None}


def _is_ours(app: Celery, canvas: Signature) -> bool:
    """Whether *canvas* can be sent from here: a chord can where the backend counts its parts."""
    if compat.is_chord(canvas):
        native = compat.counts_natively(app.backend)
        return native and all(_is_ours(app, branch) for branch in canvas.tasks)
    if isinstance(canvas, group):
        return all(_is_ours(app, branch) for branch in canvas.tasks)
    return True


def tasks_of(canvas: Signature) -> list[Signature]:
    """The tasks of a chain; of anything else, that."""
    return list(canvas.tasks) if isinstance(canvas, compat.Chain) else [canvas]


def copied(canvas: Any) -> Signature | None:
    """A copy of *canvas* that can be sent from here; None unless it is a task, or a chain, group or
    chord of tasks, without options of its own."""
    if type(canvas) is Signature:
        return canvas.clone()
    if canvas.options:
        return None
    if compat.is_chord(canvas):
        header, body = _copies(canvas.tasks), copied(canvas.body) if canvas.body else None
        return chord_of(header, body) if header and body is not None else None
    if isinstance(canvas, (compat.Chain, group)) and (tasks := _copies(canvas.tasks)):
        whole = isinstance(canvas, group)
        return group(tasks, app=canvas.app) if whole else compat.Chain(*tasks, app=canvas.app)
    return None


def _copies(tasks: Any) -> list[Signature]:
    """Copies of *tasks*; none if one of them is not just a task."""
    return [task.clone() for task in tasks] if all(type(t) is Signature for t in tasks) else []


def chord_of(header: list[Signature], body: Signature) -> Signature:
    """A chord of just these."""
    waiting = chord([], body, app=body.app)
    waiting.tasks = header  # chord(header, body) would copy each of them
    return waiting


def leaves(canvas: Signature) -> Iterator[Signature]:
    """Every task in *canvas*."""
    if compat.is_chord(canvas):
        yield from leaves(canvas.body)
    elif not isinstance(canvas, (compat.Chain, group)):
        yield canvas
        return
    for task in canvas.tasks:
        yield from leaves(task)


def _last(canvas: Signature) -> Signature:
    """The plain task that *canvas* ends in."""
    while True:
        if isinstance(canvas, compat.Chain):
            canvas = canvas.tasks[-1]
        elif compat.is_chord(canvas):
            canvas = canvas.body
        else:
            return canvas


def followed(canvas: Signature, following: list[Signature]) -> Signature:
    """*canvas* with *following* behind it."""
    if not following:
        return canvas
    following = [task for each in following for task in tasks_of(each)]
    if isinstance(canvas, group):
        return chord_of(list(canvas.tasks), followed(following[0], following[1:]))
    if compat.is_chord(canvas):
        canvas.body = followed(canvas.body, following)
        return canvas
    *before, last = tasks_of(canvas)
    if compat.is_chord(last) or isinstance(last, group):
        return compat.Chain(*before, followed(last, following), app=canvas.app)
    return compat.Chain(*before, last, *following, app=canvas.app)


def _leading(canvas: Signature) -> Iterator[Signature]:
    if isinstance(canvas, compat.Chain):
        yield from _leading(canvas.tasks[0])
    elif isinstance(canvas, group) or compat.is_chord(canvas):
        for task in canvas.tasks:
            yield from _leading(task)
    else:
        yield canvas
