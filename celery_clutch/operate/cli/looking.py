"""Commands that look at runs, and change nothing."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any, NamedTuple

import click
from celery.utils.imports import import_from_cwd

from ...compile import record
from ...errors import ClutchError
from ...handle import lines, snapshot, words
from ...handle.lines import lines as draw_lines
from ...model import graph, plan
from ...model.status import isoformat
from ...stores.base import ResultStore, Summary
from .. import doctor, statistics
from .base import (
    Filters,
    clutch,
    complete_ids,
    every_option,
    fail,
    filtered,
    id_argument,
    json_option,
    line_width,
    newest,
    resolve,
    run_of,
    say,
    say_json,
    say_text,
    shortened,
    store_of,
    table,
    tree_of,
    wrapped,
)

_EVERYTHING = 10**9


@clutch.command()
@filtered
@click.option("--top", is_flag=True, help="Only runs that are nested in no other.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def ls(obj: Any, /, filters: Filters, top: bool, limit: int, as_json: bool) -> None:
    """List runs, the newest first.

    Ids are shortened to what none of the newest 2,000 runs of the store has in common, and to 8
    characters at least; every command takes the start of an id that no other run has. A state with
    a star is of a run that has ended while jobs of it still run.
    """
    store, now = store_of(obj), time.time()
    runs: list[_Row] = []
    for run in filters.runs(store):
        outline = store.outline(run.run)
        meta = record.Meta.loads(outline[1]) if outline else None
        parent = str(meta.parent.header["run"]) if meta and meta.parent else ""
        if top and parent:
            continue
        run = _counted(store, run, meta)
        runs.append(_Row(run, parent, snapshot.draining(store, run.run, run.state)))
        if len(runs) == limit:
            break
    if as_json:
        for row in runs:
            more = {"parent": row.parent or None, "draining": row.draining}
            say_json({**_summary(row.run), **more}, line=True)
        return
    nested = (row.parent for row in runs if row.parent)
    short = shortened({*(row.run.run for row in runs), *nested, *newest(store)})
    _list(obj, runs, short, now)


class _Row(NamedTuple):
    """A run, the run that it is nested in (or ""), and how many jobs of it run after its end."""

    run: Summary
    parent: str
    draining: int


def _list(obj: Any, runs: Sequence[_Row], short: Mapping[str, str], now: float) -> None:
    """Print a table that fits the terminal."""
    head = ["ID", "NAME", "STATE", "JOBS", "ENGAGED", "TOOK", "PARENT", "TAGS"]
    rows = [head]
    for run, parent, draining in runs:
        age, took = now - run.created_at, (run.ended_at or now) - run.created_at
        times = f"{words.age(max(age, 0))} ago", words.duration(max(took, 0))
        state = f"{run.state}{'*' if draining else ''}"
        names = short[run.run], run.name or "", state, words.brief(run)
        rows.append([*names, *times, short.get(parent, ""), " ".join(run.tags)])
    column = head.index("PARENT")
    if not any(row[column] for row in rows[1:]):  # a column of nothing takes no room
        rows = [[*row[:column], *row[column + 1 :]] for row in rows]
        head = rows[0]
    least = (("TAGS", 4), ("JOBS", 12), ("NAME", 12), ("JOBS", 4), ("NAME", 4), ("ID", 4))
    elastic = [(head.index(name), characters) for name, characters in least]
    for row, cells in zip(rows, table(rows, line_width(), elastic), strict=True):
        parts: list[str | tuple[str, str]] = []
        for index, cell in enumerate(cells):
            gap = "  " if index else ""
            parts += [gap, (cell, row[index].rstrip("*")) if head[index] == "STATE" else cell]
        say(*parts, plain=obj.no_color)
    if any(row.draining for row in runs):
        say("* draining: jobs of it still run")


def _counted(store: ResultStore, run: Summary, meta: record.Meta | None) -> Summary:
    """*run*, with how many of its jobs were skipped, and how many deaths tolerated."""
    if meta is None:
        return run
    skipped, tolerated = record.counted(store, run, meta)
    return replace(run, skipped=skipped, tolerated=tolerated)


def _summary(run: Summary) -> dict[str, Any]:
    """With the names of `Status`."""
    found = asdict(run)
    del found["due"]
    for name in ("created_at", "updated_at", "ended_at"):
        found[name] = found[name] and isoformat(found[name])
    return {"id": found.pop("run"), "total": found.pop("jobs"), **found}


@clutch.command()
@id_argument
@every_option
@click.option("--args", "arguments", is_flag=True, help="Show the arguments of each job.")
@click.option("--traceback", is_flag=True, help="Show the traceback of each failure.")
@json_option
@click.pass_obj
def show(
    obj: Any, id: str, everything: bool, arguments: bool, traceback: bool, as_json: bool
) -> None:
    """Show a run: its steps, and the state, host, timing and failure of every job.

    Of a parallel step wider than 10 branches those are shown that are in trouble, or running.
    """
    found = tree_of(obj.app, resolve(store_of(obj), id))
    if as_json:
        say_json(found.to_dict(arguments=arguments))
        return
    wide = _EVERYTHING if everything else graph.WIDE
    options = {"traceback": traceback, "arguments": arguments}
    top = draw_lines(found, time.time(), wide=wide, **options)
    for parts in drawn(top):
        say(*parts, plain=obj.no_color)


def drawn(top: lines.Line) -> Iterator[list[str | tuple[str, str]]]:
    """The lines of a tree, each as what `say` takes."""
    yield [top.text]
    for prefix, line in graph.outline(top.below, lambda line: line.below):
        if line.state:
            yield [prefix, (lines.MARKS[line.state], line.state), f" {line.text}"]
        else:
            yield [prefix, line.text]
        inside = prefix[:-3] + ("│  " if prefix.endswith("├─ ") else "   ")
        for each in line.more.splitlines():
            yield [f"{inside}  {each}"]


@clutch.command()
@id_argument
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@click.option("--tolerated", is_flag=True, help="Those instead that the run goes on without.")
@json_option
@click.pass_obj
def failures(obj: Any, id: str, limit: int, tolerated: bool, as_json: bool) -> None:
    """Show what fails in a run: failures of jobs without a result that are alike together.

    Alike are those of one task with the same exception and message, numbers aside.
    """
    found = run_of(obj, id).record()
    wanted = record.tolerated(found) if tolerated else record.failures(found)
    groups = statistics.alike(wanted)
    if as_json:
        say_json([group.to_dict() for group in groups[:limit]])
        return
    if not groups:
        say("no failure is tolerated" if tolerated else "no job without a result has failed")
    for group in groups[:limit]:
        kind = "dead" if group.dead else "failing"
        kind = "tolerated" if tolerated else kind
        count, margin = f"{group.count:,} {graph.TIMES}", " " * 4
        text = f"{count} {group.task}  {words.told(group.example)}"
        first, *others = wrapped(text, "", margin, line_width() or sys.maxsize)
        say((count, kind), first.removeprefix(count), plain=obj.no_color)
        for line in others:
            say(line)
        places = ", ".join(group.addresses)
        more = f" and {group.count - len(group.addresses):,} more" if group.more else ""
        counts = f"{group.dead:,} dead, {group.count - group.dead:,} retried"
        say(f"    {f'{group.count:,} tolerated' if tolerated else counts}: {places}{more}")
    if len(groups) > limit:
        say(f"… and {len(groups) - limit:,} other kinds")
    if found.tolerated and not tolerated:
        say(f"tolerated deaths: {len(found.tolerated):,} (see --tolerated)")


@clutch.command()
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Look at the newest so many runs.",
)
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="Look at the jobs of so many of them.",
)
@json_option
@click.pass_obj
def stats(obj: Any, runs: int, sample: int, as_json: bool) -> None:
    """Show how runs are doing: by state, what they get done, tasks, and who waits longest."""
    store, now = store_of(obj), time.time()
    summaries = list(islice(Filters().runs(store), runs))
    overview = statistics.overview(summaries, now)
    tasks = statistics.Tasks()
    for run in summaries[:sample]:
        if tasks.jobs >= statistics.ENOUGH:
            break
        tasks.add(_executions(obj, run))
    if as_json:
        say_json({**overview.to_dict(), "tasks": tasks.to_dict()})
        return
    for text in overview.lines():
        say(text)
    rows = [["TASK", "JOBS", "P50", "P95", "MOST"], *tasks.rows()]
    if len(rows) > 1:
        say("")
        for cells in table(rows, line_width(), [(0, 4)]):
            say("  ".join(cells))


def _executions(obj: Any, run: Summary) -> Iterator[tuple[str, float]]:
    """The task of each job of a run that has a result, and how long that took."""
    if run.jobs > statistics.ENOUGH:
        return  # a plan so large is not read for a look
    for node in tree_of(obj.app, run.run, alone=True).walk():
        seconds = node.timing()[2]
        if node.kind == "job" and seconds is not None:
            yield node.task, seconds


@clutch.command()
@id_argument
@click.argument("address", required=False)
@click.pass_obj
def results(obj: Any, id: str, address: str | None) -> None:
    """Print the result at an ADDRESS as JSON; without one, those of the last step."""
    try:
        say_json(run_of(obj, id).results(address))
    except LookupError as exc:
        fail(str(exc))


@clutch.command()
@id_argument
@click.pass_obj
def data(obj: Any, id: str) -> None:
    """Print the data that the jobs of a run share, as JSON."""
    say_json(run_of(obj, id).data())


@clutch.command("graph")
@click.argument("target", metavar="ID|MODULE:CLUTCH")
@click.option(
    "--format",
    "form",
    type=click.Choice(["mermaid", "dot", "text", "html"]),
    default="mermaid",
    show_default=True,
)
@every_option
@click.pass_obj
def graph_(obj: Any, target: str, form: str, everything: bool) -> None:
    """Draw a run, or a clutch that a module has (or a function there returns).

    Branches of a parallel step wider than 10 are drawn once for each shape that they have. HTML is
    a page that can be moved and zoomed.
    """
    composed = _composed(target)
    states: graph.States | None = None
    nested: graph.Nested = {}
    if composed is not None:
        root, title = composed.plan, composed.name or target
    else:
        found = tree_of(obj.app, resolve(store_of(obj), target))
        root, states, nested = found.plan, found.states(), found.inside()
        title = words.headline(found.status)
    draw = {"mermaid": graph.mermaid, "dot": graph.dot, "text": graph.text, "html": graph.page}
    wide = _EVERYTHING if everything else graph.WIDE
    say_text(draw[form](root, title, states, wide, nested))


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
        fail(f"{module_name} cannot be imported: {exc}")
    except Exception as exc:
        fail(f"{target} cannot be loaded: {type(exc).__name__}: {exc}")
    if not isinstance(getattr(found, "plan", None), plan.Series):
        fail(f"{target} is not a clutch but {found!r}"[:300])
    return found


def _meant(obj: Any, id: str | None) -> str | None:
    """The run that *id* is the start of; itself where nobody can know, which doctor says."""
    try:
        return None if id is None else resolve(store_of(obj), id)
    except ClutchError:
        return id


def _say(finding: doctor.Finding, plain: bool) -> None:
    """Print a finding, in lines that fit the terminal, or 80 columns where there is none."""
    label, margin = finding.severity.value, " " * 9
    width = shutil.get_terminal_size().columns
    first, *others = wrapped(finding.what, margin, margin, width)
    say((label.ljust(9), label), first.removeprefix(margin), plain=plain)
    for line in (*others, *wrapped(finding.fix, margin, margin, width)):
        say(line)


@clutch.command("doctor")
@click.argument("id", required=False, shell_complete=complete_ids)
@click.option("--strict", is_flag=True, help="Exit with 2 if there are warnings.")
@click.option("--timeout", type=click.FloatRange(0.1), default=2.0, show_default=True)
@json_option
@click.pass_obj
def doctor_(obj: Any, id: str | None, strict: bool, timeout: float, as_json: bool) -> None:
    """Check what clutches need: versions, settings, tasks, broker, store and workers.

    With the ID of a run also whether workers are ready for what is left of it.

    Exit with 1 if there is a problem.
    """
    findings = []
    for finding in doctor.examine(obj.app, timeout, _meant(obj, id)):
        findings.append(finding)
        if not as_json:
            _say(finding, obj.no_color)
    if as_json:
        say_json([finding.to_dict() for finding in findings])
    severities = {finding.severity for finding in findings}
    if doctor.Severity.PROBLEM in severities:
        sys.exit(1)
    if strict and doctor.Severity.WARNING in severities:
        sys.exit(2)
