"""Text for people. What is in runs may have been chosen by somebody who wants to deceive them."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import Any

from celery_clutch.handle.tree import duration
from celery_clutch.model.graph import printable
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def environment() -> Environment:
    """The templates. Every text that they show is escaped, and has no character that commands."""
    made = Environment(
        loader=PackageLoader("celery_clutch_web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        ago=ago, clock=clock, duration=duration, iso=iso, number=number, paragraphs=paragraphs
    )
    return made


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def paragraphs(value: str) -> Markup:
    """*value* with its lines as they are."""
    return Markup("\n").join(escape(printable(line)) for line in value.splitlines())


def number(value: float) -> str:
    """*value* with commas; two digits behind the point of what is no whole number."""
    return f"{value:,.2f}" if isinstance(value, float) and value % 1 else f"{int(value):,}"


def ago(timestamp: float, now: float | None = None) -> str:
    """How long *timestamp* (seconds since the epoch) is past."""
    return f"{duration(max((now or time.time()) - timestamp, 0))} ago"


def iso(timestamp: float) -> str:
    """*timestamp* for programs."""
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")


def clock(timestamp: float) -> str:
    """*timestamp* for people, in UTC."""
    return datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def seconds(text: str) -> float:
    """The seconds of an age such as ``90``, ``45s``, ``30m``, ``2h``, ``3d`` or ``1w``.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw]?)", text.strip())
    if not found:
        raise ValueError(f"{text!r} is not an age such as 45s, 30m, 2h, 3d or 1w")
    return float(found[1]) * _UNITS[found[2]]
