"""Commands that steer runs, and those for the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from ...errors import RunNotFound
from ...handle import words
from ...handle.result import ClutchResult
from ...model import graph
from ...model.names import cut
from ...model.status import State
from ...stores.base import Summary
from .. import sweep as sweep_module
from .base import (
    Filters,
    clutch,
    filtered,
    ids_argument,
    line_width,
    resolve,
    say,
    store_of,
    summary_of,
)

_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_dry = click.option("--dry-run", is_flag=True, help="Only say which runs that would be.")


def _choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what chooses runs: ids or filters, and whether to ask."""
    return ids_argument(filtered(_dry(_yes(command))))


@clutch.command()
@_choosing
@click.pass_obj
def cancel(obj: Any, /, **how: Any) -> None:
    """Let no further job of the runs start: of those with these ids, or of those that are running
    and fit the filters."""
    _each(obj, ClutchResult.cancel, "cancel", "cancelled", "has ended already", **how)


@clutch.command()
@_choosing
@click.option("--retry-tolerated", is_flag=True, help="Also branches whose death was tolerated.")
@click.pass_obj
def resume(obj: Any, /, retry_tolerated: bool, **how: Any) -> None:
    """Run again what has no result, and nothing else: of the runs with these ids, or of those that
    have failed or were cancelled and fit the filters."""
    act = partial(ClutchResult.resume, retry_tolerated=retry_tolerated)
    _each(obj, act, "resume", "resumed", "has nothing to resume", **how)


@clutch.command()
@_choosing
@click.pass_obj
def forget(obj: Any, /, **how: Any) -> None:
    """Delete the runs and their results: those with these ids, or those that fit the filters."""

    def forget_one(run: ClutchResult) -> bool:
        return run.forget() or bool(run.state)  # the state of what is not there says so

    _each(obj, forget_one, "forget", "forgotten", "", ask=True, **how)


_MEANT = {
    "cancel": (State.RUNNING,),
    "resume": (State.FAILED, State.CANCELLED),
    "forget": tuple(State),
}
"""The states of runs that a command can do something to."""


def _each(
    obj: Any,
    act: Callable[[ClutchResult], bool],
    verb: str,
    done: str,
    nothing: str,
    *,
    ids: Sequence[str],
    filters: Filters,
    dry_run: bool,
    yes: bool,
    ask: bool = False,
) -> None:
    """Do something to each run, also where one of them is not there."""
    if bool(ids) is bool(filters):
        raise click.UsageError("give either ids of runs, or filters such as --state failed")
    chosen, missing = _chosen(obj, ids, filters, verb)
    if dry_run and ids:
        for id in chosen:
            _show(summary_of(store_of(obj), id))
    if (dry_run or filters) and not chosen:
        say(f"no run to {verb}")
    if dry_run:
        sys.exit(int(missing))
    if chosen and (ask or filters) and not yes:
        several = f"{len(chosen)} runs" if len(chosen) > 1 else chosen[0]
        results = " and all results" if verb == "forget" else ""
        click.confirm(f"{verb.capitalize()} {several}{results}?", abort=True)
    for id in chosen:
        try:
            say(f"{id} {done if act(ClutchResult(id, obj.app)) else nothing}")
        except RunNotFound as exc:
            say(f"Error: {exc}", err=True)
            missing = True
    if missing:
        sys.exit(1)


def _chosen(obj: Any, ids: Sequence[str], filters: Filters, verb: str) -> tuple[list[str], bool]:
    """The runs that are meant, and whether one of *ids* is not there. Those that filters have
    chosen are shown."""
    store = store_of(obj)
    if filters:
        runs = [run for run in filters.runs(store) if run.state in _MEANT[verb]]
        for run in runs:
            _show(run)
        return [run.run for run in runs], False
    chosen, missing = [], False
    for id in ids:
        try:
            chosen.append(resolve(store, id))
        except RunNotFound as exc:
            say(f"Error: {exc}", err=True)
            missing = True
    return list(dict.fromkeys(chosen)), missing


def _show(run: Summary) -> None:
    """Print a run in one line; its name is cut where the terminal is too narrow."""
    width, rest = line_width(), f"{run.state}  {words.progress(run)}"
    room = None if width is None else max(width - len(run.run) - len(rest) - 4, 1)
    say(f"{run.run}  {cut(graph.printable(run.name or ''), room)}  {rest}")


@clutch.command()
@click.option("--grace", type=float, help="Seconds due, or without an event; default clutch_grace.")
@click.option("--silent-for", type=float, help="Also resume what is silent for so many seconds.")
@click.pass_obj
def sweep(obj: Any, grace: float | None, silent_for: float | None) -> None:
    """Send again what runs have lost; print their ids."""
    for run in sweep_module.sweep(obj.app, grace=grace, silent_for=silent_for):
        say(run)


@clutch.command()
@click.pass_obj
def prune(obj: Any) -> None:
    """Delete expired runs, where the server of the store does not do so itself."""
    total = sweep_module.prune_all(store_of(obj))
    say(f"{total:,} expired runs deleted")


@clutch.command()
@click.pass_obj
def migrate(obj: Any) -> None:
    """Create or upgrade what the store needs on its server."""
    for done in store_of(obj).migrate() or ["nothing to do"]:
        say(done)
