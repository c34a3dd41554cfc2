"""examples/tracing.py draws what the plugin's README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from .conftest import ROOT, needs

PLUGIN = ROOT / "plugins" / "celery-clutch-otel"


def test_the_trace_is_the_one_in_the_readme() -> None:
    needs("celery_clutch_otel", "opentelemetry")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tracing.py")],
        env={**kept, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "COLUMNS": "108"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    readme = (PLUGIN / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"<!-- tracing -->\n```text\n(.*?)^```$", readme, re.M | re.S)
    assert names(done.stdout) == names(shown)
    bars = [line.split("▇", 1)[0] for line in done.stdout.splitlines()]
    request, run, fetch, *_ = map(len, bars)
    assert request <= run <= fetch  # one after another
    assert "▇" in done.stdout.splitlines()[-1]


def names(drawn: str) -> list[str]:
    """The lines without their bars, which depend on the machine."""
    return [line.partition("▇")[0].rstrip() for line in drawn.splitlines()]
