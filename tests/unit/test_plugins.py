"""Plugins: found, registered, refused, and the store of an app."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pluggy
import pytest
from celery import Celery

from celery_clutch import hookimpl
from celery_clutch.errors import MissingExtra, NoStore, PluginError, UnknownStore
from celery_clutch.extend import hookspecs
from celery_clutch.extend.plugins import Plugins, forget_runtime, runtime
from celery_clutch.extend.settings import REDIS_SCHEMES, Settings
from celery_clutch.stores.base import StoreOptions
from celery_clutch.stores.memory import MemoryStore

Install = Callable[..., None]

GOOD = """
from celery_clutch import hookimpl
from celery_clutch.stores.memory import MemoryStore

@hookimpl
def clutch_stores():
    return {SCHEME: MemoryStore}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution where Python finds it: ``install("name", source, *more entry points)``."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(name: str, source: str, *more: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source, "utf-8")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, "utf-8")
        points = "\n".join([f"point = {module}", *more])
        (info / "entry_points.txt").write_text(f"[celery_clutch]\n{points}\n", "utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put


def test_the_stores_that_come_with_it() -> None:
    assert set(Plugins([]).stores()) == {"memory", *REDIS_SCHEMES}
    assert isinstance(Plugins([]).open(Settings("memory://")), MemoryStore)


def test_an_installed_plugin_is_found_and_its_store_opened(install: Install) -> None:
    install("clutch-shelf", GOOD.replace("SCHEME", "'shelf'"))
    store = Plugins().open(Settings("shelf://place", 5, 6, "shop", failed_ttl=7))
    assert store.url == "shelf://place"
    assert store.options == StoreOptions(prefix="shop", ttl=5, result_ttl=6, failed_ttl=7)


def test_a_plugin_can_be_registered_by_hand() -> None:
    class Shelf:
        @hookimpl
        def clutch_stores(self) -> dict[str, Any]:
            return {"shelf": MemoryStore, "shelf+old": MemoryStore}

    plugins = Plugins([])
    plugins.register(Shelf(), "clutch-shelf")
    assert {"memory", "shelf", "shelf+old"} <= set(plugins.stores())


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_module", "no_such_module"),
        ("raise RuntimeError('at import')", "at import"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_imported(install: Install, source: str, why: str) -> None:
    install("clutch-shelf", source)
    with pytest.raises(PluginError) as error:
        Plugins()
    assert "clutch-shelf" in str(error.value), "the distribution is named"
    assert why in str(error.value)


def test_an_entry_point_to_nothing(install: Install) -> None:
    install("clutch-shelf", GOOD.replace("SCHEME", "'shelf'"), "other = clutch_shelf:nothing")
    with pytest.raises(PluginError, match=r"clutch-shelf \(clutch_shelf:nothing\)"):
        Plugins()


@pytest.mark.parametrize("scheme", ["memory", "redis", "redis+cluster"])
def test_a_scheme_of_a_built_in_store_is_taken(install: Install, scheme: str) -> None:
    install("clutch-shelf", GOOD.replace("SCHEME", repr(scheme)))
    with pytest.raises(PluginError) as error:
        Plugins().open(Settings("memory://"))
    assert f"clutch-shelf claims the store scheme {scheme}://" in str(error.value)
    assert "which celery-clutch has" in str(error.value)


def test_a_scheme_that_two_plugins_claim(install: Install) -> None:
    install("clutch-shelf", GOOD.replace("SCHEME", "'shelf'"))
    install("clutch-board", GOOD.replace("SCHEME", "'shelf'"))
    with pytest.raises(PluginError, match="shelf://") as error:
        Plugins().stores()
    assert "clutch-shelf" in str(error.value)
    assert "clutch-board" in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "5",
        "['shelf']",
        "1 / 0",
        pytest.param("{'shelf': 'a name'}"),
        pytest.param("{5: print}"),
    ],
)
def test_a_plugin_that_answers_nonsense(install: Install, answer: str) -> None:
    source = "from celery_clutch import hookimpl\n@hookimpl\ndef clutch_stores():\n    return "
    install("clutch-shelf", source + answer)
    with pytest.raises(PluginError, match="clutch-shelf is broken"):
        Plugins().open(Settings("memory://"))


@pytest.mark.parametrize(
    "hook", ["def clutch_storez(): return {}", "def clutch_stores(colour): return {}"]
)
def test_a_hook_that_does_not_exist_or_fit(install: Install, hook: str) -> None:
    install("clutch-shelf", f"from celery_clutch import hookimpl\n@hookimpl\n{hook}\n")
    with pytest.raises(PluginError, match="clutch-shelf cannot be registered"):
        Plugins()


def test_a_distribution_may_bring_two_plugins(install: Install) -> None:
    install("clutch-board", GOOD.replace("SCHEME", "'board'"))
    install("clutch-shelf", GOOD.replace("SCHEME", "'shelf'"), "other = clutch_board")
    Plugins()


def test_a_factory_that_makes_no_store(install: Install) -> None:
    source = GOOD.replace("SCHEME", "'shelf'").replace(": MemoryStore", ": lambda *_: None")
    install("clutch-shelf", source)
    with pytest.raises(PluginError, match="clutch-shelf"):
        Plugins().open(Settings("shelf://"))


@pytest.mark.parametrize("url", ["shelf://place", "Redis://localhost", "://", "redis+tls://x"])
def test_an_unknown_scheme_lists_those_known(url: str) -> None:
    with pytest.raises(UnknownStore) as error:
        Plugins([]).open(Settings(url))
    assert f"for {url.partition('://')[0]}://" in str(error.value)
    for scheme in ("memory", *REDIS_SCHEMES):
        assert f"{scheme}://" in str(error.value)


def test_an_unknown_scheme_does_not_show_the_password() -> None:
    with pytest.raises(UnknownStore) as error:
        Plugins([]).open(Settings("shelf://user:hunter2@place"))
    assert "hunter2" not in str(error.value)


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_missing_client_library_says_what_to_install() -> None:
    out = python(
        "import sys; sys.modules['redis'] = None\n"
        "from celery_clutch.errors import MissingExtra\n"
        "from celery_clutch.extend.plugins import Plugins\n"
        "from celery_clutch.extend.settings import Settings\n"
        "Plugins([]).open(Settings('memory://'))\n"
        "try: Plugins([]).open(Settings('redis://'))\n"
        "except MissingExtra as exc: print(exc)\n"
    )
    assert "pip install 'celery-clutch[redis]'" in out
    assert issubclass(MissingExtra, ImportError)


def test_client_libraries_are_imported_when_a_store_is_opened() -> None:
    out = python(
        "import sys; from celery_clutch.extend.plugins import Plugins; Plugins([]).stores()\n"
        "print('redis' in sys.modules)\n"
    )
    assert out.strip() == "False"


def test_every_hook_says_what_it_is_for_and_when_it_fires() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    specs = [name for name in vars(hookspecs) if name.startswith("clutch_")]
    assert specs, "there are hooks"
    for name in specs:
        assert hasattr(manager.hook, name), f"{name} is a hook"
        doc = getattr(hookspecs, name).__doc__
        assert doc, f"{name} has a docstring"
        assert "Fires" in doc, f"{name} says when it fires"


# --- the store of an app -------------------------------------------------------------------------


def make(**conf: Any) -> Celery:
    app = Celery("plugins", broker="memory://", set_as_current=False)
    app.conf.update(conf)
    return app


def test_an_app_has_one_store() -> None:
    app, other = make(clutch_store="memory://"), make(clutch_store="memory://")
    with ThreadPoolExecutor(8) as pool:
        found = {id(each) for each in pool.map(lambda _: runtime(app).store, range(32))}
    assert len(found) == 1, "threads share it"
    assert runtime(other).store is not runtime(app).store, "apps do not"


def test_a_changed_setting_is_a_new_store() -> None:
    app = make(clutch_store="memory://")
    before = runtime(app).store
    app.conf.clutch_store = "memory://other"
    assert runtime(app).store.url == "memory://other"
    assert runtime(app).store is not before


def test_forgetting_reads_the_settings_afresh() -> None:
    app = make(clutch_store="memory://", clutch_ttl=5)
    before = runtime(app)
    app.conf.clutch_ttl = 6
    forget_runtime(app)
    assert runtime(app).store is not before.store
    assert runtime(app).settings.ttl == 6
    forget_runtime(make())  # one that was never used


def test_an_app_without_a_store_says_so_each_time() -> None:
    app = make()
    for _ in range(2):
        with pytest.raises(NoStore):
            runtime(app)
    app.conf.clutch_store = "memory://"
    assert runtime(app).store.url == "memory://"
