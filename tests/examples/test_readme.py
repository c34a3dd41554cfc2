"""The README is true: its programs and commands run and print what it says they print, and what it
names exists."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import shlex
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from celery.bin.celery import celery
from click.testing import CliRunner

from celery_clutch import signals
from celery_clutch.extend import settings
from celery_clutch.runtime.leases import HOST
from celery_clutch.testing import embedded

from .conftest import ROOT, Block


class ByThread:
    """Standard output, apart for the test's own thread and for the worker's."""

    def __init__(self) -> None:
        self.own: list[str] = []
        self.worker: list[str] = []

    def write(self, text: str) -> int:
        own = threading.current_thread() is threading.main_thread()
        (self.own if own else self.worker).append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def take(self, *, worker: bool, expected: str = "") -> str:
        """What was written since the last call; a worker may need a while to write *expected*."""
        said = self.worker if worker else self.own
        deadline = time.monotonic() + 10
        while worker and "".join(said) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        text = "".join(said)
        said.clear()
        return text


@pytest.fixture
def shop() -> Iterator[types.ModuleType]:
    """The module that the README calls shop.py; Celery forgets it afterwards."""
    module = types.ModuleType("shop")
    default, current = _state.default_app, _state._tls.current_app
    finalizers = set(_state._on_app_finalizers)
    sys.modules["shop"] = module
    yield module
    del sys.modules["shop"]
    _state.set_default_app(default)
    _state._set_current_app(current)
    _state._on_app_finalizers.intersection_update(finalizers)


class Reader:
    """Runs the blocks one after another, as somebody who reads the README would."""

    def __init__(self, shop: types.ModuleType, request: pytest.FixtureRequest) -> None:
        self.space = shop.__dict__
        self.request = request
        self.tests: set[str] = set()

    def run(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, "README.md", "exec")
        exec(code, self.space)

    def command(self, line: str) -> str:
        """What ``celery -A shop clutch ...`` prints."""
        program, *args = shlex.split(line)
        assert program == "celery"
        result = CliRunner().invoke(celery, args, prog_name="celery")
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        return result.output

    def run_tests(self) -> None:
        """Call the test functions that are new."""
        found = {name for name in self.space if name.startswith("test_")} - self.tests
        for name in sorted(found):
            function = self.space[name]
            fixtures = inspect.signature(function).parameters
            function(**{each: self.request.getfixturevalue(each) for each in fixtures})
        self.tests |= found


def programs(blocks: list[Block]) -> Iterator[tuple[Block, dict[str, str]]]:
    """Every block of Python or of commands, with what it and the worker should print."""
    for index, block in enumerate(blocks):
        if block.language != "python" and not is_command(block):
            continue
        said: dict[str, str] = {}
        for following in blocks[index + 1 :]:
            if following.kind not in ("output", "end of output", "worker output"):
                break
            said[following.kind] = following.text
        yield block, said


def is_command(block: Block) -> bool:
    """Whether the block is of commands that look at runs; ``doctor`` has a test of its own."""
    return block.text.startswith("celery -A shop clutch") and "doctor" not in block.text


def timeless(text: str) -> str:
    """*text*, with one time for all times, and columns that are as wide as what is in them."""
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "00:00:00", text)
    text = re.sub(r"\b[\d.,]+ (?:ms|s)\b", "1 s", text)
    text = text.replace(f"@{HOST}", "@worker-1")
    return re.sub(r"(?<=\S) {2,}", "  ", text)


@contextmanager
def deaf() -> Iterator[None]:
    """What is connected to a signal in the block is not told of what comes after it."""
    each = [signal for name, signal in vars(signals).items() if name.startswith("clutch_")]
    before = [list(signal.receivers) for signal in each]
    yield
    for signal, receivers in zip(each, before):
        signal.receivers = receivers


def test_programs(
    readme: list[Block],
    shop: types.ModuleType,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, printed = Reader(shop, request), ByThread()
    todo = list(programs(readme))
    assert len(todo) > 20
    reader.run(todo.pop(0)[0])  # shop.py itself
    app = shop.__dict__["app"]
    with embedded(app), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        for block, said in todo:
            where = f"what is in line {block.line}"
            if block.language == "python":
                with deaf():
                    reader.run(block)
                    expected = said.get("worker output", "")
                    assert printed.take(worker=True, expected=expected) == expected, where
                assert printed.take(worker=False) == said.get("output", ""), where
                continue
            told = timeless("".join(map(reader.command, block.text.splitlines())))
            if end := said.get("end of output"):
                assert told.endswith(timeless(end)), where
            else:
                assert told == timeless(said["output"]), where
    reader.run_tests()
    assert len(reader.tests) == 2
    assert {entry["task"] for entry in app.conf.beat_schedule.values()} <= set(app.tasks)


@pytest.mark.integration
def test_doctor(
    readme: list[Block],
    shop: types.ModuleType,
    request: pytest.FixtureRequest,
    broker: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # URLs here are of other lengths
    reader = Reader(shop, request)
    (block,) = [each for each in readme if "doctor" in each.text and each.language == "sh"]
    (expected,) = [each.text for each in readme if each.kind == "doctor"]
    reader.run(readme[[each.language for each in readme].index("python")])
    app: Celery = shop.__dict__["app"]
    app.conf.update(broker_url=broker, result_backend=broker, task_default_queue="readme-doctor")
    app.conf.beat_schedule = {"sweep clutches": {"task": "celery_clutch.sweep", "schedule": 60.0}}
    told = reader.command(block.text)
    for package in ("celery", "kombu"):
        version = importlib.metadata.version(package)
        told = re.sub(rf"(?i)\b({package}) {re.escape(version)}", r"\1 5.7.0", told)
    told = re.sub(r"warning .* no ClutchTasks: it\..*\n.*\n", "", told)  # of other tests
    assert re.sub(r"redis://\S*?/\d+", "redis://localhost:6379/0", told) == expected


@pytest.fixture
def clutch_embedded() -> Iterator[Any]:
    """The plugin's fixture, also where celery-clutch is not installed."""
    from celery_clutch.testing import fixtures

    definition = fixtures.clutch_embedded
    yield from getattr(definition, "__wrapped__", definition)()


def test_commands_name_what_exists(readme: list[Block]) -> None:
    commands = [block.text for block in readme if block.language == "sh"]
    commands = [each for each in commands if not each.startswith("celery -A shop clutch ")]
    assert len(commands) == 3
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for command in commands:
        for word in shlex.split(command):
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), word
            for extra in re.findall(r"\[([\w,]+)\]", word):
                for each in extra.split(","):
                    assert re.search(rf"^{each} = \[", project, re.M), each


def test_commands_are_those_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("\n### Command line\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*?`(?:, `.*?`)*) \| (.*) \|$", table, re.M)
    known = celery.commands["clutch"].commands  # type: ignore[attr-defined]
    named: set[str] = set()
    for first, rest in rows:
        commands = {each.split()[0] for each in re.findall(r"`(.*?)`", first)}
        options = {opt for each in commands for param in known[each].params for opt in param.opts}
        assert set(re.findall(r"--[a-z-]+", first + rest)) <= options, commands
        named |= commands
    assert named == set(known)


def test_distributions_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"plugins/(celery-clutch-\w+)/README.md", text)) == {
        path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")
    }
    for name, extra in re.findall(r"pip install \"?(celery-clutch-\w+)(?:\[(\w+)\])?", text):
        project = (ROOT / "plugins" / name / "pyproject.toml").read_text("utf-8")
        assert not extra or re.search(rf"^{extra} = \[", project, re.M), (name, extra)


def anchors(path: Path) -> set[str]:
    """What a link into a document can point to."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "plugins/README.md"]
)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            there = path.parent / file if file else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def test_settings_are_those_that_are_read() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)`", table, re.M))
    assert listed == set(re.findall(r"``(clutch_\w+)``", settings.Settings.__doc__ or ""))


def test_the_map_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    map_ = text.partition("\n## A map of the code\n")[2].partition("\n### ")[0]
    named = re.findall(r"`([\w/.]+)`", "".join(re.findall(r"^\| (`.*?`) \|", map_, re.M)))
    package = ROOT / "celery_clutch"
    found = (path.relative_to(package) for path in package.rglob("*.py"))
    modules = {str(path) for path in found if path.name != "__init__.py"}
    known = {path for path in modules if not path.startswith("testing/")}
    assert {each.rstrip("/") for each in named} == known | {"stores/lua", "testing"}
