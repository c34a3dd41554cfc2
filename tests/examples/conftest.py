"""What the tests of the examples and of the README share."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(r"^(?:<!-- ([\w ]+) -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)


def database() -> int:
    """The number of a Redis database for servers that an example needs."""
    first = int(os.environ.get("CLUTCH_TEST_DB", "8"))
    return first + 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + 1


@dataclass(frozen=True)
class Block:
    """A fenced block of the README: the comment above it, its language, its text and first line."""

    kind: str
    language: str
    text: str
    line: int


@pytest.fixture(scope="session")
def readme() -> list[Block]:
    text = (ROOT / "README.md").read_text("utf-8")
    return [
        Block(kind or "", language, body, text.count("\n", 0, found.start(3)) + 1)
        for found in _BLOCK.finditer(text)
        for kind, language, body in [found.groups()]
    ]
