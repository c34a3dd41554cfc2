"""Celery's canvas as a plan, with Celery's meaning: what becomes a previous result, where links and
errbacks of a canvas go, and when they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from celery import Celery, chord, current_app, group
from celery.canvas import Signature, chunks
from celery.utils.functional import maybe_list

from ..compile import checks, compat
from ..errors import InvalidStep
from ..model import plan
from ..model.plan import Job, Node, Parallel, Scope, Series
from ..runtime.task import ClutchTask

# What Celery writes into a signature when it sends it; a job gets its own.
_SENT = frozenset(
    ("task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "chain", "reply_to")
)

Options = Mapping[str, Any]


def is_canvas(sig: Signature) -> bool:
    """Whether *sig* is more than a task."""
    return isinstance(sig, (compat.Chain, group, chunks)) or compat.is_chord(sig)


def job(sig: Signature, app: Celery | None, inherited: Options, *, prepend: bool) -> Job:
    """The job of a task's signature, with the options *inherited* from the canvas around it.

    Raises:
        InvalidStep: it has no task name, or arguments that do not fit.
    """
    name = sig.task
    if not isinstance(name, str) or not name:
        raise InvalidStep(f"{sig!r} has no task name")
    task = getattr(sig, "_type", None) or (app or sig.app).tasks.get(name)
    plain = not isinstance(task, ClutchTask)
    args, kwargs = tuple(sig.args or ()), dict(sig.kwargs or {})
    args, kwargs = compat.dump_models(task, args, kwargs, prepend=prepend)
    if plain and task is not None and not prepend:
        checks.arguments(task, args, kwargs, name)
    options = _own(sig)
    # Celery writes an id of its own together with who is to be told of the result.
    if "task_id" in sig.options and "reply_to" not in sig.options:
        options["task_id"] = sig.options["task_id"]
    return Job(name, args, kwargs, _merged(inherited, options), plain, prepend)


def node(sig: Any, app: Celery | None, inherited: Options) -> Node:
    """*sig*, with Celery's rule for previous results."""
    sig = _signature(sig, app)
    if isinstance(sig, chunks):
        options = _merged(inherited, _own(sig))
        return plan.parallel(_branches(sig.group(), app, options))
    if isinstance(sig, compat.Chain):
        return _chain(sig, app, inherited)
    if isinstance(sig, group):
        options = _merged(inherited, _own(sig))
        return plan.parallel(_branches(sig, app, options))
    if compat.is_chord(sig):
        return _chord(sig, app, inherited)
    mapped = sig.task in ("celery.map", "celery.starmap")
    return job(sig, app, inherited, prepend=not (sig.immutable or mapped))


def _chain(sig: Any, app: Celery | None, inherited: Options) -> Series:
    steps = list(_steps(sig, app, inherited))
    nodes: list[Node] = []
    for index, (task, options) in enumerate(steps):
        if isinstance(task, group) and index + 1 < len(steps):
            # Celery makes a chord of the two, and errbacks of a chain are for the body.
            body, following = steps[index + 1]
            callback = _callback(body, following.get("link_error"), in_chain=True)
            options = {**options, "link_error": _of_headers(options, app)}
            nodes.append(_header(task, app, options, callback))
        elif compat.is_chord(task):
            nodes.append(_chord(task, app, options, in_chain=True))
        else:
            nodes.append(node(task, app, options))
    return plan.series(nodes)


def _steps(sig: Any, app: Celery | None, inherited: Options) -> Iterator[tuple[Any, Options]]:
    """The tasks of a chain and of the chains in it, with the options that each inherits.

    Celery applies the options of a chain to its first task, links to the last, errbacks to all.
    """
    options = _merged(inherited, _own(sig))
    tasks = list(sig.tasks)
    if tasks:
        tasks[0] = _with_args(tasks[0], sig.args, app)
    for index, each in enumerate(tasks):
        task = _signature(each, app)
        wanted = {"link_error"}
        if index == 0:
            wanted.update(options.keys() - {"link"})
        if index == len(tasks) - 1:
            wanted.add("link")
        given = {key: value for key, value in options.items() if key in wanted}
        if isinstance(task, compat.Chain):
            yield from _steps(task, app, given)
        else:
            yield task, given


def _chord(sig: Any, app: Celery | None, inherited: Options, *, in_chain: bool = False) -> Series:
    """Links and errbacks of a chord are those of its body."""
    options = _merged(inherited, _own(sig))
    callback = None
    if sig.body:
        callback = _callback(sig.body, options.get("link_error"), in_chain=in_chain)
    tasks = sig.tasks if isinstance(sig.tasks, group) else group(sig.tasks)
    errbacks = _of_headers(inherited, app) if in_chain else []
    own = {**options, "link_error": errbacks}
    header = _header(_with_args(tasks, sig.args, app), app, own, callback)
    if not sig.body:
        return plan.series([header])
    body = node(sig.body, app, options)
    if not header.size:
        body = node(_with_args(sig.body, ([],), app), app, options)
        body = _without_previous(body)
    return plan.series([header, body])


def _header(sig: Any, app: Celery | None, options: Options, callback: Any) -> Parallel:
    """The header of a chord.

    When a job in it dies, the errbacks of *callback* are called, as Celery does: once.
    """
    given = {key: value for key, value in options.items() if key not in ("link", "link_error")}
    if options.get("link_error"):
        given["link_error"] = options["link_error"]
    branches = _branches(sig, app, _merged(given, _own(sig)))
    return plan.parallel(branches, Scope(errbacks=callback))


def _of_headers(options: Options, app: Celery | None) -> list[Any]:
    """The errbacks of a chain that are for the tasks of headers in it as well."""
    if not (app or current_app).conf.task_allow_error_cb_on_chord_header:
        return []
    errbacks = _listed(options.get("link_error"))
    return [_signature(errback, app).clone(immutable=True) for errback in errbacks]


def _branches(sig: Any, app: Celery | None, options: Options) -> Iterator[Node]:
    """The tasks of a group; groups among them are unrolled, as in Celery."""
    for each in sig.tasks:
        task = _with_args(each, sig.args, app)
        branch = node(task, app, options)
        if isinstance(task, group) and isinstance(branch, Parallel):
            yield from branch.branches
        else:
            yield branch


def _callback(body: Any, errbacks: Any, *, in_chain: bool) -> dict[str, Any] | None:
    """What Celery reads of the *body* of a chord when the header has failed, with the *errbacks*
    that it inherits; None if there is nothing to call."""
    callback = _only_errbacks(body)
    if in_chain and compat.has_leading_body(body):
        for errback in _listed(_signature(body.tasks[0], None).options.get("link_error")):
            callback.link_error(errback)
    inner = callback
    while compat.is_chord(inner):
        inner = inner.body
    for errback in _listed(errbacks):
        inner.link_error(_signature(errback, None))
    return dict(callback) if _has_errbacks(callback) else None


def _only_errbacks(sig: Any) -> Any:
    """*sig* without what does not matter when it is to be told that it will not run."""
    sig = _signature(sig, None)
    options = {}
    if errbacks := _listed(sig.options.get("link_error")):
        options["link_error"] = errbacks
    if isinstance(sig, group):
        return group([_only_errbacks(task) for task in sig.tasks], **options)
    if compat.is_chord(sig) and sig.body:
        return chord([], _only_errbacks(sig.body)).set(**options)
    return Signature(sig.task, options=options)


def _has_errbacks(sig: Any) -> bool:
    return bool(sig.options.get("link_error")) or any(map(_has_errbacks, compat.parts(sig)))


def _without_previous(node: Node) -> Node:
    """*node*, whose first jobs are given what they need."""
    if isinstance(node, Job):
        return replace(node, prepend=False)
    if isinstance(node, Series):
        first, *rest = node.steps
        return replace(node, steps=(_without_previous(first), *rest))
    if not isinstance(node, Parallel):
        return node
    branches = map(_without_previous, node.branches)
    return plan.parallel(branches, node.scope, node.limit, node.name)


def _own(sig: Signature) -> dict[str, Any]:
    return {key: value for key, value in sig.options.items() if key not in _SENT}


def _merged(inherited: Options, own: Options) -> dict[str, Any]:
    """Options of a canvas and of a signature in it: links of both, of the rest its own first."""
    merged = {**inherited, **own}
    for key in ("link", "link_error"):
        if inherited.get(key) and own.get(key):
            mine = _listed(own[key])
            merged[key] = [*mine, *(link for link in _listed(inherited[key]) if link not in mine)]
    return merged


def _with_args(task: Any, args: Iterable[Any], app: Celery | None) -> Any:
    """*task* with *args* before its own.

    ``clone`` loses them for chains and groups (5.3 to 5.7).
    """
    task = _signature(task, app)
    if not args or task.immutable:
        return task
    copy = task.clone()
    copy.args = (*args, *(copy.args or ()))
    return copy


def _signature(sig: Any, app: Celery | None) -> Any:
    return sig if isinstance(sig, Signature) else (app or current_app).signature(sig)


def _listed(value: Any) -> list[Any]:
    return list(maybe_list(value) or ())
