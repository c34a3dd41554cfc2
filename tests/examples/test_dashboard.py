"""examples/dashboard: what it shows, and that actions can be tried out on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, answers, free_address, needs

pytestmark = pytest.mark.timeout(240)

WAIT = 90.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of the running example."""
    needs("celery_clutch_web")
    url = free_address()
    command = [sys.executable, "darkroom.py", "--port", url.rpartition(":")[2], "--every", "0.5"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT / "examples" / "dashboard",
            env={**kept, "PYTHONPATH": path},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + WAIT
        while not answers(f"{url}/runs"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def looked(url: str) -> Any:
    request = urllib.request.Request(url, headers={"accept": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_something_goes_on(site: str) -> None:
    deadline = time.monotonic() + WAIT
    names: set[str] = set()
    states: dict[str, int] = {}
    failing = 0
    while not (all(states.values()) and states and len(names) >= 4 and failing):
        assert time.monotonic() < deadline, (states, names, failing)
        time.sleep(0.2)
        states = looked(f"{site}/")["states"]
        runs = looked(f"{site}/runs")["runs"]
        names = {run["name"].split()[0] for run in looked(f"{site}/runs")["runs"]}
        failing += sum(run["failing"] for run in runs)
    assert names == {"album", "letters", "prints", "reminder"}
