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
from celery_clutch.testing import embedded

from .conftest import make_app


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


@pytest.mark.parametrize("exc", [ValueError, ValueError("not yet"), "not yet", None])
def test_what_a_retry_takes_for_its_reason_is_what_celery_takes(eager: Celery, exc: Any) -> None:
    @eager.task(name="twice", bind=True)
    def twice(self: ClutchTask) -> int:
        if self.request.retries == 0:
            raise self.retry(exc=exc, countdown=0)
        return 1 + self.request.retries

    run = Clutch(twice.s()).engage()
    assert (run.get(), run.failures()) == ([2], [])


# --- outside a run ------------------------------------------------------------------------


def test_a_clutch_task_is_celerys_task_outside_a_run(look: Any) -> None:
    assert isinstance(look, Task)
    assert look.delay(1).get() == [1, [], [], []]
    assert look.apply((1,)).get() == [1, [], [], []]
    assert look.s(1).apply_async().get() == [1, [], [], []]


def test_headers_may_be_whatever_celery_lets_them_be(eager: Celery) -> None:
    @eager.task(name="headed", bind=True)
    def headed(self: ClutchTask) -> Any:
        return self.request.headers, self.previous_results

    assert headed.apply(headers=123).get() == (123, [])


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


# --- how a task is called -----------------------------------------------------------------


class Context:
    """A web application, as far as tasks need one."""

    open = 0

    def __enter__(self) -> None:
        self.open += 1

    def __exit__(self, *_: Any) -> None:
        self.open -= 1


context = Context()


class FlaskTask(ClutchTask):
    """As Flask documents it: ``__call__`` calls ``run``, and not the class above."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with context:
            return self.run(*args, **kwargs)


class InContext:
    """The same as a mixin."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with context:
            return self.run(*args, **kwargs)  # type: ignore[attr-defined]


class MixedTask(InContext, ClutchTask):
    abstract = True


class Above(FlaskTask):
    """Calls the class above, which does not call the one above it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with context:
            return super().__call__(*args, **kwargs)


@pytest.mark.parametrize(("base", "depth"), [(FlaskTask, 1), (MixedTask, 1), (Above, 2)])
def test_a_base_class_whose_call_does_not_call_ours(base: Any, depth: int) -> None:
    app = make_app()
    seen: list[int] = []

    @app.task(name="enter", base=base, bind=True)
    def enter(self: ClutchTask, number: int) -> list[Any]:
        seen.append(context.open)
        if number < 0 and self.request.retries == 0:
            raise self.retry(exc=ValueError("not yet"), countdown=0)
        return [number, *self.previous_results]

    with embedded(app):
        run = Clutch(enter.s(1), enter.s(-2)).engage()
        assert run.get(timeout=10) == [[-2, [1]]]
    assert seen == [depth] * 3
    assert enter(3) == [3]
    assert context.open == 0


def test_what_such_a_call_raises_is_a_failure_of_the_job(eager: Celery) -> None:
    class NoContext(ClutchTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise LookupError("no context")

    @eager.task(name="never", base=NoContext)
    def never() -> None: ...

    (failure,) = Clutch(never).engage().failures()
    assert (failure.exception, failure.message) == ("LookupError", "no context")


@pytest.mark.parametrize("in_a_run", [True, False])
def test_a_task_that_calls_itself_sees_its_own_arguments(in_a_run: bool) -> None:
    app = make_app()

    @app.task(name="count_down", bind=True)
    def count_down(self: ClutchTask, number: int) -> list[Any]:
        below = self(number - 1) if number else []
        return [list(self.request.args or ()), *below]

    with embedded(app):
        if in_a_run:
            (value,) = Clutch(count_down.s(2)).engage().get(timeout=10)
        else:
            value = count_down.delay(2).get(timeout=10)
    assert value == [[2], [1], [0]]


@pytest.mark.parametrize("foreign", ["left", 5, ["a"], {"pedal": "left"}, {"run": "fast"}])
def test_a_header_of_that_name_can_be_somebody_elses(foreign: Any) -> None:
    app = make_app()

    @app.task(name="drive", bind=True)
    def drive(self: ClutchTask, number: int) -> list[Any]:
        return [number, self.previous_results, dict(self.data)]

    with embedded(app):
        result = drive.apply_async((1,), headers={"clutch": foreign})
        assert result.get(timeout=10) == [1, [], {}]
        with pytest.raises(TypeError):
            drive.apply_async((1, 2), headers={"clutch": foreign})
        # In a run the header is ours.
        run = Clutch(drive.s(2).set(headers={"clutch": foreign})).engage()
        assert run.get(timeout=10) == [[2, [], {}]]


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
