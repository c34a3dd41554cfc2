"""What the commands have in common: the group, ids and filters, and the one way to print."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from itertools import islice, takewhile
from typing import Any, NoReturn

import click
import orjson
from celery import Celery
from kombu.exceptions import OperationalError

from ...compile import record
from ...errors import ClutchError, RunNotFound
from ...extend.plugins import runtime
from ...extend.settings import without_passwords
from ...handle import tree
from ...handle.result import ClutchResult
from ...model import graph
from ...model.names import cut
from ...model.status import State
from ...stores.base import ResultStore, Summary, listed

COLOURS = {
    "done": "green",
    "running": "blue",
    "failing": "yellow",
    "dead": "red",
    "tolerated": "yellow",
    "skipped": "bright_black",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}
SHORT = 8
"""Characters that are left of an id at least."""
NEAR = 2000
"""A shortened id is told apart from those of the newest so many runs of the store."""
CANDIDATES = 10
"""Runs that are named where an id stands for several."""
COMMANDS = "celery_clutch.commands"
"""The group of entry points that name the commands of plugins."""


class Group(click.Group):
    """The commands of this package, and those that plugins bring.

    Trouble that is to be expected is told in one line.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(point.name for point in _brought())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        # Loaded on use only: what a plugin imports slows no other command down.
        for point in _brought():
            if point.name == cmd_name:
                return _loaded(point)
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ClutchError, OperationalError) as exc:
            text = str(exc) or repr(exc)
            app = getattr(ctx.obj, "app", None)
            fail(text if app is None else without_passwords(app.conf, text))


def _brought() -> Iterable[EntryPoint]:
    return entry_points(group=COMMANDS)


def _loaded(point: EntryPoint) -> click.Command:
    """The command of a plugin; one that says so where it cannot be imported, as ``--help`` of the
    group loads all of them."""
    name = point.dist.name if point.dist else point.value
    try:
        command = point.load()
    except Exception as exc:
        reason = f"the command {point.name} of {name} cannot be imported: {exc!r}"
    else:
        if isinstance(command, click.Command):
            return command
        reason = f"{point.value}, the command {point.name} of {name}, is no click command"

    def broken() -> NoReturn:
        fail(reason)

    return click.Command(point.name, callback=broken, help=f"Broken: {graph.printable(reason)}")


@click.group(cls=Group)
def clutch(**_: Any) -> None:  # Celery gives every plugin the app's own preload options
    """Look at runs of clutches and steer them."""


# --- printing -----------------------------------------------------------------------------------


def say(*parts: str | tuple[str, str], plain: bool = True, err: bool = False) -> None:
    """Print a line.

    Everything for a terminal comes through here: what is in runs, names, messages and results may
    have been chosen by somebody who wants to command it.

    Args:
        parts: text, or text and the state whose colour it has.
        plain: without colours.
        err: on stderr.
    """
    click.echo(line_of(parts, plain=plain), err=err)


def line_of(parts: Iterable[str | tuple[str, str]], *, plain: bool) -> str:
    """The line that `say` prints."""
    shown: list[str] = []
    for part in parts:
        text, state = part if isinstance(part, tuple) else (part, "")
        text = graph.printable(text)
        shown.append(text if plain or not state else click.style(text, fg=COLOURS.get(state)))
    return "".join(shown).rstrip()


# Controls of C1 and DEL, what turns the direction of text, and what separates lines: JSON may have
# them as they are.
_COMMANDS = re.compile(
    "[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)


def say_json(value: Any, *, line: bool = False) -> None:
    """Print *value* as JSON; with *line* in one line."""
    option = 0 if line else orjson.OPT_INDENT_2
    say_text(orjson.dumps(value, option=option).decode())


def say_text(text: str) -> None:
    """Print a text of several lines that was made to be read by programs."""
    click.echo(_COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def fail(message: str) -> NoReturn:
    """End the command with 1, and say why in one line."""
    raise click.ClickException(graph.printable(message))


def table(
    rows: Sequence[Sequence[str]], width: int | None, elastic: Sequence[tuple[int, int]]
) -> list[list[str]]:
    """The cells of *rows* in columns. Where a line had more than *width* characters the columns
    *elastic* are cut, one after the other, to as many characters as go with each, and no further
    than it takes."""
    cells = [[graph.printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - (width or sys.maxsize)
    for column, least in elastic:
        spare = max(min(over, widths[column] - least), 0)
        widths[column] -= spare
        over -= spare
    return [[_fitted(cell, w) for cell, w in zip(row, widths, strict=True)] for row in cells]


def _fitted(cell: str, width: int) -> str:
    return cut(cell, width).ljust(width)


def wrapped(text: str, first: str, others: str, width: int) -> list[str]:
    """*text* in lines of at most *width* characters, behind the margins *first* and *others*."""
    return textwrap.wrap(
        graph.printable(text),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,  # names and commands are copied
        break_on_hyphens=False,
    )


def line_width() -> int | None:
    """How many characters a line may have: pipes and files take any."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


# --- runs ---------------------------------------------------------------------------------------


def store_of(obj: Any) -> ResultStore:
    """The store of the app."""
    return runtime(obj.app).store


def resolve(store: ResultStore, text: str) -> str:
    """The id of the run that *text* is, or is the start of.

    Raises:
        RunNotFound: there is none.
        click.ClickException: there are several.
    """
    if store.peek(text) is not None:
        return text
    found = [run for run in listed(store) if run.run.startswith(text)] if text else []
    if not found:
        raise RunNotFound(
            f"there is no run {text!r} in {store!r}, and none whose id starts so: it was never "
            "engaged, was forgotten, or has expired (clutch_ttl, clutch_result_ttl)"
        )
    if len(found) > 1:
        several = ", ".join(f"{run.run} ({run.state})" for run in found[:CANDIDATES])
        more = f" and {len(found) - CANDIDATES} more" if len(found) > CANDIDATES else ""
        fail(f"the ids of {len(found)} runs start with {text!r}: {several}{more}")
    return found[0].run


def newest(store: ResultStore) -> set[str]:
    """The ids of the newest `NEAR` runs of *store*, which shortened ids are told apart from."""
    return {run.run for run in islice(listed(store), NEAR)}


def shortened(runs: Iterable[str]) -> dict[str, str]:
    """The shortest start of each id that none of the others has, of `SHORT` characters at least."""
    ordered = sorted(runs)
    short: dict[str, str] = {}
    for index, run in enumerate(ordered):
        near = ordered[max(index - 1, 0) : index] + ordered[index + 1 : index + 2]
        length = max([SHORT, *(_shared(run, other) + 1 for other in near)])
        short[run] = run[:length]
    return short


def _shared(one: str, other: str) -> int:
    """How many characters two ids have in common at their start."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def run_of(obj: Any, id: str) -> ClutchResult:
    """The handle of the run that *id* is, or is the start of."""
    return ClutchResult(resolve(store_of(obj), id), obj.app)


def tree_of(app: Celery, id: str, *, alone: bool = False) -> tree.Tree:
    """The run as a tree; the runs nested in its jobs inside, unless it is to be *alone*."""
    store, run = runtime(app).store, ClutchResult(id, app)
    root, found = run.plan(), store.read(id)
    if found is None:
        raise RunNotFound(f"the run {id!r} has just gone")
    executions = store.executions(id)
    if alone:
        return tree.of(store, root, found, executions)
    inside = dict(record.held_runs(found))
    for address, execution in executions.items():
        if known := record.nested(execution.info):
            inside[address] = tuple(known)
    nested = {
        address: [tree_of(app, each) for each in runs if store.peek(each)]
        for address, runs in inside.items()
    }
    return tree.of(store, root, found, executions, nested)


def summary_of(store: ResultStore, id: str) -> Summary:
    """A run as in a listing, but for what is due."""
    found = store.patiently(store.brief, id)
    if found is None:
        raise RunNotFound(f"there is no run {id!r} in {store!r}")
    meta = record.Meta.loads(found.meta)
    counts = found.jobs, found.done, found.failing, found.dead
    times = found.created_at, found.updated_at, found.ended_at
    skipped, tolerated = record.counted(store, found, meta)
    more = {"skipped": skipped, "tolerated": tolerated}
    return Summary(id, meta.name, meta.tags, found.state, *counts, *times, **more)


# --- filters ------------------------------------------------------------------------------------


class Age(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic in click 8.4
    """``90``, ``90s``, ``30m``, ``2h``, ``3d``, ``1w``: seconds."""

    name = "age"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", str(value))
        if not found:
            self.fail(f"{value!r} is not an age such as 45s, 30m, 2h, 3d or 1w", param, ctx)
        unit = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]
        return float(found[1]) * unit


@dataclass(frozen=True, slots=True)
class Filters:
    """Which runs a command is about."""

    state: State | None = None
    tag: str | None = None
    name: str | None = None
    older: float | None = None
    newer: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def runs(self, store: ResultStore) -> Iterator[Summary]:
        """Those of *store*, the newest first."""
        now = time.time()
        runs = listed(store, state=self.state, tag=self.tag, name=self.name)
        newer, older = self.newer, self.older
        if newer is not None:
            runs = takewhile(lambda run: now - run.created_at <= newer, runs)
        if older is not None:
            runs = filter(lambda run: now - run.created_at >= older, runs)
        return runs


_FILTERS = (
    click.option("--state", type=click.Choice([*map(str, State)], case_sensitive=False)),
    click.option("--tag", help="Only runs with this tag."),
    click.option("--name", help="Only runs of this name."),
    click.option("--older", type=Age(), metavar="AGE", help="Engaged longer ago, such as 2h."),
    click.option("--newer", type=Age(), metavar="AGE", help="Engaged since, such as 30m."),
)


def filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `Filters`, as its argument ``filters``."""

    @wraps(command)
    def call(
        *args: Any,
        state: str | None,
        tag: str | None,
        name: str | None,
        older: float | None,
        newer: float | None,
        **kwargs: Any,
    ) -> Any:
        wanted = State(state.upper()) if state else None
        return command(*args, filters=Filters(wanted, tag, name, older, newer), **kwargs)

    for option in reversed(_FILTERS):
        call = option(call)
    return call


# --- arguments ----------------------------------------------------------------------------------


def complete_ids(ctx: click.Context, param: Any, incomplete: str) -> list[str]:
    """The ids of runs that start with what was typed, for completion in shells."""
    try:
        app = ctx.find_root().params.get("app") or getattr(ctx.find_root().obj, "app", None)
        if isinstance(app, str):
            from celery.bin.celery import find_app

            app = find_app(app)
        runs = listed(runtime(app).store)
        found = (run.run for run in runs if run.run.startswith(incomplete))
        return list(islice(found, 100))
    except Exception:  # a shell that completes shows nothing else
        return []


ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=complete_ids)
id_argument = click.argument("id", shell_complete=complete_ids)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
every_option = click.option(
    "--all", "everything", is_flag=True, help="Show every branch of wide steps."
)
