"""Send canvas: the messages that Celery would send, through one producer.

Celery sends each task of a group on its own: it copies the signature twice, asks for the queue to
be declared, and subscribes to the task's result even where that is ignored (5.3 to 5.7). For the
pages of a wide parallel that is half of a worker's time. What follows in the worker (the next step
of a chain, the body of a chord) is Celery's own doing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, Task, group
from celery.canvas import Signature
from celery.exceptions import Ignore
from kombu.utils.uuid import uuid

from . import compat
from .header import Join


def send(app: Celery, canvas: Signature, options: Mapping[str, Any] | None = None) -> None:
    """Send *canvas*; *options* are for its first messages."""
    if options:
        for first in _leading(canvas):
            merged = dict(options)
            if headers := merged.pop("headers", None):
                merged["headers"] = {**headers, **first.options.get("headers", {})}
            first.set(**merged)
    if _is_ours(app, canvas):
        with _Sender(app) as sender:
            sender.send(canvas)
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
    with _Sender(app) as sender:
        sender.send(followed(canvas, following))
    if not request.ignore_result:
        raise Ignore("replaced")
    # What Ignore is for, without the traceback that Celery formats for it: a twentieth of the time
    # it takes to send a page.
    request.chord = request.chain = None
    return None


def spread(task: Task, canvas: Signature) -> None:
    """Send *canvas*, a group, whose last job takes the place of the running *task* in its chord."""
    with _Sender(task.app) as sender:
        sender.send(canvas)
    task.request.chord = None


def take_place(request: Any, join: Join) -> None:
    """Let a running task be the part of a chord that its page was."""
    request.chord, request.group, request.group_index = join["chord"], join["group"], join["index"]


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
        with _Sender(task.app) as sender:
            sender.send(followed(canvas, following))
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


class _Sender:
    """Sends signatures through one producer, and has each queue declared once."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.declared: set[Any] = set()

    def __enter__(self) -> _Sender:
        self.pool = self.app.producer_or_acquire()
        self.producer = self.pool.__enter__()
        return self

    def __exit__(self, *exc: Any) -> Any:
        return self.pool.__exit__(*exc)

    def send(self, canvas: Signature) -> None:
        if compat.is_chord(canvas):
            self.chord(canvas)
        elif isinstance(canvas, group):
            for branch in canvas.tasks:
                self.send(branch)
        else:
            first, *rest = tasks_of(canvas)
            for task in rest:  # up to 5.6 Celery wants ids of those behind a failure
                task.options.setdefault("task_id", uuid())
            self.publish(first, list(reversed(rest)))

    def chord(self, canvas: Any) -> None:
        group_id, branches, body = uuid(), list(canvas.tasks), canvas.body
        for task in tasks_of(body):
            task.options.setdefault("task_id", uuid())
        self.app.backend.set_chord_size(group_id, len(branches))
        for index, branch in enumerate(branches):
            last = _last(branch)
            last.options.setdefault("task_id", uuid())
            last.options.update(chord=body, group_id=group_id, group_index=index)
            self.send(branch)

    def publish(self, signature: Signature, chain: list[Signature]) -> None:
        options = dict(signature.options, producer=self.producer, add_to_parent=False)
        if chain:
            options["chain"] = chain
        route = signature.task, options.get("queue")
        if route in self.declared:
            options["declare"] = []
        self.declared.add(route)
        _publish(self.app, signature, options)


def _publish(app: Celery, signature: Signature, options: dict[str, Any]) -> None:
    task = app.tasks.get(signature.task)
    args, kwargs = signature.args, signature.kwargs
    if task is not None and hasattr(task, "job_options"):
        options = task.job_options(options)
    if task is None:
        app.send_task(signature.task, args, kwargs, **options)
    elif compat.sends_as_usual(task):
        compat.send_unchecked(task, args, kwargs, options)
    else:
        task.apply_async(args, kwargs, **options)


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


def is_simple(canvas: Any) -> bool:
    """Whether *canvas* is a task, or a chain of tasks without options of its own."""
    if isinstance(canvas, compat.Chain):
        return not canvas.options and all(type(task) is Signature for task in canvas.tasks)
    return type(canvas) is Signature


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
    if compat.is_chord(canvas):
        canvas.body = followed(canvas.body, following)
        return canvas
    *before, last = tasks_of(canvas)
    if compat.is_chord(last):
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
