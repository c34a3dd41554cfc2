"""What the tests of the examples and of the README share."""

from __future__ import annotations

import os
import re
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

Missing = Callable[[str, object], NoReturn]

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(r"^(?:<!-- ([\w ]+) -->\n)?```(\w+)\n(.*?)^```$", re.M | re.S)


MARK = "celery-clutch-tests"
"""The key of a database that tests may empty; see ``integration/fixtures.py``."""


def database() -> int:
    """The number of a Redis database for servers that an example needs."""
    first = int(os.environ.get("CLUTCH_TEST_DB", "8"))
    return first + 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + 1


def needs(*packages: str) -> None:
    """Skip where one of *packages* is not installed; fail where all are meant to be, as in tox."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent and os.environ.get("CLUTCH_TEST_ALL"):
        pytest.fail(f"not installed: {', '.join(absent)}", pytrace=False)
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


def free_address() -> str:
    """The URL of a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def broker(connect: Callable[..., redis.Redis]) -> Iterator[str]:
    """The URL of an empty Redis database."""
    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    url = f"{server}/{database()}"
    with connect(url) as client:
        client.flushdb()
        yield url
        client.flushdb()
        client.set(MARK, 1)


@pytest.fixture(scope="module")
def browser(missing: Missing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, driven by its own driver; nothing is downloaded."""
    needs("selenium")
    from selenium import webdriver

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        missing("Chromium", "the programs chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()


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
