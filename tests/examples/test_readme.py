"""The README is true: its programs run, print what it says they print, and what it names exists."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from celery import _state

from celery_clutch import settings
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

    def run_tests(self) -> None:
        """Call the test functions that are new."""
        found = {name for name in self.space if name.startswith("test_")} - self.tests
        for name in sorted(found):
            function = self.space[name]
            fixtures = inspect.signature(function).parameters
            function(**{each: self.request.getfixturevalue(each) for each in fixtures})
        self.tests |= found


def programs(blocks: list[Block]) -> Iterator[tuple[Block, str, str]]:
    """Every Python block, with what it and the worker should print."""
    for index, block in enumerate(blocks):
        if block.language != "python":
            continue
        said = {"output": "", "worker output": ""}
        for following in blocks[index + 1 :]:
            if following.kind not in said:
                break
            said[following.kind] = following.text
        yield block, said["output"], said["worker output"]


def test_programs(
    readme: list[Block],
    shop: types.ModuleType,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, printed = Reader(shop, request), ByThread()
    todo = list(programs(readme))
    assert len(todo) > 10
    reader.run(todo.pop(0)[0])  # shop.py itself
    with embedded(shop.__dict__["app"]), monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", printed)
        for block, output, worker_output in todo:
            reader.run(block)
            where = f"the program in line {block.line}"
            assert printed.take(worker=True, expected=worker_output) == worker_output, where
            assert printed.take(worker=False) == output, where
    reader.run_tests()
    assert len(reader.tests) == 2


@pytest.fixture
def clutch_embedded() -> Iterator[Any]:
    """The plugin's fixture, also where celery-clutch is not installed."""
    from celery_clutch.testing import fixtures

    definition = fixtures.clutch_embedded
    yield from getattr(definition, "__wrapped__", definition)()


def test_commands_name_what_exists(readme: list[Block]) -> None:
    commands = [block.text for block in readme if block.language == "sh"]
    assert len(commands) == 3
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for command in commands:
        for word in shlex.split(command):
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), word
            for extra in re.findall(r"\[([\w,]+)\]", word):
                for each in extra.split(","):
                    assert re.search(rf"^{each} = \[", project, re.M), each


def test_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    anchors = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target


def test_settings_are_those_that_are_read() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    table = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)`", table, re.M))
    assert listed == set(re.findall(r"``(clutch_\w+)``", settings.Settings.__doc__ or ""))
