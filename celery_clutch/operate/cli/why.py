"""Why a run does not go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ...model.reason import Reason
from .base import clutch, id_argument, json_option, run_of, say, say_json, wrapped

WIDTH = 80
"""Columns that a line has at most."""


@clutch.command("why")
@id_argument
@click.option("--no-ask", is_flag=True, help="Do not ask the workers.")
@click.option("--timeout", type=click.FloatRange(0.1), default=1.0, show_default=True)
@json_option
@click.pass_obj
def command(obj: Any, id: str, no_ask: bool, timeout: float, as_json: bool) -> None:
    """Say why a run does not go on: what it waits for, and since when.

    Workers have TIMEOUT seconds to answer which queues they consume, which tasks they know and
    which result store they have.
    """
    run = run_of(obj, id)
    found = run.why(ask=not no_ask, timeout=timeout)
    if as_json:
        say_json([reason.to_dict() for reason in found])
        return
    for reason in found:
        for line in lines(reason, run.id):
            say(line)


def lines(reason: Reason, run: str) -> Iterator[str]:
    """*reason* in lines of at most 80 columns; what is about a run nested in *run* is indented."""
    margin = "" if reason.run == run else "  "
    fix = reason.fix and f"{reason.fix.rstrip('.')}."
    yield from wrapped(f"- {reason.sentence}", margin, margin + "  ", WIDTH)
    yield from wrapped(fix, margin + "  > ", margin + "    ", WIDTH)
