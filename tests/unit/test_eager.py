"""What only eager mode has. What it has in common with workers is in `tests/behaviour`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group

from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    parallel,
    previous_results,
    series,
)
from celery_clutch.extend.plugins import forget_runtime, runtime
from celery_clutch.sweep import sweep

from .conftest import make_app


class World:
    """An eager app, its tasks, and what they did."""

    def __init__(self, **conf: Any) -> None:
        self.app = make_app(task_always_eager=True, **{"task_eager_propagates": False, **conf})
        self.ran: list[Any] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.failing: Counter[Any] = Counter()
        self._define()

    def _define(self) -> None:
        world, task = self, self.app.task

        def fail_if_due(key: Any) -> None:
            world.ran.append(key)
            if world.failing[key] > 0:
                world.failing[key] -= 1
                raise ValueError(f"{key} fails")

        @task(name="auto", autoretry_for=(ValueError,), max_retries=3, default_retry_delay=0)
        def auto(key: str) -> None:
            fail_if_due(key)

        @task(name="give", bind=True)
        def give(self: ClutchTask, value: Any = None) -> Any:
            world.ran.append(value)
            return value

        @task(name="seen", bind=True)
        def seen(self: ClutchTask, *args: Any) -> Any:
            return [*args, self.previous_results]

        @task(name="fragile")
        def fragile(key: str) -> str:
            fail_if_due(key)
            return f"{key} is well"

        @task(name="retried", bind=True, max_retries=3)
        def retried(self: ClutchTask, key: str) -> str:
            try:
                fail_if_due(key)
            except ValueError as exc:
                raise self.retry(exc=exc, countdown=0) from exc
            return f"{key} is well"

        @task(name="nesting", bind=True)
        def nesting(self: ClutchTask) -> str:
            Clutch(world.give.s("inner"), parent=self).engage()
            return "outer"

        @task(name="replaced", bind=True)
        def replaced(self: ClutchTask) -> Any:
            return self.replace(world.give.s("instead"))

        @task(name="plain", base=Task)
        def plain(x: int) -> int:
            return x

        @task(name="tell")
        def tell(status: dict[str, Any], kind: str) -> None:
            world.told.append((kind, status))

        self.auto, self.plain, self.give, self.seen = auto, plain, give, seen
        self.fragile, self.retried, self.tell = fragile, retried, tell
        self.nesting, self.replaced = nesting, replaced

    def handlers(self) -> dict[str, Any]:
        """All three handlers, telling."""
        kinds = ("on_failure", "on_death", "on_success")
        return {kind: self.tell.s(kind) for kind in kinds}

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    forget_runtime(world.app)


@pytest.fixture(params=[False, True], ids=["kept", "propagated"])
def any_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """With both values of ``task_eager_propagates``."""
    world = World(task_eager_propagates=request.param)
    yield world
    forget_runtime(world.app)


def names(status: Any) -> dict[str, str]:
    return {failure.address: failure.exception for failure in status.failures}


# --- previous results ---------------------------------------------------------------------


def test_previous_results_are_read_lazily_and_once(any_world: World) -> None:
    @any_world.app.task(name="twice", bind=True)
    def twice(self: ClutchTask) -> bool:
        return self.previous_results is self.previous_results is previous_results()

    assert series(any_world.give.s([1]), twice).engage().get() == [True]


# --- callbacks ----------------------------------------------------------------------------


def test_a_task_as_handler_gets_the_status(any_world: World) -> None:
    got: list[Any] = []

    @any_world.app.task(name="only")
    def only(status: dict[str, Any]) -> None:
        got.append(status["state"])

    Clutch(any_world.give, on_success=only).engage()
    assert got == ["SUCCEEDED"]


# --- task_eager_propagates ----------------------------------------------------------------


def test_what_succeeds_is_the_same_where_errors_are_propagated(any_world: World) -> None:
    w = any_world
    branches = (w.give.s(1), series(w.nesting, w.seen), w.replaced, w.plain.s(2))
    run = Clutch(w.give.s(0), parallel(*branches), w.seen, **w.handlers()).engage()
    assert run.get() == [[[1, [["outer"]], "instead", 2]]]
    wide = series(parallel((w.give.s(i) for i in range(150)), max_concurrency=9), w.seen).engage()
    assert wide.get() == [[list(range(150))]]
    assert w.kinds() == ["on_success"]


def test_a_failure_is_propagated_and_kept() -> None:
    world = World(task_eager_propagates=True)
    world.failing["x"] = 1
    clutch = Clutch(world.fragile.s("x"), world.give, id="mine", **world.handlers())
    with pytest.raises(ValueError, match="x fails"):
        clutch.engage()
    run = ClutchResult("mine", world.app)
    assert run.failed()
    assert names(run.status()) == {"0": "ValueError"}
    assert sorted(world.kinds()) == ["on_death", "on_failure"]


@pytest.mark.parametrize("task", ["retried", "auto"])
def test_retries_happen_where_errors_are_propagated(task: str) -> None:
    world = World(task_eager_propagates=True)
    world.failing["x"] = 2
    step = getattr(world, task).s("x")
    assert series(step, world.give.s(1)).engage().get() == [1]


def test_the_last_error_is_propagated_when_retries_are_exhausted() -> None:
    world = World(task_eager_propagates=True)
    world.failing["x"] = 99
    with pytest.raises(ValueError, match="x fails"):
        Clutch(world.retried.s("x"), id="mine").engage()
    assert ClutchResult("mine", world.app).failed()


def test_a_plain_tasks_failure_is_propagated_and_kept() -> None:
    world = World(task_eager_propagates=True)

    @world.app.task(name="bad", base=Task)
    def bad() -> None:
        raise KeyError("bad")

    with pytest.raises(KeyError):
        Clutch(bad, id="mine").engage()
    assert ClutchResult("mine", world.app).failed()


@pytest.mark.parametrize(
    ("tries", "wins"),
    [
        *((tries, True) for tries in (1, 2, 3)),
        *((tries, False) for tries in (1, 2, 3)),
    ],
)
def test_a_plain_tasks_retries_where_errors_are_propagated(tries: int, wins: bool) -> None:
    world = World(task_eager_propagates=True)

    @world.app.task(name="tries", base=Task, bind=True, max_retries=tries)
    def attempt(self: Task) -> str:
        world.ran.append(self.request.retries)
        if wins and self.request.retries == tries:
            return "at last"
        raise self.retry(exc=ValueError("not yet"), countdown=0)

    clutch = Clutch(attempt, id="mine", **world.handlers())
    if wins:
        assert clutch.engage().get() == ["at last"]
    else:
        with pytest.raises(ValueError, match="not yet"):
            clutch.engage()
        assert ClutchResult("mine", world.app).failed()
    assert world.ran == list(range(tries + 1))
    assert world.kinds() == ["on_failure", "on_success" if wins else "on_death"]


def test_a_message_and_a_traceback_are_bounded_and_printable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest-xdist cannot pass on what Celery logs here.
    monkeypatch.setattr(logging.getLogger("celery.app.trace"), "disabled", True)

    @world.app.task(name="loud")
    def loud() -> None:
        raise ValueError("\ud800" + "x" * 100_000)

    (failure,) = Clutch(loud).engage().failures()
    assert len(failure.message) <= 1000
    assert len(failure.traceback) <= 4000
    assert failure.message.startswith("\\ud800xxx")


# --- replace ------------------------------------------------------------------------------


def test_replace_by_an_empty_chain_fails_as_in_celery(world: World) -> None:
    @world.app.task(name="replaced", bind=True)
    def replaced(self: ClutchTask) -> Any:
        return self.replace(chain())

    run = Clutch(replaced, world.give.s(1)).engage()
    assert names(run.status()) == {"0": "celery.exceptions.ImproperlyConfigured"}


def test_add_to_chord_is_refused_in_a_job(world: World) -> None:
    @world.app.task(name="adding", bind=True)
    def adding(self: ClutchTask) -> Any:
        return self.add_to_chord(world.give.s("x"))

    run = series(parallel(adding, world.give.s(1)), world.give.s(2)).engage()
    (failure,) = run.failures()
    assert failure.exception == "celery_clutch.errors.BuildError"
    assert "self.branches.add(...)" in failure.message
    assert "Clutch(parent=self)" in failure.message


def test_errbacks_of_a_chord_are_called_once_in_each_generation(world: World) -> None:
    @world.app.task(name="told")
    def told(request: Any, exc: Any, traceback: Any) -> None:
        world.ran.append(str(exc))

    sig = chord([world.fragile.s("x"), world.fragile.s("y")], world.give.s())
    sig.link_error(told.s())
    world.failing.update(x=2, y=1)
    run = Clutch.from_canvas(sig).engage()
    assert run.failed()
    # When all of the header has ended, as in Celery, and of the first that has failed.
    assert [each.partition(" ")[0] for each in world.ran] == ["x", "y", "Dependency"]
    assert "x fails" in world.ran[2]
    assert run.resume()
    assert [each.partition(" ")[0] for each in world.ran[3:]] == ["x", "y", "Dependency"]


def test_replace_outside_a_run_is_celerys_own(any_world: World) -> None:
    assert any_world.replaced.apply().get() == "instead"


# --- canvas -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.args.s(1),
        lambda w: chain(w.args.s(1), w.args.s(2), w.args.si(3), w.args.s(4)),
        lambda w: chain(w.args.s(0), w.args.s(1, x=2)),
        lambda w: chord([w.args.s(1), w.args.s(2)], w.args.s(3)),
        lambda w: chord([w.args.s(1), w.args.s(2)], w.args.si(3)),
        lambda w: chord([w.args.s(1)], w.args.s(2)),
        lambda w: chain(w.args.s(1), group(w.args.s(2), w.args.si(3)), w.args.s(4)),
        lambda w: chain(group([w.args.s(1)]), w.args.s(2)),
        lambda w: group([w.args.s(1)]) | w.args.s(2),
        lambda w: chord([w.args.s(1), w.args.s(2)], chain(w.args.s(3), w.args.s(4))),
        lambda w: chain(group(chain(w.args.s(1), w.args.s(2)), w.args.s(3)), w.args.s(4)),
        lambda w: chord([chord([w.args.s(1), w.args.s(2)], w.args.s(3)), w.args.s(4)], w.args.s(5)),
        lambda w: chain(w.args.s(0), chord([w.args.s(1), w.args.s(2)], w.args.s(3)), w.args.s(4)),
        lambda w: chain(w.args.s(0), chain(w.args.s(1), w.args.s(2)), w.args.s(3)),
        lambda w: w.args.map([1, 2]),
        lambda w: w.args.starmap([(1, 2), (3, 4)]),
        lambda w: chain(w.args.s(0), w.args.map([1, 2])),
        lambda w: group(w.args.s(1), w.args.s(2)),
        lambda w: chain(w.args.s(1), group(w.args.s(2), w.args.si(3))),
        lambda w: group(chain(w.args.s(1), w.args.s(2)), w.args.s(3)),
        lambda w: chord([w.args.s(1), w.args.s(2)], group(w.args.s(3), w.args.s(4))),
        lambda w: group(w.args.s(i) for i in range(3)),
        lambda w: chain(chain(w.args.s(0), group(w.args.s(1), w.args.s(2))), w.args.s(3)),
        lambda w: group(group(w.args.s(1), w.args.s(2)), w.args.s(3)),
        lambda w: chord([group(w.args.s(1), w.args.s(2)), w.args.s(3)], w.args.s(4)),
    ],
)
@pytest.mark.parametrize("base", [None, Task], ids=["clutch", "plain"])
def test_from_canvas_gives_what_celery_gives(base: Any, make: Callable[[Any], Any]) -> None:
    world = World(task_eager_propagates=True)

    @world.app.task(name="args", **({"base": base} if base else {}))
    def args(*args: Any, **kwargs: Any) -> str:
        # A name and not a structure: two that agree have been given the same.
        return f"args({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in kwargs.items())])})"

    world.args = args  # type: ignore[attr-defined]
    by_celery = make(world).apply().get()
    found = Clutch.from_canvas(make(world), app=world.app).engage().get()
    assert found in ([by_celery], by_celery)


# --- in a job -----------------------------------------------------------------------------


def test_a_job_may_call_its_own_task_as_a_function(any_world: World) -> None:
    @any_world.app.task(name="factorial", bind=True)
    def factorial(self: ClutchTask, n: int) -> int:
        return n * self(n - 1) if n > 1 else 1

    run = series(factorial.s(5), any_world.seen).engage()
    assert run.get() == [[[120]]]
    assert run.status().done == 2


def test_a_job_may_send_other_tasks(any_world: World) -> None:
    @any_world.app.task(name="sender", bind=True)
    def sender(self: ClutchTask) -> Any:
        return any_world.seen.delay(1).get(disable_sync_subtasks=False)

    # It is no job of the run, and has no previous results.
    assert series(any_world.give.s(9), sender).engage().get() == [[1, []]]


def test_links_of_a_job_get_its_value(any_world: World) -> None:
    got: list[Any] = []

    @any_world.app.task(name="linked")
    def linked(value: Any, *args: Any) -> None:
        got.append((value, *args))

    Clutch(any_world.give.s(5).set(link=[linked.s("x")]), any_world.give).engage()
    assert got == [(5, "x")]


def test_own_headers_of_a_job_are_kept(any_world: World) -> None:
    @any_world.app.task(name="headed", bind=True)
    def headed(self: ClutchTask) -> Any:
        return self.request.headers["mine"]

    assert Clutch(headed.s().set(headers={"mine": "yes"})).engage().get() == ["yes"]


def test_runs_of_two_apps_do_not_meet() -> None:
    one, two = World(), World()
    run = Clutch(one.give.s(1), id="same").engage()
    assert Clutch(two.give.s(2), id="same").engage().get() == [2]
    assert run.get() == [1]


def test_the_store_of_eager_mode_is_in_memory() -> None:
    app = Celery("bare", task_cls=ClutchTask, set_as_current=False)
    app.conf.update(task_always_eager=True, broker_url="amqp://nowhere", result_backend=None)

    @app.task(name="one", shared=False)
    def one() -> int:
        return 1

    # No setting at all is needed to unit-test a clutch, a barrier included.
    assert series(parallel(one, one), one).engage().get() == [1]


# --- the end ------------------------------------------------------------------------------


def test_a_copy_of_an_end_has_its_id_and_that_of_another_generation_does_not(world: World) -> None:
    told: list[tuple[str, int]] = []

    @world.app.task(name="end", bind=True)
    def end(self: Task, status: dict[str, Any]) -> None:
        told.append((self.request.id, status["generation"]))

    @world.app.task(name="dies")
    def dies() -> None:
        raise ValueError

    run = Clutch(dies, on_end=end).engage()
    runtime(world.app).store.remind(run.id, {"death 0": 0.0})  # as if nobody knew that it was sent
    assert sweep(world.app, grace=0.0) == [run.id]
    assert run.resume()
    assert [generation for _, generation in told] == [0, 0, 1]
    first, copy, second = (id for id, _ in told)
    assert first == copy != second
