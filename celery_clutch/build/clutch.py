"""Clutch, series() and parallel(): composing."""

from __future__ import annotations

import math
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from celery import Task, current_app
from celery.canvas import Signature

from ..compile import canvas, checks, compat, record
from ..errors import (
    BuildError,
    CorruptRecord,
    InvalidName,
    InvalidParent,
    InvalidStep,
    NonJSONData,
    PlanTooDeep,
)
from ..extend.plugins import runtime
from ..handle.result import ClutchResult
from ..model import graph, names, plan, shape
from ..model.codec import check_key, decode_plan, encode_data, encode_plan
from ..model.data import Data
from ..model.plan import Branches, Job, Node, Scope, Series
from ..runtime import growth
from ..runtime.attempt import Attempt
from ..runtime.engage import engage as start
from ..runtime.task import ClutchTask, current_attempt
from . import adopt, lines

P = ParamSpec("P")
T = TypeVar("T")

_NESTED = uuid.UUID("5f0a7c0e-58c1-4d0c-9d8a-1f1f7a6f3f55")
_ID = re.compile(r"[A-Za-z0-9_.:@+=/~-]{1,200}")
_OF_A_SIGNATURE = {
    "apply": "engage()",
    "apply_async": "engage(**options)",
    "delay": "engage()",
    "get": "engage().get(timeout=...)",
}
"""What signatures and results have, and what to write with a clutch instead."""
_BLOCK = (
    "clutch.{0}() is a block and takes no steps: write 'with clutch.{0}():' and indent them, or "
    "clutch << {0}(a, b)"
)
_MAP = (
    "map takes one step, which runs for each element of the list that the step before returns; for "
    "a list that is known here write clutch << parallel(task.s(each) for each in elements)"
)


def _takes(positional: int, otherwise: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a method say what to write where it is given more positional arguments than it takes."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if len(args) > positional + 1:  # self
                raise InvalidStep(otherwise)
            return method(*args, **kwargs)

        return checked

    return decorate


class _NoSignature(BuildError, AttributeError):
    """A clutch was taken for a signature."""


class Clutch:
    """Celery tasks composed into series and parallels.

    A step is a signature, a task, a tuple ``(task, *args)``, another clutch or a `Sequence`.
    Celery's options of a signature are kept; the clutch's queue goes before every job's and every
    handler's own.

    Args:
        steps: the first steps.
        name: for people: shown in listings and in `Status`.
        queue: of every job and handler.
        on_failure: a signature or task, sent once for each step in which an attempt has failed,
            when all members of the step have completed or failed for the first time.
        on_success: sent once, when every job has a result.
        on_death: sent once, when a job has exhausted its retries.
        on_end: sent once for each generation when the run ends, however: SUCCEEDED, FAILED (that it
            has expired, too) or CANCELLED. It is of a run: a clutch that is a step has none.
        data: what the jobs of the run share, JSON values by string (1 to 255 characters, without
            control characters); see `ClutchTask.data`. With
            ``parent``, the run has data of its own, unless it is given ``data=self.data``.
        expires: seconds (or a timedelta) from ``engage`` after which no job starts that has not
            started before; the run has then FAILED with `ClutchExpired`.
        id: of the run, instead of a generated one; letters, digits and ``_.:@+=/~-``, at most 200.
        tags: for people and for filters.
        parent: ``self`` of the running job that the clutch is nested in. It starts when that job
            returns, and what follows the job waits for it.
        app: the Celery app; default: that of the first step, else the current one.

    Handlers are sent with ``Status.to_dict()`` before their own arguments (an immutable signature
    gets its own alone).
    """

    def __init__(
        self,
        *steps: Step,
        name: str | None = None,
        queue: str | None = None,
        on_failure: Handler | None = None,
        on_success: Handler | None = None,
        on_death: Handler | None = None,
        on_end: Handler | None = None,
        data: Mapping[str, Any] | None = None,
        expires: float | timedelta | None = None,
        id: str | None = None,
        tags: Iterable[str] = (),
        parent: Task | None = None,
        app: compat.App | None = None,
    ) -> None:
        self.name = name
        self.queue = queue
        self.on_failure = on_failure
        self.on_success = on_success
        self.on_death = on_death
        self.on_end = on_end
        self.data = data
        if isinstance(data, Mapping) and not isinstance(data, Data):
            for key in data:
                check_key(key)
        self.expires = expires
        self.id = id
        self.tags = tuple(tags) if _is_iterable(tags) else tags
        self.parent = parent
        self._app = app
        # The steps collected by the clutch itself and by each block that is open.
        self._open: list[list[Node] | Branches] = [[]]
        # Where the step is, as the last one, that named() names; None: it names all of them.
        self._last: list[Node] | Branches | None = None
        self._step_name = ""  # of all steps together, as a step of another clutch
        self._inner_data: dict[str, Any] = {}  # of the clutches that are steps of this one
        self._waiting: list[_Block] = []  # the blocks that were made, and not entered
        self._note_nested()
        for step in steps:
            self << step
        self._last = None

    @classmethod
    def from_canvas(cls, sig: Signature, **options: Any) -> Clutch:
        """A clutch of an existing Celery chain, group, chord or signature.

        As in Celery, a mutable signature gets the previous result before its arguments (a list
        after a parallel step), an immutable one does not. *options* are those of `Clutch`.

        Raises:
            InvalidStep: *sig* is not a signature.
        """
        if not isinstance(sig, Signature):
            raise InvalidStep(f"from_canvas takes a Celery signature, not {_describe(sig)}")
        clutch = cls(**options)
        if clutch._app is None:
            clutch._app = sig.app
        clutch._open[0] = list(plan.series([clutch._canvas(sig)]).steps)
        clutch._last = None
        return clutch

    # --- composing ------------------------------------------------------------------------

    def __lshift__(self, step: Step) -> Clutch:
        """Add a step, to the innermost open block."""
        if lines.loses(sys._getframe(1)):
            warnings.warn(
                "clutch << a, b adds a alone: what is behind the comma is in a tuple that nobody "
                "keeps. Write clutch << a << b",
                SyntaxWarning,
                stacklevel=2,
            )
        self._append(self._node(step))
        return self

    @overload
    def add(self, task: Step, /) -> Clutch: ...
    @overload
    def add(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Clutch: ...
    def add(self, task: Any, /, *args: Any, **kwargs: Any) -> Clutch:
        """Add ``task.s(*args, **kwargs)``; without arguments, any step."""
        if args or kwargs:
            if not isinstance(task, Task):
                raise InvalidStep(f"add takes a task before arguments, not {_describe(task)}")
            task = task.s(*args, **kwargs)
        return self.__lshift__(task)

    def named(self, name: str) -> Clutch:
        """Give the step that was added last a name: by ``add`` or ``<<``, or a block that has
        ended. If all steps came with the constructor or a function, all of them together get it,
        as a step of another clutch.

        Jobs that come later read the step's result as ``self.results[name]``, everybody as
        ``run.results(name)``. Of what adds no step, as an empty block does, there is no name.

        Raises:
            InvalidName: *name* is not 1 to 200 printable characters, or reads as an address.
            BuildError: nothing was added to the block that is open.
        """
        names.check(name)
        if len(self._open) > 1 and not len(self._open[-1]):
            raise BuildError(
                f"named({name!r}) in a block names the step that was added last, and none was: "
                "the block itself gets its name as parallel(name=...) or series(name=...)"
            )
        if self._last is None:
            self._step_name = name
        elif isinstance(self._last, Branches):
            self._last.change_last(lambda node: plan.with_name(node, name))
        elif self._last:
            self._last[-1] = plan.with_name(self._last[-1], name)
        return self

    def when(self, decider: Step) -> Clutch:
        """Let the step that was added last run only if *decider*, a task, returns a true value; of
        a clutch whose steps came with the constructor or a function, all of them together.

        The task gets the previous results, as the step does. If the step does not run, it is as if
        it were not there: what follows gets the results of the step before.

        Raises:
            InvalidStep: *decider* is not a task or its signature.
            BuildError: no step was added, to the clutch or to the block that is open.
        """
        job = self._decider(decider)
        self._replace_last("when", lambda node: plan.Choose(job, ((_TRUE, node),), truth=True))
        return self

    def choose(
        self,
        decider: Step,
        options: Mapping[Any, Step],
        *,
        default: Step | None = None,
        name: str | None = None,
    ) -> Clutch:
        """Add a step that is one of *options*: that whose key *decider*, a task, returns, else
        *default*.

        The task gets the previous results, as the option does. Keys are strings, numbers, booleans
        or None. An option that is an empty clutch is nothing: what follows gets the results of the
        step before. What is not chosen is skipped, and counts as done. A value that is no key,
        where there is no default, is a final failure of the task (NoSuchChoice).

        Raises:
            InvalidStep: *decider* is not a task or its signature, or there are no options.
        """
        if not isinstance(options, Mapping) or not options:
            raise InvalidStep(
                f"choose takes a mapping of values to steps, not {_describe(options)}"
            )
        job = self._decider(decider)
        found = tuple((_key(key), self._option(step)) for key, step in options.items())
        other = None if default is None else self._option(default)
        self._append(plan.Choose(job, found, other, name=_name(name)))
        return self

    @_takes(1, _MAP)
    def map(
        self,
        template: Step,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        max_concurrency: int | None = None,
        allow_failures: bool | int | float = False,
        need: int | None = None,
        name: str | None = None,
    ) -> Clutch:
        """Add a step with one branch for each element of the list that the step before returns, or
        for each result of the parallel step before.

        Args:
            template: the branch, a task or any other step; the element is the first argument of
                the jobs that it starts with.
            args, kwargs: further arguments, where the template is a task.
            max_concurrency, allow_failures, need, name: as for `parallel`.

        Without an element it is an empty step: what follows gets ``[]``. A value that is no list is
        a final failure of the job that has returned it (NotAList).

        Raises:
            InvalidStep: *template* is not a step, or one without a job.
        """
        if not _is_iterable(args) or not _are_keywords(kwargs):
            raise InvalidStep(
                "map takes args, a list, and kwargs, a mapping of names, not "
                f"{_short(args)} and {_short(kwargs)}"
            )
        arguments = tuple(args), dict(kwargs or {})
        if any(arguments):
            if not isinstance(template, Task):
                raise InvalidStep(f"map takes a task before arguments, not {_describe(template)}")
            template = template.s(*arguments[0], **arguments[1])
        branch = self._node(template)
        if not branch.size:
            raise InvalidStep(
                f"map needs a step to run for each element, and {template!r} is empty"
            )
        bounds = _bounds(max_concurrency, allow_failures, need)
        self._append(plan.Map(branch, name=_name(name), **bounds))
        return self

    @_takes(0, _BLOCK.format("parallel"))
    def parallel(
        self,
        *,
        max_concurrency: int | None = None,
        allow_failures: bool | int | float = False,
        need: int | None = None,
        name: str | None = None,
    ) -> AbstractContextManager[Clutch]:
        """A block whose steps run side by side; together they are one step. Empty, it adds none.

        Args:
            max_concurrency: at most so many of them are under way at a time, over all workers.
            allow_failures: so many of them may die, a share of them below 1, or with True all. What
                follows runs without those, and gets a `Failed` in the place of their value.
            need: what follows runs when so many of them have succeeded; what has not started by
                then is skipped.
            name: as for `named`.

        Raises:
            BuildError: *max_concurrency* or *need* is not a number of at least 1,
                *allow_failures* neither a number nor a share, or the two contradict each other.
            InvalidName: see `named`.
            InvalidStep: it was given steps, as the function ``parallel`` takes them.
        """
        bounds = _bounds(max_concurrency, allow_failures, need)
        make = partial(plan.parallel, name=_name(name), **bounds)
        return _Block(self, "parallel", Branches(), make)

    @_takes(0, _BLOCK.format("series"))
    def series(self, *, name: str | None = None) -> AbstractContextManager[Clutch]:
        """A block whose steps run one after another: a branch of its own inside ``parallel()``.

        *name* is as for `named`.

        Raises:
            InvalidName: see `named`.
            InvalidStep: it was given steps, as the function ``series`` takes them.
        """
        return _Block(self, "series", [], partial(plan.series, name=_name(name)))

    def clear(self) -> Clutch:
        """Remove all steps; settings stay."""
        if len(self._open) > 1:
            raise BuildError("clear() inside an open parallel() or series() block")
        self._open = [[]]
        self._last = None
        self._step_name = ""
        self._inner_data = {}
        self._waiting = []
        return self

    @property
    def app(self) -> compat.App:
        """The Celery app that the clutch runs on."""
        parent = getattr(self.parent, "app", None)
        found: compat.App = self._app or parent or current_app._get_current_object()
        return found

    @property
    def plan(self) -> Series:
        """What has been composed, as a frozen plan."""
        return replace(self._steps(), scope=self._scope())

    if not TYPE_CHECKING:  # type checkers refuse these by themselves

        def __or__(self, other: Any) -> NoReturn:
            raise InvalidStep(
                "| makes a chain of signatures, and a clutch is none: write series(a, b), or "
                "clutch << b"
            )

        __ror__ = __or__

        def __getattr__(self, name: str) -> NoReturn:
            if name in _OF_A_SIGNATURE:
                raise _NoSignature(f"a clutch has no {name}: write clutch.{_OF_A_SIGNATURE[name]}")
            object.__getattribute__(self, name)

    # --- running --------------------------------------------------------------------------

    def engage(self, **options: Any) -> ClutchResult:
        """Start a run and return its handle. The clutch can be changed and engaged again.

        An empty clutch sends nothing and has succeeded at once. With ``parent``, the run starts
        when the parent job returns, and not at all if it raises.

        Args:
            options: Celery's, for the start (``countdown``, ``eta``, ``priority``...).

        Raises:
            AlreadyEngaged: a run with the clutch's ``id`` exists, and has started.
            NonJSONArgument, NonJSONData: an argument, or data, that JSON cannot carry; nothing was
                sent.
            InvalidStep: arguments that do not fit a task known here, unless it has
                ``typing=False``.
            InvalidOption: an option that Celery cannot send, or that belongs to the clutch.
            StoreUnavailable: the store cannot be reached; nothing was sent. If only its answer was
                lost the run has started, or the sweep starts it. With an ``id`` it may be called
                again.
            ConfigurationError: there is no store, or it is unknown.
        """
        checks.start(options, nested=self._parent_attempt() is not None)
        prepared = self.prepared()
        if prepared.meta.parent is None:
            start(prepared, options, named=self.id is not None)
        return ClutchResult.of_begun(prepared)

    def prepared(self) -> canvas.Prepared:
        """A run, ready to be stored and sent, or handed to the running job it is nested in.

        Raises what `engage` raises, before anything is stored.
        """
        if len(self._open) > 1:
            raise BuildError("engage() inside an open parallel() or series() block")
        self._check_entered()
        run = None if self.id is None else _checked_id(self.id)
        lifetime = None if self.expires is None else _checked_lifetime(self.expires)
        name = None if self.name is None else _checked_name("name", self.name)
        if not _is_iterable(self.tags):
            kind = "the string " if isinstance(self.tags, str) else ""
            raise InvalidName(f"tags must be a list of strings, not {kind}{_short(self.tags)}")
        tags = tuple(_checked_name("tag", tag) for tag in self.tags)
        attempt = self._parent_attempt()
        root, parent, shares = self.plan, None, False
        if attempt is not None:
            shares = self.data is attempt.data
            root, parent = _nested_in(attempt, root, shares)
            run = run or _nested_id(attempt)
        data = {} if shares else self._encoded_data()
        prepared = canvas.prepare(
            self.app,
            root,
            run=run,
            name=name,
            tags=tags,
            parent=parent,
            data=data,
            lifetime=lifetime,
        )
        if attempt is not None:
            attempt.nested.append(prepared)
            attempt.composed.pop(id(self), None)
        return prepared

    # --- as JSON --------------------------------------------------------------------------

    def to_json(self) -> str:
        """The clutch as JSON, for the task ``celery_clutch.launch``.

        An object with ``clutch``, the steps, and where they are set ``name``, ``tags``, ``data``
        and ``expires``. A step is ``{"task": name, "args": [], "kwargs": {}, "options": {}}``,
        ``{"series": [...]}``, ``{"parallel": [...]}``, ``{"map": step}`` or ``{"choose": task,
        "options": [[key, step], ...]}``. A parallel or map may have ``limit`` (max_concurrency),
        ``allow`` (allow_failures) and ``need``; a choice a ``default``, a step. The key of an
        option is the JSON of a value, as a string: ``"\\"eu\\""``, ``"5"``, ``"null"``. With
        ``"truth": true`` a choice is a ``when``: it has one option, of the key ``"true"``. Each
        step but a task may have a ``scope`` with ``queue`` and handlers, each of them a ``name``.
        ``prepend`` is Celery's rule for mutable signatures (`from_canvas`).

        Raises:
            NonJSONArgument, NonJSONData: naming what JSON cannot carry.
        """
        data = self._all_data()
        encode_data(data, sys.maxsize)
        tree: dict[str, Any] = {"clutch": plan.to_dict(self.plan)}
        lifetime = None if self.expires is None else _checked_lifetime(self.expires)
        more = {"name": self.name, "tags": list(self.tags), "data": data, "expires": lifetime}
        tree.update((key, value) for key, value in more.items() if value)
        return encode_plan(tree).decode()

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any], **options: Any) -> Clutch:
        """The clutch that `to_json` wrote; also of the decoded object.

        *options* are those of `Clutch`, and go before what is in the JSON.

        Raises:
            InvalidStep: it is not of that form.
        """
        try:
            tree = dict(decode_plan(text.encode()) if isinstance(text, str) else text)
            body = tree.pop("clutch")
            if unknown := set(tree) - {"name", "tags", "data", "expires"}:
                raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
            clutch = cls(**{**tree, **options})
            clutch._adopt(plan.from_dict(body, clutch._is_plain))
        except (
            *(AttributeError, CorruptRecord, KeyError),
            *(RecursionError, TypeError, ValueError),
        ) as exc:
            raise InvalidStep(f"this is not the JSON of a clutch: {exc!r}") from None
        return clutch

    def _adopt(self, node: Node) -> None:
        """Let the steps be those of *node*, and what is not set be as set there."""
        self._open[0] = list(node.steps) if isinstance(node, Series) else [node]
        self._last = None
        if not isinstance(node, Series):
            return
        self._step_name = node.name
        if self.queue is None:
            self.queue = node.scope.queue
        for kind in ("on_failure", "on_success", "on_death", "on_end"):
            handler = getattr(node.scope, kind)
            if handler is not None and getattr(self, kind) is None:
                setattr(self, kind, self.app.signature(dict(handler)))

    def _is_plain(self, task: str) -> bool:
        return not isinstance(self.app.tasks.get(task), ClutchTask)

    # --- showing --------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many jobs there are."""
        return sum(node.size for nodes in self._open for node in nodes)

    def __bool__(self) -> bool:
        return True  # a clutch is a thing, also when it is empty

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        steps, jobs = len(plan.series(self._open[0]).steps), len(self)
        return f"<Clutch{name}: {steps} step{'s'[: steps != 1]}, {jobs} job{'s'[: jobs != 1]}>"

    def __str__(self) -> str:
        root = self._steps()
        return "\n".join([self._title(root, repr(self.name)), *_tree(root, "", "")])

    def _repr_html_(self) -> str:
        """The clutch drawn, for notebooks."""
        root = self._steps()
        return graph.html(root, self._title(root, self.name))

    def _title(self, root: Series, name: str | None) -> str:
        title = f"Clutch {name}" if self.name else "Clutch"
        return f"{root.name} ({title})" if root.name else title

    # --- private --------------------------------------------------------------------------

    def _steps(self) -> Series:
        """What has been composed, without what is set for it."""
        root, name = plan.series(self._open[0]), self._step_name
        if not name:
            return root
        if len(root.steps) == 1:
            return Series((plan.with_name(root.steps[0], name),))
        return replace(root, name=name)

    def _append(self, node: Node) -> None:
        """Add a step, to the innermost open block."""
        nodes = self._open[-1]
        before = len(nodes)
        if node.size:
            nodes.append(node)
        self._last = nodes if len(nodes) > before else []

    def _replace_last(self, what: str, change: Callable[[Node], Node]) -> None:
        """Put something else in the place of the step that was added last, or of all steps."""
        nothing = self._last is None and not self._open[0]
        if nothing or (len(self._open) > 1 and not len(self._open[-1])):
            raise BuildError(
                f"{what}() is of the step that was added last, and none was: add the step before"
            )
        if self._last is None:
            steps = self._steps()
            self._step_name = ""
            if steps.size:
                only = steps.steps[0] if len(steps.steps) == 1 and not steps.name else steps
                self._open[0] = [change(only)]
        elif isinstance(self._last, Branches):
            self._last.change_last(change)
        elif self._last:
            self._last[-1] = change(self._last[-1])

    def _decider(self, step: Any) -> Job:
        node = self._node(step)
        if not isinstance(node, Job):
            raise InvalidStep(f"what decides is one task, not {_describe(step)}")
        return node

    def _option(self, step: Any) -> Node:
        """An option of a choice; an empty one is an empty series."""
        node = self._node(step)
        return node if node.size else Series()

    def _all_data(self) -> dict[str, Any]:
        """The clutch's data, and that of the clutches in it."""
        if self.data is not None and not isinstance(self.data, Mapping):
            raise NonJSONData(f"data is a mapping of JSON values, not {_describe(self.data)}")
        return {**self._inner_data, **(self.data or {})}

    def _encoded_data(self) -> dict[str, bytes]:
        data = self._all_data()
        return encode_data(data, runtime(self.app).settings.max_result_bytes) if data else {}

    def _check_entered(self) -> None:
        """Refuse a clutch with a block that was made and not entered."""
        if self._waiting:
            kind = self._waiting[0].kind
            raise BuildError(
                f"{kind}() was called without with, and adds nothing so: write "
                f"'with clutch.{kind}():' and indent its steps"
            )

    def _node(self, step: Any) -> Node:
        if (compose := getattr(step, "__clutch__", None)) is not None:  # a Sequence
            step = compose()
        if isinstance(step, Clutch):
            if len(step._open) > 1:
                raise BuildError("a clutch with an open block cannot be a step")
            step._check_entered()
            if step.on_end is not None:
                raise BuildError(
                    f"{step!r} has an on_end and cannot be a step: on_end is of a whole run. Give "
                    "it to the clutch that is engaged, or use on_success and on_death"
                )
            step._is_step()
            self._take_data(step)
            if self._app is None:
                self._app = step._app
            node: Node = step.plan
            only = node.steps[0] if isinstance(node, Series) and len(node.steps) == 1 else None
            return only if only is not None and not step._scope() else node
        if isinstance(step, tuple) and step and isinstance(step[0], Task):
            if any(isinstance(each, Task) for each in step[1:]):
                raise InvalidStep(
                    f"{_describe(step)} is a task and its arguments, and a task is no argument: "
                    "use one << for each step"
                )
            step = step[0].s(*step[1:])
        elif isinstance(step, Task):
            step = step.s()
        if not isinstance(step, Signature):
            raise InvalidStep(
                "a step is a signature, a task, a tuple (task, *args), a clutch or a sequence, not "
                f"{_describe(step)}"
            )
        if self._app is None:
            self._app = step.app
        if adopt.is_canvas(step):
            return self._canvas(step)
        return adopt.job(step, self._app, {}, prepend=False)

    def _note_nested(self) -> None:
        """Let the job that the clutch is nested in know of it, for the case that it is forgotten.

        What is wrong with ``parent`` is said by ``engage``.
        """
        if isinstance(self.parent, ClutchTask) and (attempt := current_attempt(self.parent)):
            attempt.composed[id(self)] = self

    def _is_step(self) -> None:
        """The clutch is a step of another, which is to be engaged in its place."""
        if isinstance(self.parent, ClutchTask) and (attempt := current_attempt(self.parent)):
            attempt.composed.pop(id(self), None)

    def _take_data(self, step: Clutch) -> None:
        """Let the data of a clutch that is a step be this one's: a run has one set of data."""
        for key, value in step._all_data().items():
            if self._inner_data.setdefault(key, value) != value:
                raise BuildError(
                    f"two clutches in one have different data[{key!r}], and a run has one set of "
                    "data: give them different keys, or nest one with parent=self in a job"
                )

    def _canvas(self, sig: Signature) -> Node:
        try:
            return adopt.node(sig, self._app, {})
        except RecursionError:
            raise PlanTooDeep(f"{type(sig).__name__} is nested too deeply to be read") from None

    def _scope(self) -> Scope:
        if not (self.queue is None or (isinstance(self.queue, str) and self.queue)):
            raise InvalidName(f"queue is the name of a queue, not {_describe(self.queue)}")
        return Scope(
            self.queue,
            _handler("on_failure", self.on_failure),
            _handler("on_success", self.on_success),
            _handler("on_death", self.on_death),
            on_end=_handler("on_end", self.on_end),
        )

    def _parent_attempt(self) -> Attempt | None:
        if self.parent is None:
            return None
        if not isinstance(self.parent, Task):
            raise InvalidParent(
                "parent is the running task itself (self in a task with @app.task(bind=True)), not "
                f"{_describe(self.parent)}"
            )
        running = compat.current_task()
        if running is not None and running.name != self.parent.name:
            raise InvalidParent(
                f"parent is {self.parent.name}, which does not run here; {running.name} does. "
                "parent is the running task itself: self"
            )
        attempt = current_attempt(self.parent)
        if attempt is not None and not isinstance(self.parent, ClutchTask):
            raise InvalidParent(
                f"{self.parent.name} cannot wait for a nested clutch because it is not a "
                'ClutchTask: set task_cls="celery_clutch:ClutchTask" on the app or base=ClutchTask '
                "on the task"
            )
        return attempt  # None: the task runs on its own, and so does the clutch


class Composed(Protocol):
    """What can be asked for a clutch, and is a step like one: a `Sequence`, or its class."""

    @property
    def __clutch__(self) -> Callable[[], Clutch]: ...


Step: TypeAlias = Signature | Task | tuple[Any, ...] | Clutch | Composed
"""What a clutch is made of."""
Handler: TypeAlias = Signature | Task
"""What is sent when something has happened."""


class _Block:
    """What ``with clutch.parallel():`` enters: its steps become one step of the clutch."""

    def __init__(
        self,
        clutch: Clutch,
        kind: str,
        nodes: list[Node] | Branches,
        make: Callable[[list[Node] | Branches], Node],
    ) -> None:
        self.clutch = clutch
        self.kind = kind
        self._nodes = nodes
        self._make = make
        clutch._waiting.append(self)

    def __enter__(self) -> Clutch:
        if self not in self.clutch._waiting:
            raise BuildError(f"a {self.kind}() block can be entered once")
        self.clutch._waiting.remove(self)
        self.clutch._open.append(self._nodes)
        return self.clutch

    def __exit__(self, kind: Any, exc: Any, traceback: Any) -> None:
        self.clutch._open.pop()
        if exc is not None:
            return
        self.clutch._append(self._make(self._nodes))


def series(*steps: Step | Iterable[Step], name: str | None = None) -> Clutch:
    """A clutch of *steps* one after another; takes arguments or one iterable.

    *name* is that of all of them as a step, as `Clutch.named` gives it.
    """
    clutch = Clutch(*_listed(steps))
    clutch._last = None if clutch._open[0] else []
    return clutch if name is None else clutch.named(name)


def parallel(
    *steps: Step | Iterable[Step],
    max_concurrency: int | None = None,
    allow_failures: bool | int | float = False,
    need: int | None = None,
    name: str | None = None,
) -> Clutch:
    """A clutch of one step, in which *steps* run side by side; takes arguments or one iterable.

    The options are as for `Clutch.parallel`.
    """
    clutch = Clutch()
    with clutch.parallel(
        max_concurrency=max_concurrency, allow_failures=allow_failures, need=need, name=name
    ):
        for step in _listed(steps):
            clutch << step
    clutch._last = None if clutch._open[0] else []
    return clutch


def named(step: Step, name: str) -> Clutch:
    """*step* as one with a name; see `Clutch.named`.

    Raises:
        InvalidStep: it is not a step.
        InvalidName: *name* is not 1 to 200 printable characters, or reads as an address.
    """
    return Clutch(step).named(name)


def _is_iterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _listed(steps: tuple[Any, ...]) -> Iterable[Any]:
    if len(steps) != 1:
        return steps
    (only,) = steps
    is_call = isinstance(only, tuple) and only and isinstance(only[0], Task)
    is_step = isinstance(only, (Mapping, Clutch, Task, str, type)) or is_call
    return only if isinstance(only, Iterable) and not is_step else steps


def _nested_id(attempt: Attempt) -> str:
    """The id of the next clutch that a job nests: the same when its body runs again."""
    header = attempt.header
    name = f"{header.run} {header.at} {len(attempt.nested)}"
    return str(uuid.uuid5(_NESTED, name))


def _nested_in(attempt: Attempt, root: Series, shares: bool) -> tuple[Series, record.Parent]:
    """The plan nested in a running job: it inherits the job's queue and ``on_failure``."""
    header = attempt.header
    store = runtime(attempt.app).store
    found = store.patiently(store.read, header.run)
    outer = record.Meta.loads(found.meta).scope(header.at) if found else Scope()
    own = root.scope
    scope = replace(
        own, queue=own.queue or outer.queue, on_failure=own.on_failure or outer.on_failure
    )
    quiet = bool(outer.on_failure) and not own.on_failure
    parent = record.Parent(
        header.to_dict(), attempt.task, str(attempt.request.id), attempt.number, quiet, shares
    )
    return replace(root, scope=scope), parent


def _handler(kind: str, handler: Any) -> dict[str, Any] | None:
    if handler is None:
        return None
    if isinstance(handler, Task):
        handler = handler.s()
    if not isinstance(handler, Signature):
        raise InvalidStep(f"{kind} takes a signature or a task, not {_describe(handler)}")
    return dict(handler)


def _checked_id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidName(
            f"{_short(value)} cannot be the id of a run: use 1 to 200 letters, digits or _.:@+=/~-"
        )
    return value


def _checked_name(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise InvalidName(f"{_short(value)} cannot be a {kind}: use 1 to 200 printable characters")
    return value


def _name(value: str | None) -> str:
    """The name of a block; "" for None."""
    return "" if value is None else names.check(value)


_TRUE = "true"
"""The key of the step of `Clutch.when`."""


def _key(value: Any) -> str:
    """The JSON that stands for a value of a decider."""
    is_key = value is None or isinstance(value, (str, int, float, bool))
    if not is_key or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidStep(
            f"the key of an option is a string, a number, a boolean or None, not {_describe(value)}"
        )
    try:
        return shape.key_of(value)
    except (TypeError, ValueError) as exc:
        raise InvalidStep(f"{_short(value)} cannot be the key of an option: {exc}") from None


def _are_keywords(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _bounds(limit: Any, allow: Any, need: Any) -> dict[str, Any]:
    """What a parallel is bounded by, as the plan has it."""
    found = {"limit": _checked_limit(limit), "allow": allow, "need": 0 if need is None else need}
    try:
        if need is not None and (type(need) is not int or need < 1):
            raise ValueError(f"need is a number of at least 1, not {_short(need)}")
        plan.check_bounds(allow, found["need"])
    except ValueError as exc:
        raise BuildError(str(exc)) from None
    return found


def _checked_limit(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BuildError(f"max_concurrency is a number of at least 1, not {_short(value)}")
    limit: int | None = value
    return limit


def _checked_lifetime(value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds < math.inf:
        raise BuildError(f"expires is a number of seconds above 0, not {_short(value)}")
    return float(seconds)


def _short(value: Any) -> str:
    return repr(value)[:200]


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:200]


def _tree(node: Node, address: str, indent: str) -> Iterator[str]:
    nodes = list(plan.below(node, address))
    keys = graph.option_labels(node)
    for index, (at, child) in enumerate(nodes):
        last = index == len(nodes) - 1
        label = names.label(child.name, at, _what(child))
        if keys and keys[index]:
            label = f"{keys[index]}: {label}"
        yield f"{indent}{'└─ ' if last else '├─ '}{label}{graph.bounds(child)}"
        yield from _tree(child, at, indent + ("   " if last else "│  "))


def _what(node: Node) -> str:
    """What kind of step it is."""
    if not isinstance(node, Job):
        return graph.kind_of(node)
    values = [repr(arg) for arg in node.args]
    values += [f"{key}={value!r}" for key, value in node.kwargs.items()]
    return f"{node.task}({', '.join(values)})"


def _branches(steps: tuple[Any, ...], app: Any) -> list[Node]:
    """The nodes of the steps that a running job adds."""
    return [_branch(step, app) for step in _listed(steps)]


def _branch(step: Any, app: Any) -> Node:
    clutch = Clutch(app=app)
    node = clutch._node(step)
    if clutch._inner_data:
        keys = ", ".join(f"data[{key!r}]" for key in clutch._inner_data)
        raise BuildError(
            f"what is added as a branch has {keys}, and the run has its data: set self.data, or "
            "nest the clutch (Clutch(parent=self))"
        )
    for _, each in ("", node), *plan.walk(node):
        if each.name:
            raise InvalidName(
                f"the step {each.name!r} cannot have a name: what is added as a branch has none, "
                "because a name is that of one step. Nest it (Clutch(parent=self)) to keep names"
            )
    return node


growth.compose = _branches  # what runs knows nothing of what composes
