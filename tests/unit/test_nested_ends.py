"""Runs that end, or are resumed, at an awkward moment: nested ones, and those that somebody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_clutch import Clutch, ClutchResult, ClutchTask, State
from celery_clutch.errors import RunNotFound
from celery_clutch.extend.plugins import runtime
from celery_clutch.testing import embedded

from .conftest import App

LONG = 20.0


class Shop:
    """An embedded app; jobs of its nested runs can be held.

    Attributes:
        nested: the ids of the runs that jobs have nested.
        ran: what the jobs named ``inner`` were given, as often as they ran.
        saw: the keys of the data behind the job that nests.
        gates: lets a job go on that holds, by name.
    """

    def __init__(self) -> None:
        self.app = App("ends", task_cls=ClutchTask, set_as_current=False)
        self.app.conf.update(clutch_result_ttl=3600)
        self.nested: list[ClutchResult] = []
        self.ran: list[str] = []
        self.saw: list[str] = []
        self.gates = {"first": threading.Event(), "second": threading.Event()}
        shop = self

        @self.app.task(name="inner", bind=True)
        def inner(self: ClutchTask, name: str, held: bool = False) -> str:
            shop.ran.append(name)
            if held:
                assert shop.gates[name].wait(LONG)
            self.data[name] = True
            return name

        @self.app.task(name="outer", bind=True)
        def outer(self: ClutchTask, held: bool = False) -> str:
            for name in ("first", "second"):
                clutch = Clutch(inner.s(name, held), parent=self, data=self.data)
                shop.nested.append(clutch.engage())
            return "outer"

        @self.app.task(name="after", bind=True)
        def after(self: ClutchTask) -> list[str]:
            shop.ran.append("after")
            shop.saw = sorted(self.data)
            return shop.saw

        self.outer, self.after = outer, after

    @property
    def store(self) -> Any:
        return runtime(self.app).store

    def engage(self, *, held: bool = False) -> ClutchResult:
        return Clutch(self.outer.s(held), self.after, data={"given": 1}, app=self.app).engage()

    def around(self, name: str, call: Callable[..., Any]) -> None:
        """Let *call* be called in place of the store's method *name*, with it as first argument."""
        usual = getattr(self.store, name)
        setattr(self.store, name, lambda *args, **more: call(usual, *args, **more))

    def gone(self, run: ClutchResult) -> bool:
        return self.store.peek(run.id) is None


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    with embedded(made.app):
        yield made
        for gate in made.gates.values():
            gate.set()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- cancelled or forgotten while a job nests -----------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "forget"])
@pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint"])
def test_what_a_job_nests_does_not_start_in_a_run_that_has_ended(
    shop: Shop, how: str, when: str
) -> None:
    returned = threading.Event()

    def checkpoint(usual: Callable[..., bool], run: str, *args: Any) -> bool:
        assert all(shop.store.peek(each.id) for each in shop.nested), "they are created before"
        again = returned.is_set()
        if when == "before the checkpoint" and not again:
            getattr(ClutchResult(run, shop.app), how)()
        answer = usual(run, *args)
        if when == "after the checkpoint" and not again:
            getattr(ClutchResult(run, shop.app), how)()
        returned.set()
        return answer

    shop.around("checkpoint", checkpoint)
    run = shop.engage()
    assert returned.wait(LONG)
    if how == "forget" or when == "before the checkpoint":
        until(lambda: all(shop.gone(each) for each in shop.nested))
    if how == "cancel":
        assert run.state is State.CANCELLED
        until(lambda: run.status().draining == 0)
        assert run.resume()
        assert run.get(timeout=LONG) == [["first", "given", "second"]]
        assert sorted(shop.ran) == ["after", "first", "second"]
    else:
        assert shop.gone(run)
        assert Clutch(shop.after, app=shop.app).engage().get(timeout=LONG) == [[]]
        assert shop.ran == ["after"], "nothing came before that, and nothing else ran"


@pytest.mark.parametrize(("how", "call"), [("cancel", "transition"), ("forget", "executions")])
def test_a_job_that_returns_while_its_run_is_ended_nests_nothing(
    shop: Shop, how: str, call: str
) -> None:
    returns, over, ended = threading.Event(), threading.Event(), threading.Event()

    def checkpoint(usual: Callable[..., bool], *args: Any) -> bool:
        assert returns.wait(LONG)
        answer = usual(*args)
        over.set()
        assert ended.wait(LONG)
        return answer

    def meanwhile(usual: Callable[..., Any], *args: Any) -> Any:
        """Whoever ends the run has looked at it already: then its job returns."""
        returns.set()
        assert over.wait(LONG)
        return usual(*args)

    shop.around("checkpoint", checkpoint)
    run = shop.engage()
    until(lambda: len(shop.nested) == 2)
    shop.around(call, meanwhile)
    assert getattr(run, how)()
    ended.set()
    assert Clutch(shop.after, app=shop.app).engage().get(timeout=LONG) == [[]]
    until(lambda: all(shop.gone(each) or each.state is State.CANCELLED for each in shop.nested))
    assert shop.ran == ["after"]


# --- a nested run that ends by itself -------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "forget"])
def test_a_nested_run_that_is_ended_alone_fails_the_outer_one(shop: Shop, how: str) -> None:
    run = shop.engage(held=True)
    until(lambda: len(shop.ran) == 2)
    first, second = shop.nested
    assert getattr(first, how)()
    until(run.ready)
    assert run.state is State.FAILED
    (failure,) = run.failures()
    assert (failure.address, failure.final) == ("0", True)
    assert failure.exception == "celery_clutch.errors.NestedClutchFailed"
    assert first.id in failure.message
    shop.gates["first"].set()
    shop.gates["second"].set()
    assert second.get(timeout=LONG) == ["second"]
    assert run.state is State.FAILED, "the other one alone is no success"
    assert "after" not in shop.ran


def test_a_nested_run_that_was_cancelled_alone_goes_on_with_the_outer_one(shop: Shop) -> None:
    run = shop.engage(held=True)
    until(lambda: len(shop.ran) == 2)
    assert shop.nested[0].cancel()
    until(run.ready)
    for gate in shop.gates.values():
        gate.set()
    assert shop.nested[1].get(timeout=LONG) == ["second"]
    until(lambda: shop.nested[0].progress().done == 1)
    assert run.resume()
    assert run.get(timeout=LONG) == [["first", "given", "second"]]
    assert sorted(shop.ran) == ["after", "first", "second"], "what has a result is not run again"


def test_a_nested_run_that_has_ended_can_be_forgotten(shop: Shop) -> None:
    run = shop.engage(held=True)
    until(lambda: len(shop.ran) == 2)
    shop.gates["first"].set()
    until(lambda: shop.nested[0].state is State.SUCCEEDED and run.record().due == {})
    assert shop.nested[0].forget()
    shop.gates["second"].set()
    assert run.get(timeout=LONG) == [["first", "given", "second"]]


# --- nested runs that end far apart ---------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
def test_an_outcome_outlives_its_nested_run(resumed: bool) -> None:
    shop = Shop()
    shop.app.conf.update(clutch_result_ttl=0.5)
    with embedded(shop.app):
        run = shop.engage(held=True)
        until(lambda: len(shop.ran) == 2)
        first, _ = shop.nested
        shop.gates["first"].set()
        until(lambda: shop.gone(first))
        with pytest.raises(RunNotFound):
            first.status()
        assert run.state is State.RUNNING
        if resumed:
            assert run.resume()
        shop.gates["second"].set()
        until(lambda: shop.saw)
        assert shop.saw == ["first", "given", "second"]
        assert shop.ran.count("first") == 1


# --- resumed while somebody waits -----------------------------------------------------------------


@pytest.mark.parametrize("get", ["get", "aget"])
def test_who_waits_for_a_run_that_is_resumed_meanwhile_waits_on(shop: Shop, get: str) -> None:
    """An ``on_death`` that resumes the run comes between the end and the look at the results."""
    failed = threading.Event()

    @shop.app.task(name="fail_once")
    def fail_once() -> str:
        if not failed.is_set():
            failed.set()
            raise ValueError("once")
        return "done"

    def resumed(state: State | None) -> State | None:
        if state is State.FAILED:
            assert run.resume()
        return state

    async def wait_async(usual: Callable[..., Any], *args: Any) -> State | None:
        return resumed(await usual(*args))

    shop.around("wait", lambda usual, *args: resumed(usual(*args)))
    shop.around("wait_async", wait_async)
    run = Clutch(fail_once.s(), app=shop.app).engage()
    found = run.get(timeout=LONG) if get == "get" else asyncio.run(run.aget(timeout=LONG))
    assert found == ["done"]
