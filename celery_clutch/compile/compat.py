"""Where the supported versions of Celery differ, or keep something to themselves.

Everything here can go when what it works around does; each piece says when.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

from celery import Celery, Task, signals
from celery import canvas as _canvas
from celery._state import get_current_task, task_join_will_block
from celery.app import base as _base
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from celery.exceptions import ChordError, Ignore
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_make_aware
from kombu import Producer, pools
from kombu import exceptions as _kombu

if TYPE_CHECKING:
    App: TypeAlias = Celery[Any]
else:
    App = Celery
"""An app with tasks of any class: to celery-types apps are generic, to Celery not (5.3 to 5.7)."""

Chain = _canvas._chain
"""The signature of a chain. ``celery.chain(...)`` folds its arguments with ``|``, which copies and
rewrites them; this takes them as they are (5.3 to 5.7)."""

_Chord = _canvas._chord


def is_chord(signature: Any) -> bool:
    """Whether *signature* is a chord. (``celery.chord`` is the class in all supported versions.)"""
    return isinstance(signature, _Chord)


def parts(signature: Any) -> list[Any]:
    """The tasks of a group, and the body of a chord."""
    if isinstance(signature, _canvas.group):
        return list(signature.tasks)
    return [signature.body] if is_chord(signature) else []


def has_leading_body(body: Any) -> bool:
    """Whether *body*, of a chord in a chain, is a chain whose first task is to Celery the body: its
    errbacks are called as well when the header has failed (5.7)."""
    led = getattr(_canvas, "_is_chain_led_by_task", None)
    return led is not None and bool(led(body))


def chord_failed(app: Celery, body: Any, reason: str, cause: Mapping[str, Any]) -> None:
    """Call the errbacks of the *body* of a chord whose header has failed, as Celery does.

    Args:
        reason: what Celery says of it.
        cause: the exception of the task that has failed, as Celery stores exceptions.
    """
    body.freeze()  # Celery records the failure under its id
    try:
        raise ChordError(reason) from app.backend.exception_to_python(dict(cause))
    except ChordError as exc:
        app.backend.chord_error_from_stack(body, exc)


def current_task() -> Any:
    """The task this thread is running, or None.

    ``celery.current_task`` will not do: it is a proxy, true even outside a task.
    """
    return get_current_task()


def inside_task() -> bool:
    """Whether waiting for a result now would block a worker."""
    return task_join_will_block() or get_current_task() is not None


def send_unchecked(task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
    """Publish *task* without checking the arguments against its signature.

    ``Task.apply_async`` refuses arguments that do not fit. For the next step of a chain that
    happens in the worker that finished the step before, where nobody can be told (5.3 to 5.7).
    """
    app: Celery = task.app
    options = {"result_cls": task.AsyncResult, **task._get_exec_options(), **options}
    options.setdefault("ignore_result", task.ignore_result)
    return app.send_task(task.name, args, kwargs, task_type=task, **options)


class Unread:
    """What sending returns where nobody reads it. (Making Celery's AsyncResult, and having it
    forgotten by the backend again, takes a fifteenth of the time that sending takes.)"""

    def __init__(self, task_id: str) -> None:
        self.id = task_id  # for who has wrapped send_task


def batch(producer: Any, size: int) -> AbstractContextManager[Any]:
    """Let what is published through *producer* meanwhile go to the broker *size* at a time.

    kombu can do that since 5.7, with Redis; otherwise each message goes by itself. So does a single
    one, which a batch would make dearer.
    """
    return producer.batch(size) if size > 1 and hasattr(producer, "batch") else nullcontext()


BATCH_ERRORS: tuple[type[Exception], ...] = (
    (_kombu.BatchPublishError, RuntimeError) if hasattr(_kombu, "BatchPublishError") else ()
)
"""What `batch` raises when the messages did not get through, or when the connection was replaced
before they were sent (a RuntimeError). kombu does not try batches again, as it does messages."""


BROKER_ERRORS: tuple[type[Exception], ...] = (
    *(_kombu.OperationalError, _kombu.ConnectionError, OSError),
    *(kind for kind in BATCH_ERRORS if kind is not RuntimeError),
)
"""What sending raises while the broker is away."""


def is_replacement(exc: BaseException) -> bool:
    """Whether *exc* is what ``Task.replace`` raises behind the replacement it has sent.

    Nothing else tells it from an ``Ignore`` of the task's own (5.3 to 5.7).
    """
    return isinstance(exc, Ignore) and str(exc) == "Replaced by new task"


_AMQP = ("amqp:", "amqps:", "pyamqp:")


def producer(app: Celery) -> AbstractContextManager[Any]:
    """A producer from a pool; one that waits until the broker has each message, where that takes
    asking for it (AMQP, ``confirm_publish``; 5.3 to 5.7)."""
    if not _is_amqp(app) or "confirm_publish" in (app.conf.broker_transport_options or {}):
        usual: AbstractContextManager[Any] = app.producer_or_acquire()
        return usual
    confirmed = app.connection_for_write(transport_options={"confirm_publish": True})
    pool = pools.producers[confirmed]
    pool.limit = app.conf.broker_pool_limit or 1
    acquired: AbstractContextManager[Any] = pool.acquire(block=True)
    return acquired


def confirms(app: Celery) -> bool:
    """Whether `producer` has an AMQP broker confirm what is sent."""
    options = app.conf.broker_transport_options or {}
    if "confirm_publish" in options:
        return bool(options["confirm_publish"])
    return _is_amqp(app)


def _is_amqp(app: Celery) -> bool:
    url = str(app.conf.broker_write_url or "")
    return url.startswith(_AMQP) and not app.conf.broker_transport


def expiry(app: Celery, expires: Any) -> str:
    """Celery's ``expires`` (seconds, a datetime or its ISO form) as it stands in messages."""
    if isinstance(expires, (int, float)):
        expires = app.now() + timedelta(seconds=expires)
    return (
        expires if isinstance(expires, str) else maybe_make_aware(expires, app.timezone).isoformat()
    )


def sends_as_usual(task: Any) -> bool:
    """Whether nobody has changed how *task* is sent, so that `send_unchecked` does the same."""
    if "apply_async" in vars(task) or not _is_original(Task.apply_async, "celery.app.task"):
        return False
    kind = type(task)
    return all(
        _is_original(function, "celery.app.task", "celery_clutch.runtime.task")
        for function in (kind.apply_async, kind.shadow_name)
    )


def is_watched(app: Celery) -> bool:
    """Whether somebody looks at the messages of *app* when they are sent, or has changed how that
    is done (as what instruments Celery and kombu does)."""
    watched = (
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
        or "send_task" in vars(app)
    )
    return bool(watched) or not (
        _is_original(type(app).send_task, "celery.app.base")
        and _is_original(AMQP.as_task_v2, "celery.app.amqp")
        and _is_original(Producer.publish, "kombu.messaging")
    )


def makes_alike(app: Celery) -> bool:
    """Whether messages of one task for one queue are alike but for what is in them of the job: no
    router sees its arguments, and nothing is inherited from the task that sends it."""
    amqp, conf = app.amqp, app.conf
    return (
        type(amqp) is AMQP
        and amqp.Producer is Producer
        and amqp.create_task_message == amqp.as_task_v2
        and _is_original(amqp.send_task_message, "celery.app.amqp")
        and type(amqp.router) is Router
        and all(type(route) is MapRoute for route in amqp.router.routes)
        and not conf.task_send_sent_event
        and not conf.task_inherit_parent_priority
    )


def _is_original(function: Any, *modules: str) -> bool:
    """Whether *function* is what one of *modules* has defined; a wrapper says so of itself, too."""
    return type(function) is FunctionType and function.__globals__["__name__"] in modules


def ancestors(app: Celery, task_id: str) -> tuple[str, str | None]:
    """The ids of the root and of the parent of what is sent here with *task_id*."""
    parent = app.current_worker_task
    if parent is None:
        return task_id, None
    request = parent.request
    return request.root_id or request.id or task_id, request.id


def representing(app: Celery) -> Callable[[Any, Any], tuple[str, str]]:
    """What makes the texts that messages have of arguments. (``task_repr_maxlevels`` is there since
    5.7.)"""
    levels = app.conf.get("task_repr_maxlevels")
    more = {} if levels is None else {"maxlevels": levels}
    amqp = app.amqp

    def represent(args: Any, kwargs: Any) -> tuple[str, str]:
        named = saferepr(kwargs, amqp.kwargsrepr_maxsize, **more) if kwargs else "{}"
        return saferepr(args, amqp.argsrepr_maxsize, **more), named

    return represent


def fits(task: Any, args: Any, kwargs: Any) -> bool:
    """Whether the arguments fit the signature of *task*, as far as Celery checks that."""
    return not misfit(task, args, kwargs)


def misfit(task: Any, args: Any, kwargs: Any) -> str:
    """Why the arguments do not fit the signature of *task*, or "", as far as Celery checks that."""
    check: Callable[..., Any] | None = getattr(task, "__header__", None)
    if not task.typing or check is None:
        return ""
    try:
        check(*(args or ()), **(kwargs or {}))
    except TypeError as exc:
        return str(exc) or "TypeError"
    return ""


def lacks_bind(task: Any) -> bool:
    """Whether the function of *task* has ``self`` as a parameter that Celery does not fill."""
    function = getattr(task, "_orig_run", task.run)  # without what autoretry puts around it
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return names[:1] == ["self"]


def is_model(value: Any) -> bool:
    """Whether *value* is a pydantic model; pydantic itself need not be installed."""
    return hasattr(type(value), "model_dump") and hasattr(type(value), "model_validate")


def dump_models(
    task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, prepend: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with pydantic models as data, for a task that makes models of them again.

    Celery has ``pydantic=True`` since 5.5. What it does to arguments when it sends a task is done
    since 5.7; before, the caller has to (5.5 and 5.6).
    """
    unchanged = args, dict(kwargs)
    if not any(map(is_model, (*args, *kwargs.values()))):
        return unchanged
    dump = getattr(task, "_dump_pydantic_arguments", None)
    if dump is not None:
        first = (None,) if prepend else ()
        done, named = dump((*first, *args), dict(kwargs))
        return tuple(done[len(first) :]), dict(named)
    if not _takes_models(task):
        return unchanged
    named = {name: _dumped(value) for name, value in kwargs.items()}
    return tuple(_dumped(value) for value in args), named


def _takes_models(task: Any) -> bool:
    function = getattr(task, "_orig_run", getattr(task, "run", None))
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or not hasattr(_base, "pydantic_wrapper"):
        return False
    return bool(code in _base.pydantic_wrapper.__code__.co_consts)


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if is_model(value) else value


def child_pids(worker: Any) -> list[int]:
    """The processes in which the pool of *worker* runs tasks, but for its own (prefork)."""
    pool = getattr(getattr(worker, "pool", None), "_pool", None)
    processes = getattr(pool, "_pool", None)
    if not isinstance(processes, list):
        return []
    return [each.pid for each in processes if each.pid and each.exitcode is None]
