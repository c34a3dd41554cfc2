"""plugins/README.md: its store passes the contract, its observer is told, and both are found."""

from __future__ import annotations

import inspect
import re
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from celery_clutch import Clutch, ClutchTask, parallel, previous_results
from celery_clutch.errors import AlreadyEngaged, ConfigurationError, CorruptRecord, MissingExtra
from celery_clutch.extend import hookspecs
from celery_clutch.extend.plugins import Plugins, forget_runtime
from celery_clutch.extend.settings import Settings
from celery_clutch.model import events
from celery_clutch.stores.base import ResultStore
from celery_clutch.stores.machine import TransactionalStore
from celery_clutch.testing import StoreContract

README = Path(__file__).parents[2] / "plugins" / "README.md"
TEXT = README.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


(PROJECT,) = blocks("toml")
MISSING, PLUGIN, TESTS, OBSERVER, OBSERVER_TESTS = blocks("python")
((ENTRY, MODULE),) = re.findall(r'^(\w+) = "(celery_clutch_\w+)"$', PROJECT, re.MULTILINE)


def module(name: str, source: str) -> ModuleType:
    made = ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, f"{README}:{name}", "exec"), made.__dict__)
    return made


onefile = module(MODULE, PLUGIN)
TestOneFileStore: type[StoreContract] = module("readme_tests", TESTS).TestOneFileStore
TestOneFileStore.examples = 15


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Plugins as pip would leave them: a module, and a distribution with an entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        entry = f"[celery_clutch]\n{name.rpartition('_')[2]} = {name}\n"
        (info / "entry_points.txt").write_text(entry, "utf-8")
        distribution = name.replace("_", "-")
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(text, "utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.fixture
def installed(install: Callable[[str, str], None]) -> None:
    """The store, installed as its project says."""
    assert MODULE.endswith(f"_{ENTRY}")
    assert f'name = "{MODULE.replace("_", "-")}"' in PROJECT
    install(MODULE, PLUGIN)


def test_the_plugin_is_discovered_and_opened_by_url(installed: None, tmp_path: Path) -> None:
    url = f"onefile://{tmp_path}/runs.db"
    store = Plugins().open(Settings.of({"clutch_store": url, "clutch_key_prefix": "shop"}))
    assert type(store).__name__ == "OneFileStore"
    store.create("r", b"", {}, 1)
    with sqlite3.connect(tmp_path / "runs.db") as db:
        assert db.execute("SELECT run FROM shop_runs").fetchall() == [("r",)]
    db.close()


def test_clutches_run_on_it(installed: None, tmp_path: Path) -> None:
    app = Celery("readme", broker="memory://", task_cls=ClutchTask, set_as_current=False)
    app.conf.update(clutch_store=f"onefile://{tmp_path}/runs.db", task_always_eager=True)

    @app.task(name="readme.add")
    def add(*numbers: int) -> int:
        return sum(numbers) + sum(previous_results())

    run = Clutch(add.s(1), parallel(add.s(10), add.s(20)), add.s(100), id="one").engage()
    assert run.get(timeout=10) == [132]
    with pytest.raises(AlreadyEngaged):
        Clutch(add.s(1), id="one").engage()
    forget_runtime(app)


def test_its_errors() -> None:
    with pytest.raises(ConfigurationError, match="which file"):
        onefile.OneFileStore("onefile://")


def test_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"not a database at all, but long enough to look at" * 100)
    store = onefile.OneFileStore(f"onefile://{path}")
    with pytest.raises(CorruptRecord):
        store.read("r")


def test_the_block_about_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {"MissingExtra": MissingExtra, "__package__": "celery_clutch.stores"}
    exec(MISSING, space)
    with pytest.raises(MissingExtra, match="pip install"):
        space["open_store"]("couch://", None)


def test_the_observer_is_told(
    install: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = re.findall(r'^"""(celery_clutch_\w+):', OBSERVER)[0]
    install(name, OBSERVER)
    tests = module("readme_observer_tests", OBSERVER_TESTS)
    monkeypatch.delitem(sys.modules, "readme_observer_tests")
    tests.test_slow_jobs_are_named(caplog, monkeypatch)
    monkeypatch.delitem(sys.modules, name)


def table(head: str) -> dict[str, list[str]]:
    """The rows of the table whose first column has this *head*, by what is code in that column."""
    found = re.findall(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in found.splitlines()]
    return {first.strip("`"): rest for first, *rest in rows}


def test_it_speaks_of_every_method() -> None:
    assert set(table("method")) == TransactionalStore.__abstractmethods__, "those to implement"
    paths = set(re.findall(r"`(\w+)`", paragraph("The specification of everything else")))
    ruled = ResultStore.__abstractmethods__ - TransactionalStore.__abstractmethods__
    assert ruled <= paths, "the methods that may have a fast path"
    template = {
        name
        for name, member in vars(ResultStore).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    rest = set(re.findall(r"`(\w+)`", paragraph("These are right as they are")))
    assert {*template, "notify"} - ResultStore.__abstractmethods__ <= rest, "the others"


def test_the_store_is_short_and_has_no_rules() -> None:
    assert len(PLUGIN.splitlines()) <= 165
    assert not set(vars(onefile.OneFileStore)) & {"begin", "complete", "fail", "transition"}


def paragraph(start: str) -> str:
    return TEXT[TEXT.index(start) :].partition("\n\n")[0]


HOOKS = {
    name: list(inspect.signature(hook).parameters.values())
    for name, hook in vars(hookspecs).items()
    if name.startswith("clutch_")
}


def test_it_speaks_of_every_hook() -> None:
    calls = {f"{name}({', '.join(each.name for each in of)})": of for name, of in HOOKS.items()}
    named = {call: cells[0] for call, cells in table("hook").items()}
    assert named == {call: "observers" if of else "stores" for call, of in calls.items()}


def test_it_speaks_of_every_event() -> None:
    (text,) = re.findall(r"^\| hook \| event \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    told = {name: of[0].annotation for name, of in HOOKS.items() if of and of[0].name == "event"}
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert {hook: event for hook, event, _ in rows} == told
    before: set[str] = set()
    for _, event, interest in rows:
        named = set(re.findall(r"`(\w+)`", interest))
        if interest.startswith("the same"):
            named |= before
        else:
            before = named
        assert named == {each.name for each in fields(getattr(events, event))} - {"context"}, event


def test_it_speaks_of_every_attribute_of_the_contract() -> None:
    (table,) = re.findall(r"^\| \| default .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    defaults = {
        name: repr(value)
        for name, value in vars(StoreContract).items()
        if not name.startswith("_") and isinstance(value, (bool, int, float))
    }
    assert dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)) == defaults
