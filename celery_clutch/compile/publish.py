"""Send chains: the messages that Celery would send, together.

Celery sends each task of a group on its own: it copies the signature twice, asks for the queue to
be declared, waits for the broker, and subscribes to the task's result even where that is ignored
(5.3 to 5.7). For the pages of a wide parallel that is half of a worker's time.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import Celery, Task
from celery.canvas import Signature
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError

from ..errors import ConfigurationError
from ..extend.plugins import Runtime
from ..extend.settings import quoted
from . import compat, direct
from .header import NAME

TOGETHER = 50
"""How many messages go to the broker in one round trip. More would gain little, and let workers
that are idle wait for the first of them."""

PATIENCE = 10.0
"""Seconds for which a worker tries again what follows a job while the broker is away."""

Chains = Sequence[list[Signature]]
"""Tasks that are sent one behind the other, each list in a message of its own."""

Messages = Sequence[direct.Message]

_IDS = uuid.UUID("b8f9f3d2-6c1b-4b7e-9d3f-0c5f1f0f7a51")


def send(app: Celery, chains: Chains, options: Mapping[str, Any] | None = None) -> None:
    """Send *chains*; *options* are for their first tasks."""
    found = [_message(chain, options or {}) for chain in chains]
    for start in range(0, len(found), TOGETHER):
        some = found[start : start + TOGETHER]
        if not direct.send(app, some, partial(_publish_one, app)):
            _send(app, found[start:])
            return


def made(
    own: Runtime, chain: list[Signature], options: Mapping[str, Any] | None = None
) -> tuple[str, bytes] | None:
    """The message of *chain*, behind the key of its queue, for a store that can send it;
    *options* are for its first task."""
    only = [_message(chain, options or {})]
    found = direct.of(own).made(only, partial(_publish_one, own.app))
    if found is None or [len(messages) for messages in found.values()] != [1]:
        return None
    ((queue, (message,)),) = found.items()
    return queue, message


def _send(app: Celery, found: Messages) -> None:
    """Send messages as Celery does."""
    with quietly(app), compat.producer(app) as producer:
        try:
            with compat.batch(producer, min(len(found), TOGETHER)):
                _publish_all(app, found, producer, set())
        except compat.BATCH_ERRORS:
            # Perhaps all of them are lost. Sent one by one, each is tried again as Celery's
            # task_publish_retry_policy says; what has arrived comes twice.
            _publish_all(app, found, producer, set())


def send_patiently(app: Celery, chains: Chains) -> None:
    """`send`, tried again for `PATIENCE` seconds while the broker is away."""
    for pause in _pauses():
        try:
            return send(app, chains)
        except compat.BROKER_ERRORS:
            time.sleep(pause)
    return send(app, chains)


def apply(app: Celery, signature: Signature, args: Sequence[Any] = ()) -> None:
    """Send a signature of the user's; of a single task, the broker has it then."""
    if app.conf.task_always_eager or type(signature) is not Signature:
        signature.apply_async(args)
        return
    with quietly(app), compat.producer(app) as producer:
        signature.apply_async(args, producer=producer)


@contextmanager
def quietly(app: Celery) -> Iterator[None]:
    """Errors of Celery, kombu and their clients, without the pieces of passwords in them.

    Raises:
        OperationalError: instead of an error that quotes a password, if that says that the broker
            is away.
        ConfigurationError: instead of another.
    """
    try:
        yield
    except Exception as exc:
        text = quoted(app.conf, exc)
        if text is None:
            raise
        if isinstance(exc, compat.BROKER_ERRORS):
            raise OperationalError(text) from None
        what = f"the broker or the result backend cannot be used: {type(exc).__name__}: {text}"
        raise ConfigurationError(what) from None


def retry_patiently(retry: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """``Task.retry``, tried again for `PATIENCE` seconds while the broker is away."""
    for pause in _pauses():
        try:
            return retry(*args, **options)
        except Reject as exc:
            # What Celery raises when it could not send the message (5.3 to 5.7).
            if not isinstance(exc.reason, compat.BROKER_ERRORS):
                raise
            time.sleep(pause)
    return retry(*args, **options)


def _pauses() -> Iterator[float]:
    """Ever longer pauses, in seconds; none after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.1
    while time.monotonic() <= deadline:
        yield random.uniform(pause / 2, pause)
        pause = min(pause * 2, 2.0)


def replace(task: Task, tasks: list[Signature]) -> Any:
    """Put *tasks*, one behind the other, in the place of the running *task*.

    As ``Task.replace``, without its result objects, whose finalisers can hang a worker child (5.3
    and 5.4).
    """
    tasks[-1].options["task_id"] = task.request.id
    send(task.app, [tasks])
    raise Ignore("replaced")


def pass_links(request: Any, last: Signature) -> None:
    """Let the links of a task be those of *last*, which ends what replaces it.

    ``Task.replace`` does it itself, but in 5.3 puts them on the chain as well: they run twice.
    """
    last.options["link"] = [*(last.options.get("link") or ()), *(request.callbacks or ())]
    request.callbacks = None


def copied(canvas: Any) -> list[Signature]:
    """Copies of the tasks of *canvas*; none unless it is a task, or a chain of tasks without
    options of its own."""
    if type(canvas) is Signature:
        return [canvas.clone()]
    if not isinstance(canvas, compat.Chain) or canvas.options:
        return []
    if any(type(task) is not Signature for task in canvas.tasks):
        return []
    return [task.clone() for task in canvas.tasks]


def task_id(header: Mapping[str, Any], kind: str) -> str:
    """The id of the message of a job: the same for every copy in its generation."""
    name = f"{header['run']} {header['gen']} {header['at']} {header['page']} {kind}"
    return str(uuid.uuid5(_IDS, name))


def _id_of(task: Signature) -> str:
    header = (task.options.get("headers") or {}).get(NAME)
    if not header:
        return str(uuid.uuid4())
    kind = task.task if header["at"] else f"{task.task} {task.args} {task.kwargs}"
    return task_id(header, kind)


def _message(
    chain: list[Signature], options: Mapping[str, Any]
) -> tuple[Signature, dict[str, Any]]:
    first, *rest = chain
    for task in chain:
        options_of = task["options"]  # what a message has carried here is still a dict
        if "task_id" not in options_of:  # one that is abbreviated gets its own when it is first
            options_of["task_id"] = _id_of(task)
    own = {**first.options, **options, "add_to_parent": False}
    if headers := options.get("headers"):
        own["headers"] = {**headers, **first.options.get("headers", {})}
    if rest:
        own["chain"] = rest[::-1]
    return first, own


def _publish_all(app: Celery, found: Messages, producer: Any, declared: set[Any]) -> None:
    for message in found:
        _publish_one(app, message, producer, declared)


def _publish_one(app: Celery, message: direct.Message, producer: Any, declared: set[Any]) -> None:
    signature, options = message
    route = signature.task, options.get("queue"), options.get("route_name")
    declare: dict[str, Any] = {"declare": []} if route in declared else {}
    declared.add(route)
    _publish(app, signature, {**options, "producer": producer, **declare})


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
