"""Sequence: a class of steps that share data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from celery import Celery, Task
from celery.canvas import Signature

from ..compile.compat import App
from ..errors import ClutchError, InvalidSequence
from ..handle.result import ClutchResult
from ..model.codec import check_key
from .clutch import Clutch, Handler, Step

_HANDLERS = ("on_failure", "on_success", "on_death", "on_end")
_SETTINGS = frozenset(("steps", "name", "queue", "tags", "app", *_HANDLERS))


class _Compose:
    """``__clutch__`` of the class and of its instances: their steps as a clutch."""

    def __get__(self, sequence: Sequence | None, owner: type[Sequence]) -> Any:
        return (owner() if sequence is None else sequence).clutch


class Sequence:
    """Steps that run one after another over data that each of them can read and change.

    ::

        class ContactForm(Sequence):
            steps = [create_message, parallel(mail, sms), assign.s(team="sales")]
            queue = "forms"

        run = ContactForm(name="Joel").start()

    In a step, ``self.data`` is the data (see `ClutchTask.data`). What a step changes is saved with
    its result, and the next step sees it.

    A subclass is checked when it is defined. ``class Base(Sequence, abstract=True)`` is one that
    has no steps yet. A sequence can be a step of a clutch or of another sequence; the run has one
    set of data.

    Attributes:
        steps: a list of what a `Clutch` takes as steps. A subclass extends them with
            ``[*Base.steps, more]``.
        name: of the runs, for people; default: the name of the class.
        queue, on_failure, on_success, on_death, on_end, tags, app: as for `Clutch`.

    Args:
        data: what the run starts with, JSON values by string; also as keywords.

    Raises:
        InvalidSequence: when a subclass is defined that has no steps, something among them that
            is not a step, or a setting that is unknown or of the wrong type.
    """

    steps: ClassVar[Iterable[Step]] = ()
    name: ClassVar[str | None] = None
    queue: ClassVar[str | None] = None
    on_failure: ClassVar[Handler | None] = None
    on_success: ClassVar[Handler | None] = None
    on_death: ClassVar[Handler | None] = None
    on_end: ClassVar[Handler | None] = None
    tags: ClassVar[Iterable[str]] = ()
    app: ClassVar[App | None] = None

    __clutch__ = _Compose()

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        for setting, value in vars(cls).items():
            public = not setting.startswith("_")
            if public and setting not in _SETTINGS and not _is_code(value):
                known = ", ".join(sorted(_SETTINGS))
                raise InvalidSequence(
                    f"{cls.__qualname__}.{setting} is not a setting of a Sequence ({known}); "
                    f"what is your own starts with an underscore, and data goes into "
                    f"{cls.__name__}({setting}=...)"
                )
        _check_settings(cls)
        if not abstract:
            _check_steps(cls)

    def __init__(self, data: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        self._data: Any = {**data, **more} if isinstance(data, Mapping) else data or more
        for key in data if isinstance(data, Mapping) else ():
            check_key(key)

    def clutch(self, **options: Any) -> Clutch:
        """The sequence as a clutch; *options* are those of `Clutch`."""
        settings: dict[str, Any] = {handler: getattr(self, handler) for handler in _HANDLERS}
        settings.update(
            name=self.name or type(self).__name__,
            queue=self.queue,
            tags=self.tags,
            app=self.app,
            data=self._data,
        )
        return Clutch(*self.steps, **{**settings, **options})

    def start(
        self, *, id: str | None = None, parent: Task | None = None, **options: Any
    ) -> ClutchResult:
        """Start a run of the steps and return its handle.

        Args:
            id: of the run, instead of a generated one.
            parent: ``self`` of the running job that the sequence is nested in.
            options: Celery's, for the start (``countdown``, ``eta``, ``priority``...).

        Raises:
            NonJSONData: naming the key; nothing was sent. Else as `Clutch.engage`.
        """
        return self.clutch(id=id, parent=parent).engage(**options)

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {self._data!r}>"


def _is_code(value: Any) -> bool:
    """Whether a class attribute is a method, a property or a class of its own."""
    return hasattr(value, "__get__") or isinstance(value, type)


def _check_settings(cls: type[Sequence]) -> None:
    for setting in ("name", "queue"):
        value = getattr(cls, setting)
        if value is not None and not (isinstance(value, str) and value):
            raise InvalidSequence(f"{cls.__qualname__}.{setting} is a string, not {value!r}")
    for handler in _HANDLERS:
        value = getattr(cls, handler)
        if value is not None and not isinstance(value, (Signature, Task)):
            raise InvalidSequence(
                f"{cls.__qualname__}.{handler} is a signature or a task, not {value!r}"
            )
    if isinstance(cls.tags, str) or not all(isinstance(tag, str) for tag in cls.tags):
        raise InvalidSequence(f"{cls.__qualname__}.tags is a list of strings, not {cls.tags!r}")
    if cls.app is not None and not isinstance(cls.app, Celery):
        raise InvalidSequence(f"{cls.__qualname__}.app is a Celery app, not {cls.app!r}")


def _check_steps(cls: type[Sequence]) -> None:
    if not isinstance(cls.steps, (list, tuple)):
        raise InvalidSequence(f"{cls.__qualname__}.steps is a list of steps, not {cls.steps!r}")
    if not cls.steps:
        raise InvalidSequence(
            f"{cls.__qualname__} has no steps; a base class for others is defined with "
            f"class {cls.__name__}(Sequence, abstract=True)"
        )
    for index, step in enumerate(cls.steps):
        try:
            Clutch(step)
        except ClutchError as exc:
            raise InvalidSequence(f"{cls.__qualname__}.steps[{index}]: {exc}") from exc
