"""``celery -A proj clutch ...``: the operator's command line.

Exit codes: 0 for success, 1 for trouble (said in one line on stderr), 2 for wrong usage.
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice, takewhile
from typing import Any, NoReturn

import click
import orjson
from celery import Celery
from celery.utils.imports import import_from_cwd
from kombu.exceptions import OperationalError

from ..compile import record
from ..errors import ClutchError, RunNotFound
from ..extend.plugins import runtime
from ..handle import tree
from ..handle.result import ClutchResult
from ..model import graph, plan
from ..model.status import State, isoformat
from ..stores.base import ENDED, ResultStore, Summary, listed
from . import doctor
from . import sweep as sweep_module

_COLOURS = {
    "done": "green",
    "running": "blue",
    "failing": "yellow",
    "dead": "red",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}
_EVERYTHING = 10**9


class _Group(click.Group):
    """Trouble that is to be expected is told in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ClutchError, OperationalError) as exc:
            _fail(str(exc) or repr(exc))


class _Age(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in click 8.4
    """``90``, ``90s``, ``30m``, ``2h``, ``3d``, ``1w``: seconds."""

    name = "age"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", str(value))
        if not found:
            self.fail(f"{value!r} is not an age such as 45s, 30m, 2h, 3d or 1w", param, ctx)
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]
        return float(found[1]) * unit


@click.group(cls=_Group)
def clutch(**_: Any) -> None:  # Celery gives every plugin the app's own preload options
    """Look at runs of clutches and steer them."""


_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")
_id = click.argument("id")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_every = click.option("--all", "everything", is_flag=True, help="Show every branch of wide steps.")


# --- looking ------------------------------------------------------------------------------------


@clutch.command()
@click.option("--state", type=click.Choice([*map(str, State)], case_sensitive=False))
@click.option("--tag", help="Only runs with this tag.")
@click.option("--name", help="Only runs of this name.")
@click.option("--older", type=_Age(), metavar="AGE", help="Engaged longer ago, such as 2h.")
@click.option("--newer", type=_Age(), metavar="AGE", help="Engaged since, such as 30m.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def ls(
    obj: Any, /, older: float | None, newer: float | None, limit: int, as_json: bool, **wanted: Any
) -> None:
    """List runs, the newest first."""
    now = time.time()
    if wanted["state"]:
        wanted["state"] = State(wanted["state"].upper())
    runs: Iterator[Summary] = listed(_store(obj), **wanted)
    if newer is not None:
        runs = takewhile(lambda run: now - run.created_at <= newer, runs)
    if older is not None:
        runs = filter(lambda run: now - run.created_at >= older, runs)
    if as_json:
        for run in islice(runs, limit):
            click.echo(orjson.dumps(_summary(run)))
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "STATE", "JOBS", "ENGAGED", "TOOK", "TAGS")]
    rows += [_row(run, now) for run in islice(runs, limit)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = _style(obj, cells[2], row[2])
        click.echo("  ".join(cells).rstrip())


@clutch.command()
@_id
@_every
@click.option("--traceback", is_flag=True, help="Show the traceback of each failure.")
@_json
@click.pass_obj
def show(obj: Any, id: str, everything: bool, traceback: bool, as_json: bool) -> None:
    """Show a run: its steps, and the state, timing and failure of every job.

    Of a parallel step wider than 10 branches those are shown that are in trouble, or running.
    """
    found = _tree(obj.app, id)
    if as_json:
        _print(found.to_dict())
        return
    wide = _EVERYTHING if everything else graph.WIDE
    for line in _drawn(obj, tree.lines(found, time.time(), wide=wide, traceback=traceback)):
        click.echo(line)


@clutch.command()
@click.argument("id", required=False)
@click.option("--all", "everything", is_flag=True, help="All runs that are running.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True)
@click.pass_obj
def watch(obj: Any, id: str | None, everything: bool, interval: float) -> None:
    """Watch a run until it has ended; exit with 0 if it has succeeded, else with 1.

    It is drawn with "rich" on a terminal, where that is installed: pip install celery-clutch[cli].
    """
    if (id is None) is not everything:
        raise click.UsageError("give either the id of a run, or --all")
    store, paces = _store(obj), defaultdict[str, tree.Pace](tree.Pace)
    runs: dict[str, Summary] = {}
    with _live(obj) as draw, closing(_ticks(store, id, interval, draw is not None)) as ticks:
        for _ in ticks:
            before, runs = runs, _look(store, id, runs)
            for run in runs.values():
                paces[run.run].add(time.monotonic(), run.done)
                if not draw and before.get(run.run) != run:
                    click.echo(f"{time.strftime('%H:%M:%S')}  {_headline(run, paces[run.run])}")
            if draw:
                top = tree.lines(_tree(obj.app, id), time.time()) if id else None
                draw([(run, _headline(run, paces[run.run])) for run in runs.values()], top)
            if all(run.state in ENDED for run in runs.values()):
                break
    if not runs:
        click.echo("no run is running")
    if any(run.state is not State.SUCCEEDED for run in runs.values()):
        sys.exit(1)


@clutch.command()
@_id
@click.argument("address", required=False)
@click.pass_obj
def results(obj: Any, id: str, address: str | None) -> None:
    """Print the result at an ADDRESS as JSON; without one, those of the last step."""
    try:
        _print(_run(obj, id).results(address))
    except LookupError as exc:
        _fail(str(exc))


@clutch.command()
@_id
@click.pass_obj
def data(obj: Any, id: str) -> None:
    """Print the data that the jobs of a run share, as JSON."""
    _print(_run(obj, id).data())


@clutch.command("graph")
@click.argument("target", metavar="ID|MODULE:CLUTCH")
@click.option(
    "--format",
    "form",
    type=click.Choice(["mermaid", "dot", "text", "html"]),
    default="mermaid",
    show_default=True,
)
@_every
@click.pass_obj
def graph_(obj: Any, target: str, form: str, everything: bool) -> None:
    """Draw a run, or a clutch that a module has (or a function there returns).

    Branches of a parallel step wider than 10 are drawn once for each shape that they have.
    """
    composed = _composed(target)
    if composed is not None:
        root, title, states = composed.plan, composed.name or target, None
    else:
        found = _tree(obj.app, target)
        root, states = found.plan, found.states()
        title = tree.headline(found.status)
    if form == "html":
        click.echo(graph.html(root, title, states))
        return
    draw = {"mermaid": graph.mermaid, "dot": graph.dot, "text": graph.text}[form]
    click.echo(draw(root, title, states, _EVERYTHING if everything else graph.WIDE))


@clutch.command("doctor")
@click.option("--strict", is_flag=True, help="Exit with 2 if there are warnings.")
@click.option("--timeout", type=click.FloatRange(0.1), default=2.0, show_default=True)
@_json
@click.pass_obj
def doctor_(obj: Any, strict: bool, timeout: float, as_json: bool) -> None:
    """Check what clutches need: versions, tasks, broker, backend, store and workers.

    Exit with 1 if there is a problem.
    """
    findings = []
    for finding in doctor.examine(obj.app, timeout):
        findings.append(finding)
        if not as_json:
            label = finding.severity.value
            click.echo(f"{_style(obj, label.ljust(8), label)} {graph.printable(finding.what)}")
            if finding.fix:
                click.echo(f"{'':9}{graph.printable(finding.fix)}")
    if as_json:
        _print([finding.to_dict() for finding in findings])
    severities = {finding.severity for finding in findings}
    if doctor.Severity.PROBLEM in severities:
        sys.exit(1)
    if strict and doctor.Severity.WARNING in severities:
        sys.exit(2)


# --- steering -----------------------------------------------------------------------------------


@clutch.command()
@_ids
@click.pass_obj
def cancel(obj: Any, ids: Sequence[str]) -> None:
    """Let no further job of the runs start."""
    _each(obj, ids, ClutchResult.cancel, "cancelled", "has ended already")


@clutch.command()
@_ids
@click.pass_obj
def resume(obj: Any, ids: Sequence[str]) -> None:
    """Run again what has no result, and nothing else."""
    _each(obj, ids, ClutchResult.resume, "resumed", "has nothing to resume")


@clutch.command()
@_ids
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(obj: Any, ids: Sequence[str], yes: bool) -> None:
    """Delete the runs and their results."""
    if not yes:
        click.confirm(f"Delete {', '.join(ids)} and all results?", abort=True)

    def forget_one(run: ClutchResult) -> bool:
        return run.forget() or bool(run.state)  # the state of what is not there says so

    _each(obj, ids, forget_one, "forgotten", "")


@clutch.command()
@click.option("--grace", type=float, help="Seconds due, or without an event; default clutch_grace.")
@click.option("--silent-for", type=float, help="Also resume what is silent for so many seconds.")
@click.pass_obj
def sweep(obj: Any, grace: float | None, silent_for: float | None) -> None:
    """Send again what runs have lost; print their ids."""
    for run in sweep_module.sweep(obj.app, grace=grace, silent_for=silent_for):
        click.echo(run)


@clutch.command()
@click.pass_obj
def prune(obj: Any) -> None:
    """Delete expired runs, where the server of the store does not do so itself."""
    total = sweep_module.prune_all(_store(obj))
    click.echo(f"{total:,} expired runs deleted")


@clutch.command()
@click.pass_obj
def migrate(obj: Any) -> None:
    """Create or upgrade what the store needs on its server."""
    for done in _store(obj).migrate() or ["nothing to do"]:
        click.echo(done)


# --- private ------------------------------------------------------------------------------------


def _fail(message: str) -> NoReturn:
    raise click.ClickException(graph.printable(message))


def _print(value: Any) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def _style(obj: Any, text: str, what: str) -> str:
    return text if obj.no_color else click.style(text, fg=_COLOURS.get(what))


def _store(obj: Any) -> ResultStore:
    return runtime(obj.app).store


def _run(obj: Any, id: str) -> ClutchResult:
    return ClutchResult(id, obj.app)


def _each(
    obj: Any, ids: Iterable[str], act: Callable[[ClutchResult], bool], yes: str, no: str
) -> None:
    """Do something to each run, also where one of them is not there."""
    missing = False
    for id in ids:
        try:
            click.echo(f"{id} {yes if act(_run(obj, id)) else no}")
        except RunNotFound as exc:
            click.echo(f"Error: {graph.printable(str(exc))}", err=True)
            missing = True
    if missing:
        sys.exit(1)


def _summary(run: Summary) -> dict[str, Any]:
    """With the names of `Status`."""
    found = asdict(run)
    del found["due"]
    for name in ("created_at", "updated_at", "ended_at"):
        found[name] = found[name] and isoformat(found[name])
    return {"id": found.pop("run"), "total": found.pop("jobs"), **found}


def _row(run: Summary, now: float) -> tuple[str, ...]:
    age, took = now - run.created_at, (run.ended_at or now) - run.created_at
    times = (f"{tree.duration(max(age, 0))} ago", tree.duration(max(took, 0)))
    return run.run, run.name or "", run.state, tree.progress(run), *times, " ".join(run.tags)


def _tree(app: Celery, id: str) -> tree.Tree:
    """The run as a tree; the runs that its jobs wait for inside."""
    store, run = runtime(app).store, ClutchResult(id, app)
    root, found = run.plan(), store.read(id)
    if found is None:
        raise RunNotFound(f"the run {id!r} has just gone")
    nested = {
        address: [_tree(app, each) for each in runs if store.peek(each)]
        for address, runs in record.held_runs(found).items()
    }
    return tree.build(root, found, store.executions(id), nested)


def _drawn(obj: Any, top: tree.Line) -> Iterator[str]:
    yield top.text
    for prefix, line in graph.outline(top.below, lambda line: line.below):
        mark = f"{_style(obj, tree.MARKS[line.state], line.state)} " if line.state else ""
        yield f"{prefix}{mark}{line.text}"
        inside = prefix[:-3] + ("│  " if prefix.endswith("├─ ") else "   ")
        yield from (f"{inside}  {graph.printable(each)}" for each in line.more.splitlines())


def _read(store: ResultStore, id: str) -> Summary:
    found = store.patiently(store.read, id)
    if found is None:
        raise RunNotFound(f"there is no run {id!r} in {store!r}")
    meta = record.Meta.loads(found.meta)
    counts = meta.jobs, found.done, found.failing, found.dead
    times = found.created_at, found.updated_at, found.ended_at
    return Summary(id, meta.name, meta.tags, found.state, *counts, *times, len(found.due))


def _look(store: ResultStore, id: str | None, known: Mapping[str, Summary]) -> dict[str, Summary]:
    """The run, or those that are running, and what has become of those *known*."""
    if id:
        return {id: _read(store, id)}
    runs = {run.run: run for run in listed(store, state=State.RUNNING)}
    for each, run in known.items():
        if each not in runs and (run.state in ENDED or store.peek(each)):
            runs[each] = run if run.state in ENDED else _read(store, each)
    return runs


def _ticks(
    store: ResultStore, id: str | None, interval: float, live: bool
) -> Generator[None, None, None]:
    """When to look: at once, when something may have changed (if *live* also when only time has
    passed), and not more often than every *interval* seconds."""
    due, missed = 0.0, False
    changes = store.watch(id) if id else _every_so_often(interval)
    for changed in changes:
        missed |= changed or live
        ended = changed and id and (store.peek(id) or ("",))[0] in ("", *ENDED)
        if missed and (ended or time.monotonic() >= due):
            before = time.monotonic()
            yield
            now = time.monotonic()
            due, missed = now + max(interval, 4 * (now - before)), False  # huge runs take time


def _every_so_often(interval: float) -> Generator[bool, None, None]:
    while True:
        yield True
        time.sleep(interval)


def _headline(run: Summary, pace: tree.Pace) -> str:
    parts = [f"{run.name} {run.run}" if run.name else run.run, run.state, tree.progress(run)]
    if run.state is State.RUNNING and (rate := pace.rate()):
        parts.append(f"{rate:,.1f} a second")
        parts.append(f"{tree.duration(pace.left(run.jobs) or 0)} left")
    return graph.printable("  ".join(parts))


def _composed(target: str) -> Any:
    """The clutch that *target* names; None when it does not look like module:clutch."""
    module_name, _, path = target.partition(":")
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", target):
        return None
    try:
        found = import_from_cwd(module_name)
        for name in path.split("."):
            found = getattr(found, name)
        found = getattr(found, "__clutch__", found)  # a Sequence
        if inspect.isroutine(found):
            found = found()
    except ModuleNotFoundError as exc:
        if exc.name and (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            return None  # then it may be the id of a run
        _fail(f"{module_name} cannot be imported: {exc}")
    except Exception as exc:
        _fail(f"{target} cannot be loaded: {type(exc).__name__}: {exc}")
    if not isinstance(getattr(found, "plan", None), plan.Series):
        _fail(f"{target} is not a clutch but {found!r}"[:300])
    return found


@contextmanager
def _live(obj: Any) -> Iterator[Callable[..., None] | None]:
    """What draws runs and a tree on a terminal; None where there is none, or no rich."""
    if not sys.stdout.isatty() or find_spec("rich") is None:
        yield None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def draw(runs: Iterable[tuple[Summary, str]], top: tree.Line | None) -> None:
        table = Table.grid(padding=(0, 1))
        for run, text in runs:
            bar = ProgressBar(total=max(run.jobs, 1), completed=run.done, width=30)
            table.add_row(bar, Text(text))
        lines = _drawn(obj, top) if top else ()
        live.update(Group(table, *map(Text.from_ansi, lines)), refresh=True)

    with Live(console=Console(no_color=obj.no_color or None), auto_refresh=False) as live:
        yield draw
