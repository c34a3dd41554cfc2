"""ClutchTask outside a run, and what is said of an exception."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from celery import Celery, Task
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, ClutchTask, previous_results
from celery_clutch.runtime.handlers import describe
from celery_clutch.runtime.task import current_attempt


@pytest.fixture
def look(eager: Celery) -> Any:
    """A task that says what it sees of a run."""

    @eager.task(name="look", bind=True)
    def look(self: ClutchTask, *args: Any) -> list[Any]:
        return [
            *args,
            self.previous_results,
            list(self.iter_previous_results()),
            previous_results(),
        ]

    return look


# --- outside a run ------------------------------------------------------------------------


def test_a_clutch_task_is_celerys_task_outside_a_run(look: Any) -> None:
    assert isinstance(look, Task)
    assert look.delay(1).get() == [1, [], [], []]
    assert look.apply((1,)).get() == [1, [], [], []]
    assert look.s(1).apply_async().get() == [1, [], [], []]


def test_called_as_a_function_it_is_one(look: Any) -> None:
    assert look(1) == [1, [], [], []]


def test_outside_a_task_there_are_no_previous_results(look: Any) -> None:
    assert previous_results() == []
    assert look.previous_results == []
    assert list(look.iter_previous_results()) == []
    assert current_attempt(look) is None


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_is_at_least_one(look: Any, chunk: int) -> None:
    with pytest.raises(ValueError, match=f"not {chunk}"):
        look.iter_previous_results(chunk)


def test_a_call_outside_a_run_checks_its_arguments(app: Celery) -> None:
    @app.task(name="strict")
    def strict(a: int) -> None: ...

    with pytest.raises(TypeError):
        strict.delay(1, 2)
    with pytest.raises(TypeError):
        strict.apply_async((1, 2), headers={"mine": 1})


def test_other_task_classes_of_an_app_are_left_alone(eager: Celery) -> None:
    @eager.task(name="plain", base=Task)
    def plain() -> str:
        return "plain"

    assert not isinstance(plain, ClutchTask)
    assert plain.delay().get() == "plain"


def test_a_base_class_of_ones_own(eager: Celery) -> None:
    calls: list[Any] = []

    class Logged(ClutchTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return super().__call__(*args, **kwargs)

    @eager.task(name="logged", base=Logged)
    def logged(x: int) -> int:
        return x

    assert Clutch(logged.s(1)).engage().get() == [1]
    assert logged.delay(2).get() == 2
    assert calls == [(1,), (2,)]


def test_a_class_based_task(eager: Celery) -> None:
    class Double(ClutchTask):
        name = "double"

        def run(self, x: int) -> list[Any]:
            return [2 * x, *self.previous_results]

    double = eager.register_task(Double())
    assert Clutch(double.s(1), double.s(2)).engage().get() == [[4, [2]]]


def test_hooks_of_a_task_are_called_in_a_run(eager: Celery) -> None:
    calls: list[str] = []

    class Hooked(ClutchTask):
        abstract = True

        def before_start(self, *_: Any) -> None:
            calls.append("before_start")

        def on_success(self, *_: Any) -> None:
            calls.append("on_success")

        def on_failure(self, *_: Any) -> None:
            calls.append("on_failure")

        def after_return(self, *_: Any) -> None:
            calls.append("after_return")

    @eager.task(name="hooked", base=Hooked)
    def hooked(fail: bool) -> None:
        if fail:
            raise ValueError

    assert Clutch(hooked.s(False)).engage().successful()
    assert calls == ["before_start", "on_success", "after_return"]
    calls.clear()
    assert Clutch(hooked.s(True)).engage().failed()
    assert calls == ["before_start", "on_failure", "after_return"]


# --- describing an exception --------------------------------------------------------------


class Outer:
    class Problem(Exception):
        """Nested, so that its qualified name has a dot."""


def described(exc: BaseException, traceback: Any = None) -> Any:
    return describe(exc, "1.2", "shop.pay", SimpleNamespace(id="abc"), traceback)


def test_a_failure_says_where_and_what() -> None:
    try:
        raise Outer.Problem("no money")
    except Outer.Problem as exc:
        failure = described(exc)
    assert (failure.address, failure.task, failure.task_id) == ("1.2", "shop.pay", "abc")
    assert failure.exception == f"{__name__}.Outer.Problem"
    assert failure.message == "no money"
    assert failure.traceback.endswith("Outer.Problem: no money\n")
    assert "test_a_failure_says_where_and_what" in failure.traceback
    assert (failure.attempt, failure.final) == (1, False)
    assert failure.at.endswith("+00:00")


def test_a_builtin_exception_has_a_bare_name() -> None:
    assert described(KeyError("x")).exception == "KeyError"
    assert described(KeyError("x")).message == "'x'"


def test_a_traceback_may_be_given() -> None:
    assert described(KeyError("x"), "as text").traceback == "as text"
    try:
        raise KeyError("x")
    except KeyError:
        trace = sys.exc_info()[2]
    assert "in test_a_traceback_may_be_given" in described(KeyError("y"), trace).traceback


def test_the_cause_is_in_the_traceback() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as cause:
            raise ValueError("second") from cause
    except ValueError as exc:
        failure = described(exc)
    assert "KeyError: 'first'" in failure.traceback


@given(st.text(max_size=3000))
def test_a_failure_is_always_json_and_bounded(text: str) -> None:
    failure = described(ValueError(text), text * 3)
    assert len(failure.message) <= 1000
    assert len(failure.traceback) <= 4000
    orjson.dumps(failure.to_dict())


def test_the_start_of_a_message_and_the_end_of_a_traceback_are_kept() -> None:
    failure = described(ValueError("start" + "x" * 2000), "x" * 9000 + "end")
    assert failure.message.startswith("start")
    assert failure.traceback.endswith("end")


def test_an_exception_whose_str_fails(eager: Celery) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @eager.task(name="odd")
    def odd() -> None:
        raise Odd

    run = Clutch(odd).engage()
    assert run.failed()
    assert run.failures()[0].exception.endswith("Odd")
