"""What Celery would not send, or a task not take, is refused before anything is stored.

Sent later, by a worker, it would end where nobody can be told.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601
from kombu import Queue
from kombu.compression import get_encoder
from kombu.serialization import registry

from ..errors import BuildError, InvalidOption, InvalidStep, NonJSONArgument
from ..model.plan import Scope
from . import compat
from .pages import Item

logger = logging.getLogger(__name__)

_OF_THE_CLUTCH = frozenset(
    (
        *("app", "data", "id", "name", "parent", "tags"),
        *("on_death", "on_end", "on_failure", "on_success"),
    )
)
_OF_A_SIGNATURE = frozenset(("args", "kwargs", "link", "link_error", "task_id"))
_OF_NO_STEP = {
    "id": "that of a run is Clutch(id=...); the id of its message is task_id",
    "name": "write named(step, name)",
    "parent": "write Clutch(parent=...)",
    "on_failure": "write Clutch(on_failure=...), which can be a step, too",
    "on_success": "write Clutch(on_success=...), which can be a step, too",
    "on_death": "write Clutch(on_death=...), which can be a step, too",
    "on_end": "write Clutch(on_end=...) for the whole run",
}
"""What Celery would take for a property of the message, and send, and nobody would read."""
_INTERNAL = ("celery.", "celery_clutch.")


class Jobs:
    """Looks at the jobs of a run: their options, and the arguments of tasks known here."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._unknown: set[str] = set()
        self._ids: dict[str, str] = {}

    def check(self, items: Iterable[Item]) -> None:
        """Look at the jobs of a page.

        Raises:
            InvalidOption: Celery cannot send a job with its options, or one is not of a step.
            InvalidStep: the arguments do not fit the task, or two jobs have one ``task_id``.
            NonJSONArgument: a pydantic model for a task that takes none.
        """
        for item in items:
            job, where = item.job, f"job {item.at} ({item.job.task})"
            if job.options:
                _refuse_misplaced(job.options, where)
                options(job.options, where)
                self._note_id(job.options.get("task_id"), where)
            _refuse_models((*job.args, *job.kwargs.values()), where)
            task = self.app.tasks.get(job.task)
            if task is None:
                self._unknown.add(job.task)
                continue
            # A first job has no previous result to go before its arguments.
            args = job.args
            if item.takes or (job.prepend and item.previous):
                args = (None, *args)
            arguments(task, args, job.kwargs, where)

    def _note_id(self, task_id: Any, where: str) -> None:
        # The first branches of a narrow parallel are in two pages.
        if task_id is not None and self._ids.setdefault(task_id, where) != where:
            problem = f"another job of the clutch has the task_id {task_id!r} already"
            raise InvalidStep(f"{where}: {problem}")

    def warn(self) -> None:
        """Say which names are close to one that is known."""
        for name in sorted(self._unknown):
            _warn_of_name(self.app, name)


def arguments(task: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> None:
    """Look at arguments as Celery does, unless the task has ``typing=False``.

    Raises:
        InvalidStep: they do not fit.
    """
    misfit = compat.misfit(task, args, kwargs)
    if not misfit:
        return
    hint = ""
    if compat.lacks_bind(task):
        hint = "; its first parameter is self, so @app.task(bind=True) is missing"
    raise InvalidStep(
        f"{where} cannot be called with the arguments {args!r:.200} {dict(kwargs)!r:.200}: "
        f"{misfit}{hint}"
    )


def handlers(scopes: Mapping[str, Scope]) -> None:
    """Look at the options of handlers.

    Raises:
        InvalidOption: Celery cannot send one with its options.
        BuildError: a part of the plan has an ``on_end``.
    """
    for address, scope in scopes.items():
        if scope.on_end and address:
            raise BuildError(f"the step at {address} has an on_end, which only a whole run has")
        for kind in ("on_failure", "on_success", "on_death", "on_end"):
            if handler := getattr(scope, kind):
                options(handler.get("options") or {}, f"{kind} ({handler['task']})")


def start(given: Mapping[str, Any], *, nested: bool) -> None:
    """Look at what ``engage`` is given.

    Raises:
        InvalidOption: it belongs to the clutch or to a signature, or Celery cannot send with it.
    """
    for name in sorted(given):
        if name in _OF_THE_CLUTCH:
            raise InvalidOption(f"engage: {name} is an argument of the clutch: Clutch({name}=...)")
        if name in _OF_A_SIGNATURE:
            raise InvalidOption(
                f"engage: {name} belongs to a step: set it on the step's signature, with "
                f"task.s(...) or .set({name}=...)"
            )
    if given and nested:
        raise InvalidOption(
            f"engage: {', '.join(sorted(given))} cannot be set for a nested clutch, which starts "
            "when its job returns: set it on the signatures of its first step"
        )
    options(given, "engage")


def options(given: Mapping[str, Any], where: str) -> None:
    """Look at Celery's options of a message.

    Raises:
        InvalidOption: naming *where*, the option, and what it has to be.
    """
    for name, (check, expected) in _CHECKS.items():
        value = given.get(name)
        if value is not None and not check(value):
            raise InvalidOption(f"{where}: {name} is {expected}, not {value!r:.100}")
    hard, soft = given.get("time_limit"), given.get("soft_time_limit")
    if hard is not None and soft is not None and soft > hard:
        raise InvalidOption(
            f"{where}: soft_time_limit {soft} is more than time_limit {hard}, so it never comes"
        )


def _refuse_misplaced(given: Mapping[str, Any], where: str) -> None:
    for name, fix in _OF_NO_STEP.items():
        if name in given:
            raise InvalidOption(f"{where}: {name} is no option of a step: {fix}")


def _refuse_models(values: Iterable[Any], where: str) -> None:
    """What is still a model here, its task would not make a model again."""
    for value in values:
        if compat.is_model(value):
            raise NonJSONArgument(
                f"{where}: {type(value).__name__} is a pydantic model. Celery takes one, from 5.5 "
                "on, for a task that is known here, has @app.task(pydantic=True), and the model as "
                "the type of the argument. Else pass its model_dump()"
            )


def _warn_of_name(app: Celery, name: str) -> None:
    """A task that is not known here may be known to the workers, but a slip of the pen is not."""
    known = [task for task in app.tasks if not task.startswith(_INTERNAL)]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if close:
        logger.warning(
            "no task is registered as %r here; is it %r that is meant? Workers that do not know "
            "it let the job fail.",
            name,
            close[0],
        )


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_limit(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_time(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, datetime)
    try:
        maybe_iso8601(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_expiry(value: Any) -> bool:
    return _is_number(value) or _is_time(value)


def _is_priority(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_serializer(value: Any) -> bool:
    return isinstance(value, str) and value in registry.name_to_type


def _is_compression(value: Any) -> bool:
    try:
        get_encoder(value)
    except (KeyError, TypeError):
        return False
    return True


def _is_queue(value: Any) -> bool:
    return isinstance(value, Queue) or _is_name(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "countdown": (_is_number, "a number of seconds"),
    "eta": (_is_time, "a datetime or its ISO form"),
    "expires": (_is_expiry, "a number of seconds, a datetime or its ISO form"),
    "time_limit": (_is_limit, "a number of seconds above 0"),
    "soft_time_limit": (_is_limit, "a number of seconds above 0"),
    "priority": (_is_priority, "a whole number from 0 to 255"),
    "serializer": (_is_serializer, "the name of a serializer that kombu knows here"),
    "compression": (_is_compression, "the name of a compression that kombu knows here"),
    "queue": (_is_queue, "the name of a queue"),
    "routing_key": (_is_name, "a string"),
    "task_id": (_is_name, "a string"),
    "headers": (_is_mapping, "a mapping"),
    "retry_policy": (_is_mapping, "a mapping"),
}
"""For each option that is looked at: what it has to be, and how that is said."""
