"""The plan: a frozen tree of jobs, series and parallels, maps and choices. Pure; knows no Celery.

An **address** is the path of a node from the root, ``"0"``, ``"1.2"``, ``"1.2.0"``, and names a job
for life. The root is a `Series`; its steps have the addresses ``"0"``, ``"1"`` and so on. The
branches of a map are numbered as those of a parallel; before it is known how many there are, `EACH`
stands for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson
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

    Handlers are signatures in their dict form; ``on_end`` is of a whole plan alone. ``errbacks`` is
    the body of a chord whose header the subtree is: Celery's errbacks in it are called when a job
    in the header dies.
    """

    queue: str | None = None
    on_failure: Mapping[str, Any] | None = None
    on_success: Mapping[str, Any] | None = None
    on_death: Mapping[str, Any] | None = None
    errbacks: Mapping[str, Any] | None = None
    on_end: Mapping[str, Any] | None = None

    def inherit(self, outer: Scope) -> Scope:
        """This scope inside *outer*. ``on_success``, ``on_end`` and ``errbacks`` are of its own
        subtree only."""
        return Scope(
            queue=self.queue or outer.queue,
            on_failure=self.on_failure or outer.on_failure,
            on_success=self.on_success,
            on_death=self.on_death or outer.on_death,
            errbacks=self.errbacks,
            on_end=self.on_end,
        )

    def __bool__(self) -> bool:
        handlers = self.on_failure, self.on_success, self.on_death, self.on_end, self.errbacks
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
    tolerant = False


@dataclass(frozen=True, slots=True)
class Inner:
    """A node with others below it.

    Attributes:
        size: how many jobs are in it, as far as is known before it runs.
        depth: how deep the deepest of them is nested.
        tolerant: something in it goes on without some of its branches.
    """

    size: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)
    tolerant: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        nodes = children(self)
        if isinstance(nodes, Branches):
            size, deepest, tolerant = nodes.size, nodes.depth, nodes.tolerant
        else:
            size = sum(child.size for child in nodes)
            deepest = max((child.depth for child in nodes), default=0)
            tolerant = any(child.tolerant for child in nodes)
        if deepest >= MAX_DEPTH:
            raise PlanTooDeep(
                f"steps are nested more than {MAX_DEPTH} deep. Engage a nested clutch from inside "
                "a job (Clutch(parent=self)) where depth is a matter of data."
            )
        object.__setattr__(self, "size", 1 if isinstance(self, Map) else size)
        object.__setattr__(self, "depth", 1 + deepest)
        object.__setattr__(self, "tolerant", tolerant or is_tolerant(self))


@dataclass(frozen=True, slots=True)
class Series(Inner):
    """Steps that run one after another."""

    steps: tuple[Node, ...] = ()
    scope: Scope = Scope()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Parallel(Inner):
    """Branches that run side by side, at most ``limit`` of them at a time; what follows waits for
    all of them.

    ``allow`` says how many may die: a number of branches, a share of them below 1, or True for
    all. With ``need``, what follows waits for so many that have succeeded.
    """

    branches: tuple[Node, ...] | Branches = ()
    scope: Scope = Scope()
    limit: int | None = None
    name: str = ""
    allow: bool | int | float = False
    need: int = 0


@dataclass(frozen=True, slots=True)
class Choose(Inner):
    """One of several options, by the value of a task.

    Its children are the decider, the options, and the default if there is one.

    Attributes:
        decider: the job that decides.
        options: each with its key, the JSON of the value that it stands for.
        default: what runs where no key is the value; None if that is a failure.
        truth: there is one option, for every true value, and nothing runs for others.
    """

    decider: Job
    options: tuple[tuple[str, Node], ...] = ()
    default: Node | None = None
    truth: bool = False
    name: str = ""
    scope: Scope = Scope()

    def branches(self) -> list[tuple[str | None, Node]]:
        """The options by key, and the default as None."""
        found: list[tuple[str | None, Node]] = list(self.options)
        if self.default is not None:
            found.append((None, self.default))
        return found


@dataclass(frozen=True, slots=True)
class Map(Inner):
    """A parallel of one branch for each element of the list that the step before has returned.

    Its child is the branch. It counts as one job until it is known how many branches there are.
    The other attributes are those of `Parallel`.
    """

    branch: Node
    scope: Scope = Scope()
    limit: int | None = None
    name: str = ""
    allow: bool | int | float = False
    need: int = 0


Node = Job | Series | Parallel | Choose | Map

EACH = "%"
"""In an address, the number of a branch of a map."""


def tolerated(allow: bool | int | float, need: int, width: int) -> int:
    """How many of *width* branches may die; see `Parallel`."""
    if need and not allow:
        return width - need
    if allow is True:
        deaths = width
    elif isinstance(allow, float):
        deaths = int(allow * width + 1e-9)
    else:
        deaths = int(allow)
    return min(deaths, width - need)


class Branches(Packed[Node]):
    """The branches of a parallel, as they are collected: empty ones are left out, and a series of
    one step is the step itself.

    Attributes:
        size: how many jobs are in them.
        depth: how deep the deepest is nested.
        only_jobs: each of them is a job.
        tolerant: one of them has a parallel inside that goes on without some of its branches.
    """

    def __init__(self) -> None:
        super().__init__(dumps, _loads_all)
        self.size = 0
        self.depth = 0
        self.only_jobs = True
        self.tolerant = False

    def append(self, value: Node) -> None:
        if not value.size:
            return
        branch = _unwrap(value)
        super().append(branch)
        self._measure(branch)

    def change_last(self, change: Callable[[Node], Node]) -> None:
        """Put something else in the place of the branch that was added last."""
        self.size -= self._last[-1].size
        self._measure(self.amend(change))

    def _measure(self, branch: Node) -> None:
        self.size += branch.size
        self.depth = max(self.depth, branch.depth)
        self.only_jobs = self.only_jobs and isinstance(branch, Job)
        self.tolerant = self.tolerant or branch.tolerant

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
    nodes: Iterable[Node],
    scope: Scope = Scope(),
    limit: int | None = None,
    name: str = "",
    allow: bool | int | float = False,
    need: int = 0,
) -> Parallel:
    """A parallel of *nodes*; empty branches are left out, one branch stays a parallel of one.

    A series of one step is the step itself. *nodes* are taken one by one.
    """
    branches = nodes if isinstance(nodes, Branches) else Branches()
    if branches is not nodes:
        for node in nodes:
            branches.append(node)
    return Parallel(branches.all(), scope, limit, name, allow, need)


def with_name(node: Node, name: str) -> Node:
    """*node* with a name; one that has a name already keeps it, in a series of its own."""
    return Series((node,), name=name) if node.name else replace(node, name=name)


def _unwrap(node: Node) -> Node:
    if not isinstance(node, Series) or len(node.steps) != 1 or node.scope:
        return node
    return with_name(node.steps[0], node.name) if node.name else node.steps[0]


def children(node: Node | Inner) -> Sequence[Node]:
    """The steps or branches of *node*; nothing for a job."""
    if isinstance(node, Series):
        return node.steps
    if isinstance(node, Parallel):
        return node.branches
    if isinstance(node, Map):
        return (node.branch,)
    if isinstance(node, Choose):
        return (node.decider, *(option for _, option in node.branches()))
    return ()


def is_tolerant(node: Node | Inner) -> bool:
    """Whether what follows *node*, a parallel or map, need not wait for all its branches."""
    return isinstance(node, (Parallel, Map)) and bool(node.allow or node.need)


def walk(node: Node, address: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below *node* with its address, in definition order."""
    for at, child in below(node, address):
        yield at, child
        yield from walk(child, at)


def below(node: Node, address: str) -> Iterator[tuple[str, Node]]:
    """The children of *node* with their addresses."""
    if isinstance(node, Map):
        yield join(address, EACH), node.branch
        return
    for index, child in enumerate(children(node)):
        yield join(address, index), child


def join(address: str, index: int | str) -> str:
    """The address of child *index* of the node at *address*."""
    return f"{address}.{index}" if address else str(index)


def is_in(address: str, around: str) -> bool:
    """Whether a node is that at the address *around*, or inside it."""
    return not around or address == around or address.startswith(f"{around}.")


def upwards(address: str) -> Iterator[str]:
    """*address*, and those of everything around it, the innermost first; without the root."""
    while address:
        yield address
        address = address.rpartition(".")[0]


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
    return _to_data(node, to_dict)


def _to_data(
    node: Series | Parallel | Choose | Map, convert: Callable[[Node], Any]
) -> dict[str, Any]:
    """*node* as data, and what is below it as *convert* makes it."""
    data: dict[str, Any]
    if isinstance(node, Map):
        data = {"map": convert(node.branch)}
    elif isinstance(node, Choose):
        data = {"choose": convert(node.decider)}
        data["options"] = [[key, convert(option)] for key, option in node.options]
        if node.default is not None:
            data["default"] = convert(node.default)
        if node.truth:
            data["truth"] = True
    else:
        kind = "series" if isinstance(node, Series) else "parallel"
        data = {kind: [convert(child) for child in children(node)]}
    return {**data, **_settings(node)}


def from_dict(data: Any, is_plain: Callable[[str], bool]) -> Node:
    """The node that `to_dict` wrote; *is_plain* tells of a task by name.

    Raises:
        TypeError, KeyError, ValueError: *data* is not of that form.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{data!r:.80} is not a step")
    kinds = [kind for kind in _KINDS if kind in data]
    if len(kinds) != 1:
        raise ValueError(f"{data!r:.80} has to have one of: {', '.join(_KINDS)}")
    kind = kinds[0]
    unknown = set(data) - {kind, "name", *_KINDS[kind]}
    if unknown:
        raise ValueError(f"{data!r:.80} has unknown keys: {', '.join(sorted(unknown))}")
    name = data.get("name", "")
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.80} is not the name of a step")
    if kind == "task":
        return _job_from_dict(data, name, is_plain)
    scope = _scope_from_dict(data.get("scope", {}))
    if kind == "choose":
        return _choose_from_dict(data, scope, name, is_plain)
    if kind == "map":
        branch = from_dict(data["map"], is_plain)
        if not branch.size:
            raise ValueError("map needs a step to run for each element, and what it has is empty")
        return Map(branch, scope, name=name, **_bounds_from_dict(data))
    nodes = [from_dict(child, is_plain) for child in data[kind]]
    if kind == "series":
        return series(nodes, scope, name)
    return parallel(nodes, scope, name=name, **_bounds_from_dict(data))


_BOUNDS = ("limit", "allow", "need")
_KINDS: dict[str, tuple[str, ...]] = {
    "task": ("args", "kwargs", "options", "prepend"),
    "series": ("scope",),
    "parallel": ("scope", *_BOUNDS),
    "map": ("scope", *_BOUNDS),
    "choose": ("scope", "options", "default", "truth"),
}
"""The kinds of nodes, and what else is said of each."""


def _job_from_dict(data: Any, name: str, is_plain: Callable[[str], bool]) -> Job:
    task = data["task"]
    if not isinstance(task, str) or not task:
        raise ValueError(f"{task!r} is not the name of a task")
    args, kwargs = tuple(data.get("args") or ()), dict(data.get("kwargs") or {})
    options = dict(data.get("options") or {})
    return Job(task, args, kwargs, options, is_plain(task), bool(data.get("prepend")), name)


def _choose_from_dict(
    data: Any, scope: Scope, name: str, is_plain: Callable[[str], bool]
) -> Choose:
    decider = from_dict(data["choose"], is_plain)
    if not isinstance(decider, Job):
        raise ValueError(f"{data['choose']!r:.80} is not a task, and only a task decides")
    options: dict[str, Node] = {}
    for key, option in _pairs(data.get("options")):
        if _checked_key(key) in options:
            raise ValueError(f"two options have the key {key}")
        options[key] = from_dict(option, is_plain)
    default = from_dict(data["default"], is_plain) if "default" in data else None
    truth = data.get("truth", False)
    if not isinstance(truth, bool):
        raise ValueError(f"truth is true or false, not {truth!r:.80}")
    if truth and (list(options) != ["true"] or default is not None):
        raise ValueError('with "truth" there is one option, whose key is "true", and no default')
    return Choose(decider, tuple(options.items()), default, truth, name, scope)


def _pairs(options: Any) -> Sequence[Any]:
    """*options*, the pairs of key and step."""
    is_list = isinstance(options, (list, tuple)) and len(options) > 0
    if not is_list or not all(
        isinstance(each, (list, tuple)) and len(each) == 2 for each in options
    ):
        raise ValueError(f"options are a list of pairs of key and step, not {options!r:.80}")
    found: Sequence[Any] = options
    return found


def _checked_key(key: Any) -> str:
    """*key*, the JSON of a value that a task can decide for."""
    try:
        value = orjson.loads(key)
        if isinstance(value, (list, dict)) or orjson.dumps(value).decode() != key:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{key!r:.80} is not the key of an option, which is the JSON of a string, a number, a "
            "boolean or null, without blanks"
        ) from None
    checked: str = key
    return checked


def _bounds_from_dict(data: Any) -> dict[str, Any]:
    limit = data.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit is a number of at least 1, not {limit!r}")
    allow, need = data.get("allow", False), data.get("need", 0)
    check_bounds(allow, need)
    return {"limit": limit, "allow": allow, "need": need}


def check_bounds(allow: Any, need: Any) -> None:
    """Whether a `Parallel` can have these.

    Raises:
        ValueError: saying why not.
    """
    is_share = isinstance(allow, float) and 0 <= allow < 1
    is_number = isinstance(allow, (bool, int)) and allow >= 0
    if not is_share and not is_number:
        raise ValueError(
            "allow_failures is a number of branches, a share of them below 1, or True for all, "
            f"not {allow!r:.80}"
        )
    if type(need) is not int or need < 0:
        raise ValueError(f"need is a number of branches of at least 1, not {need!r:.80}")
    if allow is True and need:
        raise ValueError(
            f"allow_failures=True lets all branches die, and need={need} does not: give one of them"
        )


def _scope_from_dict(data: Mapping[str, Any]) -> Scope:
    scope = Scope(**data)
    if not isinstance(scope.queue, str | None):
        raise ValueError(f"{scope.queue!r:.80} is not the name of a queue")
    handlers = scope.on_failure, scope.on_success, scope.on_death, scope.on_end, scope.errbacks
    for handler in handlers:
        if handler is not None and not isinstance(handler["task"], str):
            raise ValueError(f"{handler!r:.80} is not a signature")
    return scope


def job_from_json(data: list[Any]) -> Job:
    """The job that a `JobEncoder` wrote."""
    task, args, kwargs, options, flags = data
    return Job(task, tuple(args), kwargs, options, bool(flags & 1), bool(flags & 2))


def scope_to_json(scope: Scope) -> dict[str, Any]:
    """*scope* without what is not set."""
    names = ("queue", "on_failure", "on_success", "on_death", "on_end", "errbacks")
    return {name: getattr(scope, name) for name in names if getattr(scope, name) is not None}


def _to_json(node: Node, encode: JobEncoder) -> dict[str, Any]:
    if isinstance(node, Job):
        job: dict[str, Any] = {"job": encode(node)}
        return {**job, "name": node.name} if node.name else job
    if isinstance(node, Parallel) and isinstance(node.branches, Branches):
        packed = Fragment(b"[%b]" % b",".join(node.branches.parts()))
        data = {"parallel": packed, **_settings(node)}
    else:
        data = _to_data(node, partial(_to_json, encode=encode))
    if "scope" in data:
        data["scope"] = codec.part(data["scope"])
    return data


def _settings(node: Series | Parallel | Choose | Map) -> dict[str, Any]:
    """What is set for *node*, as data."""
    data: dict[str, Any] = {}
    if node.scope:
        data["scope"] = scope_to_json(node.scope)
    if isinstance(node, (Parallel, Map)):
        if node.limit is not None:
            data["limit"] = node.limit
        if node.allow:
            data["allow"] = node.allow
        if node.need:
            data["need"] = node.need
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
    if "choose" in data:
        return _choose_from_json(data, scope, name)
    bounds = {name: data[name] for name in ("limit", "allow", "need") if name in data}
    if "map" in data:
        return Map(_from_json(data["map"]), scope, name=name, **bounds)
    branches = tuple(_from_json(child) for child in data["parallel"])
    return Parallel(branches, scope, name=name, **bounds)


def _choose_from_json(data: dict[str, Any], scope: Scope, name: str) -> Choose:
    decider = _from_json(data["choose"])
    if not isinstance(decider, Job):
        raise TypeError(f"{decider!r:.80} is not a job")
    options = tuple((str(key), _from_json(option)) for key, option in data["options"])
    default = _from_json(data["default"]) if "default" in data else None
    return Choose(decider, options, default, bool(data.get("truth")), name, scope)


def _loads_all(data: bytes) -> list[Node]:
    return [_from_json(node) for node in codec.decode_plan(data)]
