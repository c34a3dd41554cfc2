"""Types as users meet them: what they write passes mypy --strict, their mistakes do not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
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
"""The configuration of somebody who uses celery-clutch. (Celery's types are those of celery-types
where that is installed. Of what is installed mypy reads types alone: the last two lines say that of
the package in this clone.)"""

PYRIGHT = {
    "typeCheckingMode": "standard",
    "extraPaths": [str(ROOT)],
    "reportUnusedExpression": False,  # clutch << step
}
HEAD = """
from typing import Any
from celery import Celery
from celery_clutch import Clutch, ClutchTask
from shop import *
"""
"""What the README's later examples take from its first one without saying so."""


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


def run(command: list[str], path: Sequence[str] = ()) -> tuple[int, str]:
    env = {**os.environ, "MYPYPATH": os.pathsep.join((str(ROOT), *path))}
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


@pytest.fixture
def readme(tmp_path: Path, missing: Callable[[str, object], NoReturn]) -> list[str]:
    """The README's code, as files: its shop.py, and all that goes on from there."""
    if importlib.util.find_spec("celery-stubs") is None:
        missing("celery-types", "it is not installed")
    text = (ROOT / "README.md").read_text("utf-8")
    shop, *more = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(more) > 20
    (tmp_path / "shop.py").write_text(shop)
    (tmp_path / "program.py").write_text(HEAD + "\n".join(more))
    return [str(tmp_path / name) for name in ("shop.py", "program.py")]


def test_the_readme_passes_mypy(mypy: list[str], readme: list[str]) -> None:
    folder = str(Path(readme[0]).parent)
    code, said = run([*mypy, *readme], path=[folder])
    assert code == 0, said


def test_the_readme_passes_pyright(
    readme: list[str], missing: Callable[[str, object], NoReturn]
) -> None:
    command = shutil.which("pyright")
    if command is None:
        missing("pyright", "it is not installed")
    folder = Path(readme[0]).parent
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    code, said = run(
        [command, "--project", str(folder), "--pythonpath", sys.executable, "--warnings"]
    )
    assert code == 0, said


WRONG = """
from celery import shared_task
from celery_clutch import Clutch, Sequence, parallel, series

@shared_task
def price(number: int) -> int:
    return number

Clutch().add(price, 1) << price << price.s(2) << (price, 3)
Clutch() << 5
Clutch(on_failure="alert")
Clutch().add(price, "one")
series("a")
parallel([5])
Clutch(parent=5)

class Wrong(Sequence):
    steps = [5]
"""


def test_steps_that_are_none(mypy: list[str], readme: list[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    _, said = run([*mypy, str(tmp_path / "wrong.py")])
    found = {int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line}
    first = WRONG.splitlines().index("Clutch() << 5") + 1
    last = WRONG.splitlines().index("    steps = [5]") + 1
    assert found == {*range(first, first + 6), last}, said
