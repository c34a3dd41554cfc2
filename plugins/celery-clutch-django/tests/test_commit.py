"""Engaging when a transaction commits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import shop
from celery_clutch_django import engage_on_commit
from django.db import transaction
from django.test.utils import override_settings

from celery_clutch import Clutch, State
from celery_clutch.errors import ConfigurationError, InvalidParent, NonJSONArgument, RunNotFound


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """The names of the tasks that were sent so far."""
    from celery.signals import before_task_publish

    names: list[str] = []

    def see(sender: str, **_: Any) -> None:
        names.append(sender)

    before_task_publish.connect(see)
    yield names
    before_task_publish.disconnect(see)


@pytest.mark.usefixtures("store")
def test_commit(alias: str, sent: list[str]) -> None:
    with transaction.atomic(using=alias):
        run = engage_on_commit(Clutch(shop.fetch.s("a"), name="a"), using=alias)
        with pytest.raises(RunNotFound):
            _ = run.state
        assert sent == []
    assert run.state is State.RUNNING
    assert run.status().name == "a"
    assert sent == ["shop.fetch"]


@pytest.mark.usefixtures("store")
def test_rollback(alias: str, sent: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):
        run = engage_on_commit(Clutch(shop.fetch.s("a")), using=alias)
        raise ZeroDivisionError
    with pytest.raises(RunNotFound):
        _ = run.state
    assert sent == []


def test_nested_blocks(store: Any, alias: str, sent: list[str]) -> None:
    with transaction.atomic(using=alias):
        outer = engage_on_commit(Clutch(shop.fetch.s("outer")), using=alias)
        with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):
            dropped = engage_on_commit(Clutch(shop.fetch.s("dropped")), using=alias)
            raise ZeroDivisionError
        with transaction.atomic(using=alias):
            inner = engage_on_commit(Clutch(shop.resize.s(1)), using=alias)
        assert sent == [], "the inner block is no transaction of its own"
    assert sent == ["shop.fetch", "shop.resize"]
    assert [store.peek(run.id) for run in (outer, dropped, inner)] == [
        (State.RUNNING, 0),
        None,
        (State.RUNNING, 0),
    ]


@pytest.mark.usefixtures("store")
def test_without_a_transaction(alias: str, sent: list[str]) -> None:
    run = engage_on_commit(Clutch(shop.fetch.s("a")), using=alias, countdown=60)
    assert run.state is State.RUNNING
    assert sent == ["shop.fetch"]


@pytest.mark.usefixtures("store")
def test_the_clutch_is_engaged_as_it_was(alias: str) -> None:
    clutch = Clutch(shop.fetch.s("a"), name="one", data={"list": [1]})
    with transaction.atomic(using=alias):
        one = engage_on_commit(clutch, using=alias)
        clutch << shop.resize.s(1)
        clutch.name = "two"
        clutch.data["list"].append(2)
        two = engage_on_commit(clutch, using=alias)
    assert [(run.status().name, run.status().total) for run in (one, two)] == [
        ("one", 1),
        ("two", 2),
    ]
    assert (one.data(), two.data()) == ({"list": [1]}, {"list": [1, 2]})
    assert clutch.id is None


@pytest.mark.usefixtures("store")
def test_a_sequence(alias: str) -> None:
    with transaction.atomic(using=alias):
        run = engage_on_commit(shop.Gallery(size=3), using=alias)
    assert (run.status().name, run.data()) == ("Gallery", {"size": 3})


@pytest.mark.usefixtures("store")
def test_an_id_of_ones_own(alias: str) -> None:
    with transaction.atomic(using=alias):
        run = engage_on_commit(Clutch(shop.fetch.s("a"), id="order-7"), using=alias)
    assert run.id == "order-7"
    assert run.state is State.RUNNING


@pytest.mark.usefixtures("store")
def test_what_cannot_be_sent_is_refused_at_once(alias: str, sent: list[str]) -> None:
    with transaction.atomic(using=alias), pytest.raises(NonJSONArgument):
        engage_on_commit(Clutch(shop.fetch.s(object())), using=alias)
    with transaction.atomic(using=alias), pytest.raises(InvalidParent, match=r"engage\(\) it"):
        engage_on_commit(Clutch(shop.fetch.s("a"), parent=shop.fetch), using=alias)
    assert sent == []


def test_engage_in_a_transaction_is_refused(store: Any, alias: str, sent: list[str]) -> None:
    """The message would be out before the run can be seen, and with a rollback for nothing."""
    clutch = Clutch(shop.fetch.s("a"), id="one")
    with (
        transaction.atomic(using=alias),
        pytest.raises(ConfigurationError, match="engage_on_commit"),
    ):
        clutch.engage()
    assert (sent, store.peek("one")) == ([], None)
    with transaction.atomic(using=alias), override_settings(CLUTCH_ALLOW_IN_TRANSACTION=True):
        clutch.engage()
    assert (sent, store.peek("one")) == (["shop.fetch"], (State.RUNNING, 0))


def test_resume_in_a_transaction_is_refused(store: Any, alias: str, sent: list[str]) -> None:
    run = Clutch(shop.fetch.s("a")).engage()
    with transaction.atomic(using=alias):
        assert run.cancel()
        with pytest.raises(ConfigurationError, match="on_commit"):
            run.resume()
        transaction.on_commit(run.resume, using=alias)
        assert sent == ["shop.fetch"]
    assert sent == ["shop.fetch", "celery_clutch.advance"]
    assert store.peek(run.id) == (State.RUNNING, 1)
