"""The README names every metric and every attribute, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from celery_clutch import Clutch, ClutchError

from . import app as tasks
from .conftest import Points, Spans, until

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
NAME = re.compile(r"`((?:clutch|messaging|error)\.[\w.]+)`")


def section(title: str) -> set[str]:
    """The names in a section."""
    (text,) = re.findall(rf"^#+ {title}\n(.*?)(?=^#|\Z)", README, re.M | re.S)
    return set(NAME.findall(text))


def test_names(spans: Spans, points: Points) -> None:
    steps = tasks.flaky.s(1), tasks.nesting.s(), tasks.plain.s(1), tasks.broken.s()
    with pytest.raises(ClutchError):
        Clutch(*steps, app=tasks.app, name="all", tags=["of it"]).engage().get(timeout=60)
    until(lambda: spans.of("clutch all"), spans.names)
    ours = [span for span in spans.all() if span.name != "download"]
    assert {name for span in ours for name in span.attributes} == section("Attributes")
    measured = points.attributes()
    assert set(measured) | set().union(*measured.values()) == section("Metrics")
