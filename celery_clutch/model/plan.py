"""The plan: a frozen tree of jobs, series and parallels. Pure; knows no Celery.

An **address** is the path of a node from the root, ``"0"``, ``"1.2"``, ``"1.2.0"``, and names a job
for life. The root is a `Series`; its steps have the addresses ``"0"``, ``"1"`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orjson import Fragment

from ..errors import CorruptRecord, PlanTooDeep
from . import codec
from .packed import TOGETHER, Packed

MAX_DEPTH = 64
"""How deep series and parallels may nest.

Celery copies the body of every enclosing chord into each message, so what a message carries grows
with the depth; 64 levels of nothing but nesting stay under 64 KB a message.
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a subtree sets for itself; what is None is inherited from the subtree around it.

    Handlers are signatures in their dict form. ``errbacks`` is the body of a chord whose header the
    subtree is: Celery's errbacks in it are called when a job in the header dies.
    """

    queue: str | None = None
    on_failure: Mapping[str, Any] | None = None
    on_success: Mapping[str, Any] | None = None
    on_death: Mapping[str, Any] | None = None
    errbacks: Mapping[str, Any] | None = None

    def inherit(self, outer: Scope) -> Scope:
        """This scope inside *outer*. ``on_success`` and ``errbacks`` are of its own subtree
        only."""
        return Scope(
            queue=self.queue or outer.queue,
            on_failure=self.on_failure or outer.on_failure,
            on_success=self.on_success,
            on_death=self.on_death or outer.on_death,
            errbacks=self.errbacks,
        )

    def __bool__(self) -> bool:
        handlers = self.on_failure, self.on_success, self.on_death, self.errbacks
        return any((self.queue, *handlers))


@dataclass(frozen=True, slots=True)
class Job:
    """One task to run: its name, arguments and Celery options.

    ``plain`` says that the task is not known to be a ClutchTask, so that an internal task behind it
    has to collect its value. ``prepend`` says that the previous result goes before ``args``, as
    Celery does for a mutable signature. ``name`` is that of the step, "" if it has none.
    """

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    prepend: bool = False
    name: str = ""

    size = 1
    depth = 0


@dataclass(frozen=True, slots=True)
class Series:
    """Steps that run one after another."""

    steps: tuple[Node, ...] = ()
    scope: Scope = Scope()
    name: str = ""
    size: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _measure(self, self.steps)


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches that run side by side, at most ``limit`` of them at a time; what follows waits for
    all of them."""

    branches: tuple[Node, ...] | Branches = ()
    scope: Scope = Scope()
    limit: int | None = None
    name: str = ""
    size: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _measure(self, self.branches)


Node = Job | Series | Parallel


class Branches(Packed[Node]):
    """The branches of a parallel, as they are collected: empty ones are left out, and a series of
    one step is the step itself.

    Attributes:
        size: how many jobs are in them.
        depth: how deep the deepest is nested.
        only_jobs: each of them is a job.
    """

    def __init__(self) -> None:
        super().__init__(_dumps, _loads_all)
        self.size = 0
        self.depth = 0
        self.only_jobs = True

    def append(self, value: Node) -> None:
        if not value.size:
            return
        branch = _unwrap(value)
        super().append(branch)
        self.size += branch.size
        self.depth = max(self.depth, branch.depth)
        self.only_jobs = self.only_jobs and isinstance(branch, Job)

    def name_last(self, name: str) -> None:
        """Give the branch that was added last a name."""
        branch = self.amend(lambda last: with_name(last, name))
        self.depth = max(self.depth, branch.depth)
        self.only_jobs = self.only_jobs and isinstance(branch, Job)

    def all(self) -> tuple[Node, ...] | Branches:
        """What a plan is made of: a few are a tuple."""
        return tuple(self) if len(self) <= TOGETHER else self


def series(nodes: Iterable[Node], scope: Scope = Scope(), name: str = "") -> Series:
    """A series of *nodes*: series inside it are flattened (unless they have a name, or a scope of
    their own), and what is empty is left out."""
    steps: list[Node] = []
    for node in nodes:
        if isinstance(node, Series) and not node.scope and not node.name:
            steps.extend(node.steps)
        elif node.size:
            steps.append(node)
    return Series(tuple(steps), scope, name)


def parallel(
    nodes: Iterable[Node], scope: Scope = Scope(), limit: int | None = None, name: str = ""
) -> Parallel:
    """A parallel of *nodes*; empty branches are left out, one branch stays a parallel of one.

    A series of one step is the step itself. *nodes* are taken one by one.
    """
    branches = nodes if isinstance(nodes, Branches) else Branches()
    if branches is not nodes:
        for node in nodes:
            branches.append(node)
    return Parallel(branches.all(), scope, limit, name)


def with_name(node: Node, name: str) -> Node:
    """*node* with a name; one that has a name already keeps it, in a series of its own."""
    return Series((node,), name=name) if node.name else replace(node, name=name)


def _unwrap(node: Node) -> Node:
    if not isinstance(node, Series) or len(node.steps) != 1 or node.scope:
        return node
    return with_name(node.steps[0], node.name) if node.name else node.steps[0]


def children(node: Node) -> Sequence[Node]:
    """The steps or branches of *node*; nothing for a job."""
    if isinstance(node, Series):
        return node.steps
    if isinstance(node, Parallel):
        return node.branches
    return ()


def walk(node: Node, address: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below *node* with its address, in definition order."""
    for index, child in enumerate(children(node)):
        at = join(address, index)
        yield at, child
        yield from walk(child, at)


def join(address: str, index: int) -> str:
    """The address of child *index* of the node at *address*."""
    return f"{address}.{index}" if address else str(index)


class JobEncoder:
    """Encodes jobs, each of them once, however often it is asked, while they are not too many."""

    KEPT = 20_000

    def __init__(self) -> None:
        # The jobs as well: the id of one that is gone may be another's.
        self._known: dict[int, tuple[Job, Fragment]] = {}

    def __call__(self, job: Job) -> Fragment:
        """*job* as a short JSON list.

        Raises:
            NonJSONArgument: an argument or option has no JSON form.
        """
        if known := self._known.get(id(job)):
            return known[1]
        flags = job.plain + 2 * job.prepend
        encoded = codec.part((job.task, job.args, job.kwargs, job.options, flags))
        if len(self._known) >= self.KEPT:
            self._known.clear()
        self._known[id(job)] = job, encoded
        return encoded


def dumps(node: Node, encode: JobEncoder | None = None) -> bytes:
    """*node* as JSON; arguments keep the types that Celery's own JSON keeps.

    Raises:
        NonJSONArgument: where an argument or option has no JSON form.
    """
    return codec.encode_parts(_to_json(node, encode or JobEncoder()))


def loads(data: bytes) -> Node:
    """The node that `dumps` wrote.

    Raises:
        CorruptRecord: *data* is not a plan.
    """
    try:
        return _from_json(codec.decode_plan(data))
    except (
        *(AttributeError, KeyError, PlanTooDeep),
        *(RecursionError, TypeError, ValueError),
    ) as exc:
        raise CorruptRecord(f"not a plan: {exc!r}") from None


def to_dict(node: Node) -> dict[str, Any]:
    """*node* for people and other programs: see `Clutch.to_json`."""
    if isinstance(node, Job):
        data: dict[str, Any] = {"task": node.task}
        for name in ("args", "kwargs", "options"):
            if value := getattr(node, name):
                data[name] = value
        if node.prepend:
            data["prepend"] = True
        if node.name:
            data["name"] = node.name
        return data
    return {_kind(node): [to_dict(child) for child in children(node)], **_settings(node)}


def from_dict(data: Any, is_plain: Callable[[str], bool]) -> Node:
    """The node that `to_dict` wrote; *is_plain* tells of a task by name.

    Raises:
        TypeError, KeyError, ValueError: *data* is not of that form.
    """
    kinds = [kind for kind in ("task", "series", "parallel") if kind in data]
    if len(kinds) != 1:
        raise ValueError(f"{data!r:.80} has to have one of: task, series, parallel")
    known = {*kinds, "name", "args", "kwargs", "options", "prepend", "scope", "limit"}
    unknown = set(data) - known
    if unknown:
        raise ValueError(f"{data!r:.80} has unknown keys: {', '.join(sorted(unknown))}")
    name = data.get("name", "")
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.80} is not the name of a step")
    if kinds == ["task"]:
        task = data["task"]
        if not isinstance(task, str) or not task:
            raise ValueError(f"{task!r} is not the name of a task")
        args, kwargs = tuple(data.get("args") or ()), dict(data.get("kwargs") or {})
        options = dict(data.get("options") or {})
        return Job(task, args, kwargs, options, is_plain(task), bool(data.get("prepend")), name)
    nodes = [from_dict(child, is_plain) for child in data[kinds[0]]]
    scope = _scope_from_dict(data.get("scope", {}))
    if kinds == ["series"]:
        return series(nodes, scope, name)
    limit = data.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit is a number of at least 1, not {limit!r}")
    return parallel(nodes, scope, limit, name)


def _scope_from_dict(data: Mapping[str, Any]) -> Scope:
    scope = Scope(**data)
    if not isinstance(scope.queue, str | None):
        raise ValueError(f"{scope.queue!r:.80} is not the name of a queue")
    for handler in (scope.on_failure, scope.on_success, scope.on_death, scope.errbacks):
        if handler is not None and not isinstance(handler["task"], str):
            raise ValueError(f"{handler!r:.80} is not a signature")
    return scope


def _measure(node: Series | Parallel, nodes: Sequence[Node]) -> None:
    if isinstance(nodes, Branches):
        size, deepest = nodes.size, nodes.depth
    else:
        size = sum(child.size for child in nodes)
        deepest = max((child.depth for child in nodes), default=0)
    depth = 1 + deepest
    if depth > MAX_DEPTH:
        raise PlanTooDeep(
            f"steps are nested more than {MAX_DEPTH} deep. Engage a nested clutch from inside a "
            "job (Clutch(parent=self)) where depth is a matter of data."
        )
    object.__setattr__(node, "size", size)
    object.__setattr__(node, "depth", depth)


def job_from_json(data: list[Any]) -> Job:
    """The job that a `JobEncoder` wrote."""
    task, args, kwargs, options, flags = data
    return Job(task, tuple(args), kwargs, options, bool(flags & 1), bool(flags & 2))


def scope_to_json(scope: Scope) -> dict[str, Any]:
    """*scope* without what is not set."""
    names = ("queue", "on_failure", "on_success", "on_death", "errbacks")
    return {name: getattr(scope, name) for name in names if getattr(scope, name) is not None}


def _to_json(node: Node, encode: JobEncoder) -> dict[str, Any]:
    if isinstance(node, Job):
        job: dict[str, Any] = {"job": encode(node)}
        return {**job, "name": node.name} if node.name else job
    below = children(node)
    data: dict[str, Any] = {}
    if isinstance(below, Branches):
        data["parallel"] = Fragment(b"[%b]" % b",".join(below.parts()))
    else:
        data[_kind(node)] = [_to_json(child, encode) for child in below]
    data.update(_settings(node))
    if "scope" in data:
        data["scope"] = codec.part(data["scope"])
    return data


def _kind(node: Series | Parallel) -> str:
    return "series" if isinstance(node, Series) else "parallel"


def _settings(node: Series | Parallel) -> dict[str, Any]:
    """What is set for *node*, as data."""
    data: dict[str, Any] = {}
    if node.scope:
        data["scope"] = scope_to_json(node.scope)
    if isinstance(node, Parallel) and node.limit is not None:
        data["limit"] = node.limit
    if node.name:
        data["name"] = node.name
    return data


def _from_json(data: dict[str, Any]) -> Node:
    name = data.get("name", "")
    if not isinstance(name, str):
        raise TypeError(f"{name!r:.80} is not the name of a step")
    if "job" in data:
        job = job_from_json(data["job"])
        return replace(job, name=name) if name else job
    scope = Scope(**data.get("scope", {}))
    if "series" in data:
        return Series(tuple(_from_json(child) for child in data["series"]), scope, name)
    branches = tuple(_from_json(child) for child in data["parallel"])
    return Parallel(branches, scope, data.get("limit"), name)


def _dumps(node: Node) -> bytes:
    return codec.encode_parts(_to_json(node, JobEncoder()))


def _loads_all(data: bytes) -> list[Node]:
    return [_from_json(node) for node in codec.decode_plan(data)]
