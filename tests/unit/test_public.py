"""What is public: the names, their signatures and their docstrings."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import types
from collections.abc import Iterator
from typing import Any

import pytest

import celery_clutch
from celery_clutch import Clutch, ClutchResult, ClutchTask, ResultStore

KEYWORD = inspect.Parameter.KEYWORD_ONLY

NAMES = [
    *("Clutch", "named", "series", "parallel"),
    *("Failed", "Skipped", "Stop"),
    *("ClutchTask", "previous_results"),
    *("ClutchResult", "Status", "Failure", "Reason"),
    "Sequence",
    *("ResultStore", "hookimpl"),
    "ClutchError",
]
"""The names a user imports, by what they are for: build, in a task, look, extend, errors."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(celery_clutch.__path__, "celery_clutch.")
    return [each.name for each in found if ".testing" not in each.name]


# --- names --------------------------------------------------------------------------------


def test_all_is_sorted_and_whole() -> None:
    assert celery_clutch.__all__ == sorted(celery_clutch.__all__)
    assert len(set(celery_clutch.__all__)) == len(celery_clutch.__all__)
    assert set(NAMES) <= set(celery_clutch.__all__)


def test_all_is_what_is_public() -> None:
    # Submodules become attributes of a package when they are imported; they are not names of it.
    public = {
        name
        for name, value in vars(celery_clutch).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name != "annotations"
        and value is not Any
    }
    assert public == set(celery_clutch.__all__)


def test_star_import_brings_all() -> None:
    space: dict[str, Any] = {}
    exec("from celery_clutch import *", space)
    assert set(space) - {"__builtins__"} == set(celery_clutch.__all__)


def test_series_and_parallel_are_the_expressions() -> None:
    # ... and not modules or anything else that an import could put in their place.
    for name in modules():
        importlib.import_module(name)
    assert callable(celery_clutch.series)
    assert callable(celery_clutch.parallel)


def test_the_version_is_that_of_the_distribution() -> None:
    try:
        version = importlib.metadata.version("celery-clutch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("celery-clutch is not installed, only on the path")
    assert celery_clutch.__version__ == version


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'celery_clutch' has no attribute 'serie'"):
        _ = celery_clutch.serie
    with pytest.raises(ImportError):
        exec("from celery_clutch import serie")


# --- signatures ---------------------------------------------------------------------------


def test_the_signature_of_clutch() -> None:
    parameters = inspect.signature(Clutch).parameters
    assert parameters["steps"].kind is inspect.Parameter.VAR_POSITIONAL
    options = {name for name, each in parameters.items() if each.kind is KEYWORD}
    assert options >= {
        *("name", "queue", "on_failure", "on_success", "on_death", "on_end"),
        *("id", "tags", "parent", "app"),
    }
    # Nothing is required, and nothing else can be given by position.
    assert set(parameters) == {"steps", *options}
    assert all(parameters[name].default is not inspect.Parameter.empty for name in options)


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (celery_clutch.series, "(*steps, name=None)"),
        (
            celery_clutch.parallel,
            "(*steps, max_concurrency=None, allow_failures=False, need=None, name=None)",
        ),
        (celery_clutch.named, "(step, name)"),
        (celery_clutch.previous_results, "()"),
        (Clutch.add, "(self, task, /, *args, **kwargs)"),
        (Clutch.named, "(self, name)"),
        (
            Clutch.parallel,
            "(self, *, max_concurrency=None, allow_failures=False, need=None, name=None)",
        ),
        (Clutch.series, "(self, *, name=None)"),
        (Clutch.clear, "(self)"),
        (Clutch.engage, "(self, **options)"),
        (Clutch.from_canvas, "(sig, **options)"),
        (ClutchResult, "(id, app=None)"),
        (ClutchResult.ready, "(self)"),
        (ClutchResult.successful, "(self)"),
        (ClutchResult.failed, "(self)"),
        (ClutchResult.get, "(self, timeout=None, propagate=True)"),
        (ClutchResult.aget, "(self, timeout=None, propagate=True)"),
        (ClutchResult.status, "(self)"),
        (ClutchResult.progress, "(self)"),
        (ClutchResult.failures, "(self, limit=None, offset=0, *, tolerated=False)"),
        (ClutchResult.why, "(self, ask=False, timeout=1.0)"),
        (ClutchResult.results, "(self, address=None)"),
        (ClutchResult.cancel, "(self)"),
        (ClutchResult.resume, "(self, *, retry_tolerated=False)"),
        (ClutchResult.forget, "(self)"),
        (ClutchTask.iter_previous_results, "(self, chunk=1000)"),
    ],
)
def test_signatures(thing: Any, expected: str) -> None:
    signature = inspect.signature(thing)
    bare = [
        each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
    ]
    found = inspect.Signature(bare, return_annotation=inspect.Signature.empty)
    assert str(found) == expected


def test_properties() -> None:
    for cls, names in [(ClutchResult, ["state"]), (ClutchTask, ["previous_results", "data"])]:
        for name in names:
            assert isinstance(inspect.getattr_static(cls, name), property)
    assert inspect.iscoroutinefunction(ClutchResult.aget)
    assert ClutchResult("abc").id == "abc"


def test_a_task_class_can_be_named_for_celery() -> None:
    from celery import Celery

    app = Celery("named", task_cls="celery_clutch:ClutchTask", set_as_current=False)
    assert issubclass(app.Task, ClutchTask)


# --- docstrings ---------------------------------------------------------------------------


def public_members() -> Iterator[tuple[str, Any]]:
    for name in celery_clutch.__all__:
        thing = getattr(celery_clutch, name)
        if not inspect.isclass(thing) and not inspect.isfunction(thing):
            continue
        yield name, thing
        if inspect.isclass(thing):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and _documentable(value):
                    yield f"{name}.{attribute}", value


def _documentable(value: Any) -> bool:
    return isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)


@pytest.mark.parametrize("name", [name for name, _ in public_members()])
def test_every_public_object_has_a_docstring(name: str) -> None:
    thing = dict(public_members())[name]
    assert inspect.getdoc(thing), f"{name} has no docstring"
    own = thing.__func__ if isinstance(thing, (classmethod, staticmethod)) else thing
    assert own.__doc__, f"{name} has no docstring of its own"


@pytest.mark.parametrize("name", modules())
def test_every_module_has_a_docstring(name: str) -> None:
    doc = importlib.import_module(name).__doc__
    assert doc or name.endswith("stores")


def test_every_primitive_of_a_store_is_specified() -> None:
    for name in ResultStore.__abstractmethods__:
        assert len(inspect.getdoc(getattr(ResultStore, name)) or "") > 20, name


def test_the_annotations_of_public_objects_can_be_read() -> None:
    import typing

    for name, thing in public_members():
        if inspect.isfunction(thing):
            typing.get_type_hints(thing)
        elif isinstance(thing, property):
            typing.get_type_hints(thing.fget)
        assert name
