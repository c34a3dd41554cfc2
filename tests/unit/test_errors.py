"""The tree of exceptions: what is drawn is what is there."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from celery_clutch import errors
from celery_clutch.errors import ClutchError, ClutchFailed


def drawn() -> dict[str, tuple[str | None, list[str]]]:
    """From the docstring: for each class its parent, and what it also is."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ │]*(?:[├└]── )?)(\w+)\b(.*)", line)
        if not match:
            continue
        depth = len(match[1]) // 4
        also = re.search(r"\(also (\w+)\)", match[3])
        above[depth:] = [match[2]]
        parent = above[depth - 1] if depth else None
        found[match[2]] = parent, [also[1]] if also else []
    return found


def defined() -> dict[str, type[ClutchError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {name: cls for name, cls in members if cls.__module__ == errors.__name__}


def test_every_class_is_drawn_and_every_drawing_is_a_class() -> None:
    assert set(drawn()) == set(defined())
    assert len(drawn()) > 20


def test_the_tree_is_drawn_as_it_is() -> None:
    classes = defined()
    real: dict[str, tuple[str | None, list[str]]] = {}
    for name, cls in classes.items():
        own = [base.__name__ for base in cls.__bases__ if base in classes.values()]
        also = [base.__name__ for base in cls.__bases__ if base not in classes.values()]
        real[name] = (own[0] if own else None), [each for each in also if each != "Exception"]
    assert real == drawn()


def test_every_error_is_a_clutch_error_and_says_what_it_means() -> None:
    for cls in defined().values():
        assert issubclass(cls, ClutchError)
        assert cls.__doc__


@pytest.mark.parametrize("name", sorted(drawn()))
def test_an_error_is_also_the_builtin_it_promises(name: str) -> None:
    cls = defined()[name]
    for also in drawn()[name][1]:
        assert isinstance(cls("x"), getattr(builtins, also))


@pytest.mark.parametrize("name", sorted(drawn()))
def test_an_error_carries_its_message_through_pickle(name: str) -> None:
    # Celery's prefork pool sends exceptions from child to parent that way.
    exc = defined()[name]("what happened")
    again = pickle.loads(pickle.dumps(exc))
    assert type(again) is type(exc)
    assert str(again) == str(exc) == "what happened"


def test_clutch_failed_carries_failures() -> None:
    assert ClutchFailed("x").failures == []
    assert ClutchFailed("x", ("f",)).failures == ["f"]  # type: ignore[arg-type]
