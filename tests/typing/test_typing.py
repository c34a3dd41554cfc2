"""Types as users meet them: what they write passes mypy --strict, their mistakes do not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

import celery_clutch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKS = sorted(each.name for each in HERE.glob("check_*.py"))

USER = """
[mypy]
strict = true
warn_unused_ignores = true

[mypy-celery.*]
ignore_missing_imports = true

[mypy-celery_clutch.*]
follow_imports = silent
"""
"""The configuration of somebody who uses celery-clutch. (Celery has no types, and of what is
installed mypy reads types alone: the last two lines say that of the package in this clone.)"""


@pytest.fixture(scope="module")
def mypy(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str, object], NoReturn]
) -> list[str]:
    """The command, with a cache that the checks share."""
    if importlib.util.find_spec("mypy") is None:
        missing("mypy", "it is not installed")
    folder = tmp_path_factory.mktemp("mypy")
    config = folder / "mypy.ini"
    config.write_text(USER)
    return [
        *(sys.executable, "-m", "mypy"),
        *("--config-file", str(config), "--cache-dir", str(folder / "cache")),
        "--show-error-codes",
    ]


def run(command: list[str]) -> tuple[int, str]:
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", CHECKS)
def test_a_users_code(mypy: list[str], name: str) -> None:
    code, said = run([*mypy, str(HERE / name)])
    ours = [line for line in said.splitlines() if "tests/typing/" in line]
    assert not ours, "\n".join(ours)
    assert code == 0, said


def test_mistakes_are_found(mypy: list[str], tmp_path: Path) -> None:
    # The mirror of the above: without its ignores, every line that has one is an error.
    source = (HERE / "check_mistakes.py").read_text().splitlines()
    wanted = {
        number
        for number, line in enumerate(source, 1)
        if "# type: ignore" in line and "unused-ignore" not in line
    }
    bare = tmp_path / "bare.py"
    bare.write_text("\n".join(line.partition("  # type: ignore")[0] for line in source) + "\n")
    code, said = run([*mypy, str(bare)])
    found = {int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line}
    assert code == 1
    assert wanted <= found
    assert len(wanted) > 20


def test_the_package_is_typed() -> None:
    assert (Path(celery_clutch.__file__).parent / "py.typed").exists()
