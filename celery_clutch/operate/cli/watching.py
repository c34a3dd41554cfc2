"""``clutch watch``."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any

import click

from ...handle import lines, words
from ...handle.lines import lines as draw_lines
from ...model import graph
from ...model.names import cut
from ...model.status import State
from ...stores.base import ENDED, ResultStore, Summary, listed
from .base import (
    clutch,
    complete_ids,
    line_of,
    line_width,
    newest,
    resolve,
    say,
    shortened,
    store_of,
    summary_of,
    tree_of,
)
from .looking import drawn

TOP = 15
"""Runs that ``watch --all`` shows one by one."""
MARGIN = 10
"""Characters that the time takes at the start of a line."""
BAR = 30
"""Characters of a progress bar."""
NAME = 4
"""Characters that are left of a name at least."""


@clutch.command()
@click.argument("id", required=False, shell_complete=complete_ids)
@click.option("--all", "everything", is_flag=True, help="All runs that are running.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True)
@click.pass_obj
def watch(obj: Any, id: str | None, everything: bool, interval: float) -> None:
    """Watch a run until it has ended; exit with 0 if it has succeeded, else with 1.

    With --all a summary of all runs, and below it those that matter most: what is in trouble, and
    then what has run for longest. Where a line would not fit the terminal, the start of the id
    stands for it.

    It is drawn with "rich" on a terminal, where that is installed: pip install celery-clutch[cli].
    Elsewhere lines are added whenever something has changed.
    """
    if (id is None) is not everything:
        raise click.UsageError("give either the id of a run, or --all")
    store, paces = store_of(obj), defaultdict[str, words.Pace](words.Pace)
    id = resolve(store, id) if id else None
    runs: dict[str, Summary] = {}
    columns = line_width()
    near = set() if columns is None else newest(store)
    with _live(obj) as draw, closing(_ticks(store, id, interval, draw is not None)) as ticks:
        beside = BAR + 1 if draw else MARGIN
        width = None if columns is None else columns - beside
        for _ in ticks:
            before, runs = runs, _look(store, id, runs)
            for run in runs.values():
                paces[run.run].add(time.monotonic(), run.done)
            short = shortened({*runs, *near})
            shown = [
                (run, _headline(run, paces[run.run], short[run.run], width))
                for run in _top(runs.values())
            ]
            summary = "" if id else _overall(runs.values(), paces)
            if draw:
                top = draw_lines(tree_of(obj.app, id), time.time()) if id else None
                draw(shown, top, summary)
            elif runs and runs != before:
                _add([summary] * (not id) + [text for _, text in shown], width)
            if all(run.state in ENDED for run in runs.values()):
                break
    if not runs:
        say("no run is running")
    if any(run.state is not State.SUCCEEDED for run in runs.values()):
        sys.exit(1)


def _look(store: ResultStore, id: str | None, known: Mapping[str, Summary]) -> dict[str, Summary]:
    """The run, or those that are running, and what has become of those *known*."""
    if id:
        return {id: summary_of(store, id)}
    runs = {run.run: run for run in listed(store, state=State.RUNNING)}
    for each, run in known.items():
        if each not in runs and (run.state in ENDED or store.peek(each)):
            runs[each] = run if run.state in ENDED else summary_of(store, each)
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


def _add(texts: Iterable[str], width: int | None) -> None:
    """Print lines; the first of them has the time, and the others are below it."""
    margin = f"{time.strftime('%H:%M:%S')}  "
    for text in texts:
        say(margin + cut(text, width))
        margin = " " * MARGIN


def _headline(run: Summary, pace: words.Pace, short: str, width: int | None) -> str:
    """A run in one line of *width* characters: where it is too long, the id is *short* and the name
    is cut."""
    parts = [run.state, words.progress(run)]
    if run.state is State.RUNNING and (rate := pace.rate()):
        parts.append(f"{rate:,.1f} a second")
        parts.append(f"{words.duration(pace.left(run.jobs) or 0)} left")
    name = graph.printable(run.name or "")
    text = graph.printable("  ".join(parts))
    whole = f"{name} {run.run}  {text}".lstrip()
    if width is None or len(whole) <= width:
        return whole
    text = f"{short}  {text}"
    if not name:
        return text
    return f"{cut(name, max(width - len(text) - 1, NAME))} {text}"


def _top(runs: Iterable[Summary]) -> list[Summary]:
    """The runs that matter most: those in trouble, then those that run, the oldest first."""

    def order(run: Summary) -> tuple[bool, bool, float]:
        trouble = bool(run.dead or run.failing)
        return run.state in ENDED and not trouble, not trouble, run.created_at

    return sorted(runs, key=order)[:TOP]


def _overall(runs: Iterable[Summary], paces: Mapping[str, words.Pace]) -> str:
    """All runs in one line."""
    several = list(runs)
    states = Counter(str(run.state) for run in several)
    jobs, done = sum(run.jobs for run in several), sum(run.done for run in several)
    rate = sum(paces[run.run].rate() for run in several if run.state is State.RUNNING)
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))
    hidden = f"  (the top {TOP} are shown)" if len(several) > TOP else ""
    return f"{counts or 'no runs'}  {done:,} of {jobs:,} jobs  {rate:,.1f} a second{hidden}"


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

    def draw(runs: Iterable[tuple[Summary, str]], top: lines.Line | None, summary: str) -> None:
        table = Table.grid(padding=(0, 1))
        for run, text in runs:
            bar = ProgressBar(total=max(run.jobs, 1), completed=run.done, width=BAR)
            table.add_row(bar, Text(text))
        lines = [line_of(parts, plain=obj.no_color) for parts in drawn(top)] if top else []
        head = [Text(summary)] if summary else []
        live.update(Group(*head, table, *map(Text.from_ansi, lines)), refresh=True)

    with Live(console=Console(no_color=obj.no_color or None), auto_refresh=False) as live:
        yield draw
