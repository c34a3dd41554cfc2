"""plugins/README.md: its store passes the contract, and is found and opened as it says."""

from __future__ import annotations

import inspect
import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from celery_clutch import Clutch, ClutchTask, hookspecs, parallel, previous_results
from celery_clutch.errors import AlreadyEngaged, ConfigurationError, CorruptRecord, MissingExtra
from celery_clutch.plugins import Plugins, forget_runtime
from celery_clutch.settings import Settings
from celery_clutch.stores.base import ResultStore
from celery_clutch.testing import StoreContract

README = Path(__file__).parents[2] / "plugins" / "README.md"
TEXT = README.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


(PROJECT,) = blocks("toml")
MISSING, PLUGIN, TESTS = blocks("python")
(_, MODULE) = re.findall(r'^(\w+) = "(celery_clutch_\w+)"$', PROJECT, re.MULTILINE)[0]


def module(name: str, source: str) -> ModuleType:
    made = ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, f"{README}:{name}", "exec"), made.__dict__)
    return made


onefile = module(MODULE, PLUGIN)
TestOneFileStore: type[StoreContract] = module("readme_tests", TESTS).TestOneFileStore
TestOneFileStore.examples = 15


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin as pip would leave it: a module, and a distribution with an entry point."""
    (tmp_path / f"{MODULE}.py").write_text(PLUGIN, "utf-8")
    info = tmp_path / "celery_clutch_onefile-1.0.dist-info"
    info.mkdir()
    group = PROJECT[PROJECT.index("[project.entry-points") :]
    group = group.replace("[project.entry-points.celery_clutch]", "[celery_clutch]")
    (info / "entry_points.txt").write_text(group.replace('"', ""), "utf-8")
    name = re.search(r'name = "(.*)"', PROJECT)
    assert name
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name[1]}\nVersion: 1.0\n")
    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.syspath_prepend(tmp_path)


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


def test_it_speaks_of_every_method_and_hook() -> None:
    (table,) = re.findall(r"^\| method .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == ResultStore.__abstractmethods__, "the methods to implement"
    rest = TEXT[TEXT.index("These are right as they are") :].partition("\n\n")[0]
    template = {
        name
        for name, member in vars(ResultStore).items()
        if inspect.isfunction(member) and not name.startswith("_") and name not in named
    }
    assert template <= set(re.findall(r"`(\w+)`", rest)), "the methods that may be overridden"
    hooks = {name for name in vars(hookspecs) if name.startswith("clutch_")}
    (table,) = re.findall(r"^\| hook .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)\(\)` \|", table, re.MULTILINE)) == hooks


def test_it_speaks_of_every_attribute_of_the_contract() -> None:
    (table,) = re.findall(r"^\| \| default .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    defaults = {
        name: repr(value)
        for name, value in vars(StoreContract).items()
        if not name.startswith("_") and isinstance(value, (bool, int, float))
    }
    assert dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)) == defaults
