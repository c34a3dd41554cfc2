"""What the project's files say in two places must be the same in both."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def text(name: str) -> str:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    return path.read_text("utf-8")


def pins(lines: str, operator: str) -> dict[str, str]:
    """The versions that requirements name with *operator*, by project."""
    found = re.findall(rf"([\w-]+)(?:\[[\w,]+\])?{operator}([\d.]+)", lines)
    return {name.lower(): version for name, version in found}


def test_lowest_runs_with_the_lower_bounds() -> None:
    project = text("pyproject.toml")
    required = re.search(r"^dependencies = \[(.*?)^\]", project, re.S | re.M)
    redis = re.search(r"^redis = \[(.*)\]$", project, re.M)
    assert required
    assert redis
    bounds = pins(required[1] + redis[1], ">=")
    lowest = "\n".join(re.findall(r"^\s*lowest: (.*)$", text("tox.ini"), re.M))
    assert pins(lowest, "==") == bounds


def test_ci_runs_the_command_of_the_readme() -> None:
    pattern = re.search(r"grep -E -m 1 '(.*)' README.md", text(".ci/run"))
    assert pattern
    commands = re.findall(f"{pattern[1]}.*$", text("README.md"), re.M)
    assert len(commands) == 1
    assert '".[redis,test]"' in commands[0]
    assert "-m pytest -rs" in commands[0]


def test_celery_versions_are_the_same_everywhere() -> None:
    bounds = re.findall(r"celery(?:\[redis\])?>=5\.(\d+)\.\d+,<5\.(\d+)", text("pyproject.toml"))
    (low, above) = bounds[0]
    assert set(bounds) == {(low, above)}
    supported = {f"celery5{minor}" for minor in range(int(low), int(above))}
    env_list = re.search(r"^\s*celery\{(.*)\}$", text("tox.ini"), re.M)
    assert env_list
    assert {f"celery{each.strip()}" for each in env_list[1].split(",")} == supported
    pinned = set(re.findall(r"^\s*(celery\d+): celery==", text("tox.ini"), re.M))
    assert pinned == supported


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_checks_use_the_same_tools_everywhere(tool: str) -> None:
    files = ("pyproject.toml", "tox.ini", ".pre-commit-config.yaml")
    found = {
        name: set(re.findall(rf"\b{tool}[><=][^\s\"\]]*", text(name).replace(" ", "")))
        for name in files
    }
    wanted = found["pyproject.toml"]
    assert len(wanted) == 1
    assert found["tox.ini"] == wanted
    assert found[".pre-commit-config.yaml"] <= wanted


def test_entry_points_can_be_imported() -> None:
    section = text("pyproject.toml").partition("[project.entry-points.")[2].partition("\n[")[0]
    modules = re.findall(r'= "([\w.]+)', section)
    assert modules
    for module in modules:
        importlib.import_module(module)
