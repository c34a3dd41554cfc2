"""Runs the tests of celery-clutch on real workers with their runs in a new database of one kind.

::

    python tests/core_suite.py postgresql [arguments of pytest]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from databases import database, open_store

TESTS = Path(__file__).resolve().parents[3] / "tests"
SUITES = [str(TESTS / "behaviour"), str(TESTS / "integration")]


def main(kind: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as directory, database(kind, Path(directory)) as url:
        store = open_store(url)
        store.migrate()
        store.close()
        environ = {**os.environ, "CLUTCH_TEST_STORE": url}
        command = [sys.executable, "-m", "pytest", "-m", "integration", *(arguments or SUITES)]
        return subprocess.call(command, cwd=TESTS.parent, env=environ)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
