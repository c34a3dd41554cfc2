"""Eager mode: whole runs in this process, so that users can unit-test theirs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, signature
from celery.exceptions import Ignore, Reject
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    State,
    parallel,
    previous_results,
    series,
)
from celery_clutch.errors import (
    ClutchCancelled,
    ClutchFailed,
    GetInsideTask,
    MissingResult,
    NestedClutchFailed,
    NonJSONResult,
    ResultTooLarge,
    RunNotFound,
)
from celery_clutch.extend.plugins import forget_runtime
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Scope, Series

from .conftest import make_app
from .reference import enclosing, evaluate, reporter, value_of
from .strategies import plans


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

        @task(
            name="job", bind=True, autoretry_for=(ValueError,), max_retries=3, default_retry_delay=0
        )
        def job(self: ClutchTask) -> str:
            at = self.request.headers["clutch"]["at"]
            fail_if_due(at)
            return value_of(at, self.previous_results)

        @task(name="plain", base=Task, bind=True)
        def plain(self: Task) -> str:
            at = self.request.headers["clutch"]["at"]
            world.ran.append(at)
            return value_of(at, previous_results())

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
        def nesting(self: ClutchTask, *steps: Any, **options: Any) -> str:
            inner = Clutch(parent=self, **options)
            for step in steps:
                inner << world.app.signature(step)
            world.ran.append(inner.engage().id)
            return "outer"

        @task(name="tell")
        def tell(status: dict[str, Any], kind: str) -> None:
            world.told.append((kind, status))

        self.job, self.plain, self.give, self.seen = job, plain, give, seen
        self.fragile, self.retried, self.nesting, self.tell = fragile, retried, nesting, tell

    def handlers(self) -> dict[str, Any]:
        """All three handlers, telling."""
        kinds = ("on_failure", "on_death", "on_success")
        return {kind: self.tell.s(kind) for kind in kinds}

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    def build(self, node: Node, **options: Any) -> Any:
        """*node* composed as a user would."""
        if isinstance(node, Job):
            return self.plain if node.plain else self.job
        steps = [self.build(child) for child in plan.children(node)]
        return parallel(*steps) if isinstance(node, Parallel) else Clutch(*steps, **options)


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


# --- every shape --------------------------------------------------------------------------

unscoped = plans(scope=st.just(Scope()), max_leaves=25)


@given(unscoped)
def test_any_plan_gives_what_it_means(root: Series) -> None:
    world = World()
    wanted = evaluate(root)
    run = world.build(root, app=world.app, **world.handlers()).engage()
    assert run.state is State.SUCCEEDED
    assert run.get() == run.results() == wanted.last
    for at, _ in plan.walk(root):
        assert run.results(at) == wanted.values[at]
    status = run.status()
    assert (status.total, status.done, status.failing, status.dead) == (root.size, root.size, 0, 0)
    assert sorted(world.ran) == sorted(wanted.previous)
    assert world.kinds() == (["on_success"] if root.size else [])


@given(unscoped, st.data())
def test_a_step_with_retries_is_reported_once(root: Series, data: st.DataObject) -> None:
    world = World()
    jobs = [at for at, node in plan.walk(root) if isinstance(node, Job) and not node.plain]
    failing = data.draw(st.lists(st.sampled_from(jobs), unique=True)) if jobs else []
    for at in failing:
        world.failing[at] = data.draw(st.integers(1, 2))
    attempts = {at: world.failing[at] + 1 for at in failing}
    wanted = evaluate(root)
    run = world.build(root, app=world.app, **world.handlers()).engage()
    assert run.get() == wanted.last
    steps = [status["step"] for kind, status in world.told if kind == "on_failure"]
    assert Counter(steps) == Counter({(*enclosing(root, at), at)[0] for at in failing})
    assert Counter(world.ran) == Counter({at: attempts.get(at, 1) for at in wanted.previous})
    assert world.kinds().count("on_success") == (1 if root.size else 0)
    assert "on_death" not in world.kinds()


@given(unscoped, st.data())
def test_a_dead_job_stops_what_follows_and_resume_goes_on(
    root: Series, data: st.DataObject
) -> None:
    world = World()
    wanted = evaluate(root)
    jobs = [at for at, node in plan.walk(root) if isinstance(node, Job) and not node.plain]
    if not jobs:
        return
    dead = data.draw(st.sampled_from(jobs))
    world.failing[dead] = 4  # as often as it is tried
    run = world.build(root, app=world.app, **world.handlers()).engage()
    assert run.failed()
    assert [failure.address for failure in run.failures()] == [dead]
    assert run.failures()[0].final
    assert run.failures()[0].attempt == 4
    assert sorted(set(world.kinds())) == ["on_death", "on_failure"]
    assert len(world.told) == 2
    # Branches beside it have run, steps after it have not.
    for at in world.ran:
        assert not _follows(root, at, dead)
    first = list(world.ran)
    assert run.resume() is True
    assert run.get() == wanted.last
    for at, _ in plan.walk(root):
        assert run.results(at) == wanted.values[at]
    # Nothing that has a result ran again.
    assert Counter(first + world.ran[len(first) :]) == Counter(
        {at: 5 if at == dead else 1 for at in wanted.previous}
    )
    assert run.resume() is False
    assert run.status().generation == 1


@given(plans(max_leaves=25, built=True), st.data())
def test_handlers_are_those_of_the_nearest_clutch(root: Series, data: st.DataObject) -> None:
    world = World()
    jobs = [at for at, node in plan.walk(root) if isinstance(node, Job) and not node.plain]
    failing = data.draw(st.lists(st.sampled_from(jobs), unique=True)) if jobs else []
    world.failing.update(dict.fromkeys(failing, 1))
    run = _composed(world, root, "", app=world.app).engage()
    assert run.get() == evaluate(root).last
    expected = Counter()
    for step, teller in {reporter(root, at) for at in failing}:
        if teller is not None:
            expected[f"on_failure of {teller}", step] += 1
    for at, node in [("", root), *plan.walk(root)]:
        if isinstance(node, Series) and node.scope.on_success and root.size:
            expected[f"on_success of {at}", None] += 1
    assert Counter((kind, status["step"]) for kind, status in world.told) == expected


def _composed(world: World, node: Node, at: str, **options: Any) -> Any:
    """*node* as a user would compose it, each handler telling whose it is."""
    if isinstance(node, Job):
        return world.plain if node.plain else world.job
    below = enumerate(plan.children(node))
    steps = [_composed(world, child, plan.join(at, index)) for index, child in below]
    if isinstance(node, Parallel):
        return parallel(*steps)
    handled = ("on_failure", "on_success", "on_death")
    kinds = [kind for kind in handled if getattr(node.scope, kind)]
    told = {kind: world.tell.s(f"{kind} of {at}") for kind in kinds}
    return Clutch(*steps, queue=node.scope.queue, **told, **options)


def _follows(root: Series, at: str, dead: str) -> bool:
    """Whether *at* is in a step after the one that *dead* is in."""
    mine, other = at.split("."), dead.split(".")
    node: Node = root
    for left, right in zip(mine, other, strict=False):
        if left != right:
            return isinstance(node, Series) and int(left) > int(right)
        node = plan.children(node)[int(left)]
    return False


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda w: series(w.give.s(1), w.give.s(2)), [2]),
        (lambda w: parallel(w.give.s(1), w.give.s(2)), [1, 2]),
        (lambda w: parallel(w.give.s(1)), [1]),
        (lambda w: series(parallel(w.give.s(i) for i in range(3)), w.seen), [[[0, 1, 2]]]),
        (lambda w: series(w.give.s(1), parallel(w.seen, w.seen)), [[[1]], [[1]]]),
        (
            lambda w: series(
                parallel(series(w.give.s(1), w.seen), parallel(w.give.s(2), w.give.s(3))), w.seen
            ),
            [[[[[1]], [2, 3]]]],
        ),
        (lambda w: series(w.give, w.seen), [[[None]]]),
    ],
)
def test_shapes(any_world: World, make: Callable[[World], Clutch], expected: Any) -> None:
    assert make(any_world).engage().get() == expected


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}])
def test_empty_values_are_results(any_world: World, value: Any) -> None:
    run = series(any_world.give.s(value), any_world.seen).engage()
    assert run.get() == [[[value]]]
    assert run.results("0") == value


@pytest.mark.parametrize("width", [99, 150, 1000])
def test_wide_parallels_take_more_than_a_page(any_world: World, width: int) -> None:
    run = series(parallel(any_world.give.s(i) for i in range(width)), any_world.seen).engage()
    assert run.get() == [[list(range(width))]]


def test_long_series_take_more_than_a_page(any_world: World) -> None:
    run = series(any_world.give.s(0), *[any_world.seen] * 100).engage()
    depth, value = 0, run.get()
    while isinstance(value, list):
        depth, value = depth + 1, value[0]
    assert depth == 1 + 2 * 100
    assert run.results("99") is not None


def test_results_by_address_of_what_is_not_there(world: World) -> None:
    world.failing["x"] = 1
    run = series(world.give.s(1), world.fragile.s("x"), world.give.s(2)).engage()
    assert run.results("0") == 1
    with pytest.raises(MissingResult, match="job 1 of run"):
        run.results("1")
    for address in ("3", "0.0", "", "x", "-1"):
        with pytest.raises(LookupError, match="no address"):
            run.results(address)


@pytest.mark.parametrize("address", ["²", "0.²"])
def test_results_at_an_address_with_an_odd_digit(world: World, address: str) -> None:
    with pytest.raises(LookupError, match="no address"):
        parallel(world.give).engage().results(address)


# --- previous results ---------------------------------------------------------------------


def test_previous_results_is_a_list_in_definition_order(any_world: World) -> None:
    clutch = Clutch(any_world.seen)
    with clutch.parallel():
        for index in range(12):  # "10" comes after "9"
            clutch << any_world.give.s(index)
    clutch << any_world.seen
    run = clutch.engage()
    assert run.results("0") == [[]]
    assert run.get() == [[list(range(12))]]


def test_previous_results_without_bind(any_world: World) -> None:
    @any_world.app.task(name="unbound")
    def unbound() -> list[Any]:
        return previous_results()

    assert series(any_world.give.s(7), unbound).engage().get() == [[7]]


def test_previous_results_are_read_lazily_and_once(any_world: World) -> None:
    @any_world.app.task(name="twice", bind=True)
    def twice(self: ClutchTask) -> bool:
        return self.previous_results is self.previous_results is previous_results()

    assert series(any_world.give.s([1]), twice).engage().get() == [True]


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_iter_previous_results(any_world: World, chunk: int) -> None:
    @any_world.app.task(name="iterate", bind=True)
    def iterate(self: ClutchTask) -> list[Any]:
        return list(self.iter_previous_results(chunk))

    run = series(parallel(any_world.give.s(i) for i in range(5)), iterate).engage()
    assert run.get() == [list(range(5))]
    assert series(iterate).engage().get() == [[]]


# --- callbacks ----------------------------------------------------------------------------


def test_on_success_is_told_once_at_the_end(any_world: World) -> None:
    run = Clutch(any_world.give, any_world.give, name="n", **any_world.handlers()).engage()
    ((kind, status),) = any_world.told
    assert kind == "on_success"
    assert (status["id"], status["name"], status["state"]) == (run.id, "n", "SUCCEEDED")
    assert (status["done"], status["total"], status["step"]) == (2, 2, None)


def test_an_immutable_handler_gets_its_own_arguments_alone(any_world: World) -> None:
    Clutch(any_world.give, on_success=any_world.tell.si({"mine": 1}, "x")).engage()
    assert any_world.told == [("x", {"mine": 1})]


def test_a_task_as_handler_gets_the_status(any_world: World) -> None:
    got: list[Any] = []

    @any_world.app.task(name="only")
    def only(status: dict[str, Any]) -> None:
        got.append(status["state"])

    Clutch(any_world.give, on_success=only).engage()
    assert got == ["SUCCEEDED"]


def test_on_failure_comes_at_the_first_attempt(world: World) -> None:
    world.failing["x"] = 2
    run = series(world.give, world.retried.s("x"), world.give.s(9))
    run.on_failure = world.tell.s("on_failure")
    assert run.engage().get() == [9]
    ((_, status),) = world.told
    assert (status["state"], status["step"], status["failing"], status["dead"]) == (
        *("RUNNING", "1"),
        *(1, 0),
    )
    (failure,) = status["failures"]
    assert (failure["address"], failure["task"], failure["attempt"]) == ("1", "retried", 1)
    assert (failure["exception"], failure["message"]) == ("ValueError", "x fails")
    assert failure["final"] is False
    assert "x fails" in failure["traceback"]


def test_on_failure_of_a_parallel_waits_for_all_members(world: World) -> None:
    world.failing.update(x=1, y=1)
    clutch = parallel(world.fragile.s("x"), world.give, world.retried.s("y"))
    clutch.on_failure = world.tell.s("on_failure")
    clutch.engage()
    ((_, status),) = world.told
    assert status["step"] == "0"
    assert [failure["address"] for failure in status["failures"]] == ["0.0", "0.2"]


def test_on_death_comes_when_retries_are_exhausted(world: World) -> None:
    world.failing["x"] = 99
    run = Clutch(world.retried.s("x"), world.give, **world.handlers()).engage()
    assert world.kinds() == ["on_failure", "on_death"]
    status = world.told[-1][1]
    assert (status["state"], status["dead"], status["failures"][0]["attempt"]) == ("FAILED", 1, 4)
    assert run.failed()


def test_a_handler_that_fails_harms_nothing(any_world: World) -> None:
    @any_world.app.task(name="broken")
    def broken(status: dict[str, Any]) -> None:
        raise RuntimeError("the handler is broken")

    elsewhere = signature("not.registered", app=any_world.app)
    for handler in (broken, elsewhere):
        run = Clutch(any_world.give.s(1), on_success=handler).engage()
        assert run.get() == [1]


def test_nested_scopes_tell_their_own(world: World) -> None:
    world.failing.update(x=1, y=1)
    inner = Clutch(
        world.retried.s("x"),
        on_failure=world.tell.s("inner failure"),
        on_success=world.tell.s("inner success"),
    )
    Clutch(inner, world.retried.s("y"), **world.handlers()).engage()
    assert world.kinds() == ["inner failure", "inner success", "on_failure", "on_success"]


def test_a_clutch_with_a_handler_of_its_own_inside_a_parallel(world: World) -> None:
    world.failing.update(x=1, y=1, z=1)
    inner = Clutch(world.retried.s("x"), on_failure=world.tell.s("inner"), queue="q")
    with inner.parallel():
        inner << world.retried.s("y") << world.give
    clutch = parallel(inner, world.retried.s("z"))
    clutch.on_failure = world.tell.s("outer")
    clutch.engage()
    # x is a step by itself, y's parallel is the inner one's, z's the outer one's.
    assert [(kind, status["step"]) for kind, status in world.told] == [
        *[("inner", "0.0.0"), ("inner", "0.0.1"), ("outer", "0")],
    ]


def test_a_nested_scope_inherits_on_failure_and_on_death(world: World) -> None:
    world.failing["x"] = 99
    inner = Clutch(world.retried.s("x"), queue="slow")
    Clutch(world.give, inner, **world.handlers()).engage()
    assert world.kinds() == ["on_failure", "on_death"]


# --- failure states -----------------------------------------------------------------------


def test_a_failure_is_kept(world: World) -> None:
    world.failing["x"] = 1
    run = series(world.give.s(1), world.fragile.s("x"), world.give.s(2)).engage()
    assert (run.state, run.ready(), run.failed(), run.successful()) == ("FAILED", True, True, False)
    assert world.ran == [1, "x"]
    status = run.status()
    assert (status.done, status.total, status.failing, status.dead) == (1, 3, 0, 1)
    with pytest.raises(ClutchFailed, match="fragile at 1: ValueError: x fails") as caught:
        run.get()
    assert [failure.address for failure in caught.value.failures] == ["1"]
    assert run.get(propagate=False) == [None]


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


@pytest.mark.parametrize("task", ["retried", "job"])
def test_retries_happen_where_errors_are_propagated(task: str) -> None:
    world = World(task_eager_propagates=True)
    world.failing.update({"x": 2, "0": 2})
    step = world.job if task == "job" else world.retried.s("x")
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
        pytest.param(1, False),
        (2, False),
        pytest.param(3, False),
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


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Ignore("no"), "celery_clutch.errors.JobLost"),
        (Reject("no"), "celery_clutch.errors.JobLost"),
        (KeyError("no"), "KeyError"),
    ],
)
def test_however_a_job_ends_the_run_does_too(world: World, error: Exception, name: str) -> None:
    @world.app.task(name="end")
    def end() -> None:
        raise error

    run = Clutch(end, world.give, **world.handlers()).engage()
    assert run.failed()
    assert names(run.status()) == {"0": name}
    assert world.kinds() == ["on_failure", "on_death"]
    assert world.ran == []


def test_a_task_that_nobody_knows_fails_the_run(world: World) -> None:
    run = Clutch(signature("not.registered", app=world.app), world.give, app=world.app).engage()
    assert run.failed()


def test_arguments_that_do_not_fit_fail_the_job(world: World) -> None:
    world.fragile.typing = False  # else `engage` says so
    run = Clutch(world.fragile.s(1, 2, 3)).engage()
    assert names(run.status()) == {"0": "TypeError"}


def test_a_result_json_cannot_carry_fails_the_job_at_once(world: World) -> None:
    @world.app.task(name="odd", autoretry_for=(Exception,), default_retry_delay=0)
    def odd() -> Any:
        world.ran.append("odd")
        return {"x": [1, {2}]}

    run = Clutch(odd).engage()
    (failure,) = run.failures()
    assert failure.exception == f"{NonJSONResult.__module__}.NonJSONResult"
    assert "job 0 " in failure.message
    assert "$['x'][1]" in failure.message
    assert world.ran == ["odd"]  # a retry would give the same


def test_a_result_that_is_too_large_fails_the_job() -> None:
    world = World(clutch_max_result_bytes=1000)
    run = Clutch(world.give.s("x" * 998), world.give.s("x" * 999)).engage()
    (failure,) = run.failures()
    assert failure.address == "1"
    assert failure.exception.endswith(ResultTooLarge.__name__)
    assert "1,001 bytes" in failure.message
    assert "1,000" in failure.message


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


# --- plain tasks --------------------------------------------------------------------------


def test_plain_tasks_are_steps(any_world: World) -> None:
    @any_world.app.task(name="double", base=Task)
    def double(x: int) -> int:
        return 2 * x

    @any_world.app.task(name="given", base=Task)
    def given() -> list[Any]:
        return previous_results()

    run = series(double.s(2), parallel(double.s(3), given), given).engage()
    assert run.results("0") == 4
    assert run.results("1") == [6, [4]]
    assert run.get() == [[6, [4]]]
    assert run.status().total == 4


def test_a_plain_task_known_by_name_alone(any_world: World) -> None:
    @any_world.app.task(name="by.name", base=Task)
    def by_name(x: int) -> int:
        return x + 1

    assert Clutch(signature("by.name", args=(1,), app=any_world.app)).engage().get() == [2]


def test_a_plain_task_that_retries(world: World) -> None:
    @world.app.task(name="tries", base=Task, bind=True, max_retries=3)
    def tries(self: Task) -> str:
        if self.request.retries < 2:
            raise self.retry(exc=ValueError("not yet"), countdown=0)
        return "at last"

    run = Clutch(tries, world.seen, **world.handlers()).engage()
    assert run.get() == [[["at last"]]]
    assert world.kinds() == ["on_failure", "on_success"]


def test_a_plain_task_that_fails(world: World) -> None:
    @world.app.task(name="bad", base=Task)
    def bad() -> None:
        raise KeyError("bad")

    run = Clutch(bad, world.give, **world.handlers()).engage()
    assert names(run.status()) == {"0": "KeyError"}
    assert world.kinds() == ["on_failure", "on_death"]
    assert world.ran == []


def test_a_plain_task_whose_value_json_cannot_carry(world: World) -> None:
    @world.app.task(name="odd", base=Task)
    def odd() -> Any:
        return {1, 2}

    run = Clutch(odd, world.give).engage()
    assert run.failed()
    assert names(run.status())["0"].endswith("NonJSONResult")


# --- nested from a running job ------------------------------------------------------------


def test_a_nested_clutch_runs_before_what_follows(any_world: World) -> None:
    w = any_world
    run = Clutch(w.nesting.s(w.give.s(1), w.give.s(2)), w.give.s(3), w.seen).engage()
    inner, *values = w.ran
    assert values == [1, 2, 3]
    assert run.results("0") == "outer"
    nested = ClutchResult(inner, w.app)
    assert nested.get() == [2]
    assert nested.status().parent == {"run": run.id, "address": "0"}
    assert run.status().total == 3


def test_several_nested_clutches_in_one_job(any_world: World) -> None:
    w = any_world

    @w.app.task(name="many", bind=True)
    def many(self: ClutchTask) -> str:
        for value in (1, 2, 3):
            Clutch(w.give.s(value), parent=self).engage()
        w.ran.append("body")
        return "many"

    assert series(many, w.seen).engage().get() == [[["many"]]]
    assert w.ran[0] == "body"
    assert sorted(w.ran[1:]) == [1, 2, 3]


def test_nested_in_nested(any_world: World) -> None:
    w = any_world
    deepest = w.nesting.s(w.give.s("deep"))
    run = Clutch(w.nesting.s(w.nesting.s(deepest, w.give.s(1)), w.give.s(2)), w.seen).engage()
    assert run.get() == [[["outer"]]]
    assert [value for value in w.ran if value in ("deep", 1, 2)] == ["deep", 1, 2]


def test_nested_in_a_parallel(any_world: World) -> None:
    w = any_world
    branches = [w.nesting.s(w.give.s(i)) for i in range(3)]
    assert series(parallel(branches), w.seen).engage().get() == [[["outer"] * 3]]


def test_an_empty_nested_clutch(any_world: World) -> None:
    assert series(any_world.nesting, any_world.seen).engage().get() == [[["outer"]]]


def test_a_job_that_raises_starts_nothing_nested(world: World) -> None:
    @world.app.task(name="regret", bind=True)
    def regret(self: ClutchTask) -> None:
        run = Clutch(world.give.s("nested"), parent=self).engage()
        world.ran.append(run.id)
        raise ValueError("regret")

    run = Clutch(regret).engage()
    assert names(run.status()) == {"0": "ValueError"}
    (nested,) = world.ran
    with pytest.raises(RunNotFound):
        _ = ClutchResult(nested, world.app).state


def test_a_retry_before_and_after_the_nested_engage(world: World) -> None:
    @world.app.task(name="wavering", bind=True, max_retries=3)
    def wavering(self: ClutchTask) -> str:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        Clutch(world.give.s(f"nested {self.request.retries}"), parent=self).engage()
        if self.request.retries == 1:
            raise self.retry(countdown=0)
        return "done"

    assert series(wavering, world.seen).engage().get() == [[["done"]]]
    assert world.ran == ["nested 2"]


def test_a_nested_failure_fails_the_outer_job(world: World) -> None:
    world.failing["x"] = 1
    run = Clutch(
        world.nesting.s(world.fragile.s("x")), world.give.s("after"), **world.handlers()
    ).engage()
    assert run.failed()
    (failure,) = run.failures()
    assert failure.exception.endswith(NestedClutchFailed.__name__)
    assert "x fails" in failure.message
    assert "after" not in world.ran
    # Of the failure the nested run tells, by the handler it inherits; of the death the outer.
    assert world.kinds() == ["on_failure", "on_death"]
    told = {kind: status["id"] for kind, status in world.told}
    assert told["on_failure"] != run.id
    assert told["on_death"] == run.id


def test_a_nested_run_is_resumed_through_the_job_that_waits(world: World) -> None:
    world.failing["x"] = 1
    run = Clutch(
        world.nesting.s(world.give.s("first"), world.fragile.s("x")), world.give.s("after")
    ).engage()
    assert run.failed()
    nested = ClutchResult(world.ran[0], world.app)
    assert nested.resume() is True
    assert run.get() == ["after"]
    assert nested.get() == ["x is well"]
    assert Counter(world.ran)["first"] == 1
    assert Counter(world.ran)["x"] == 2


def test_a_nested_run_that_fails_again_fails_the_outer_again(world: World) -> None:
    world.failing["x"] = 2
    run = Clutch(world.nesting.s(world.fragile.s("x")), world.give.s("after")).engage()
    assert run.failed()
    run.resume()
    assert run.failed()
    assert "after" not in world.ran
    run.resume()
    assert run.get() == ["after"]


def test_get_inside_a_job_is_refused(world: World) -> None:
    @world.app.task(name="impatient")
    def impatient(run: str) -> str:
        try:
            ClutchResult(run, world.app).get()
        except GetInsideTask as exc:
            return str(exc)
        return "waited"

    other = Clutch(world.give).engage()
    (said,) = Clutch(impatient.s(other.id)).engage().get()
    assert "blocks the worker" in said


# --- replace ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda w: w.give.s(5), 5),
        (lambda w: chain(w.give.s(5), w.seen.s(6)), [5, 6, []]),
        (lambda w: chord([w.give.s(5), w.give.s(6)], w.seen.s()), [[5, 6], []]),
        (lambda w: group([w.give.s(5), w.give.s(6)]), [5, 6]),
    ],
)
def test_the_value_of_a_replacement_is_the_jobs(
    any_world: World, make: Callable[[World], Any], expected: Any
) -> None:
    w = any_world

    @w.app.task(name="replaced", bind=True)
    def replaced(self: ClutchTask) -> Any:
        return self.replace(make(w))

    run = Clutch(replaced, w.seen, **w.handlers()).engage()
    assert run.get() == [[[expected]]]
    assert w.kinds() == ["on_success"]


def test_a_replacement_that_fails_fails_the_job(world: World) -> None:
    world.failing["x"] = 1

    @world.app.task(name="replaced", bind=True)
    def replaced(self: ClutchTask) -> Any:
        return self.replace(world.fragile.s("x"))

    run = Clutch(replaced, world.give.s(1), **world.handlers()).engage()
    assert names(run.status()) == {"0": "ValueError"}
    assert world.kinds() == ["on_failure", "on_death"]
    assert 1 not in world.ran


def test_replace_outside_a_run_is_celerys_own(any_world: World) -> None:
    @any_world.app.task(name="replaced", bind=True)
    def replaced(self: ClutchTask) -> Any:
        return self.replace(any_world.give.s(5))

    assert replaced.apply().get() == 5


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
        pytest.param(lambda w: group(group(w.args.s(1), w.args.s(2)), w.args.s(3))),
        pytest.param(lambda w: chord([group(w.args.s(1), w.args.s(2)), w.args.s(3)], w.args.s(4))),
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


# --- steering -----------------------------------------------------------------------------


def test_resume_twice_is_harmless(world: World) -> None:
    world.failing["x"] = 1
    run = series(world.give.s(1), world.fragile.s("x")).engage()
    assert [run.resume(), run.resume(), run.resume()] == [True, False, False]
    assert world.ran == [1, "x", "x"]


def test_resume_of_a_run_that_fails_again(world: World) -> None:
    world.failing["x"] = 2
    run = Clutch(world.fragile.s("x"), **world.handlers()).engage()
    assert run.resume() is True
    assert run.failed()
    assert world.kinds() == ["on_failure", "on_death"] * 2  # once in each generation
    assert run.resume() is True
    assert run.get() == ["x is well"]
    assert run.status().generation == 2


def test_a_cancelled_run_starts_no_more_jobs(world: World) -> None:
    @world.app.task(name="stop", bind=True)
    def stop(self: ClutchTask) -> str:
        run = ClutchResult(self.request.headers["clutch"]["run"], world.app)
        return str(run.cancel())

    run = series(stop, world.give.s(1)).engage()
    assert run.state is State.CANCELLED
    assert run.results("0") == "True"
    assert world.ran == []
    with pytest.raises(ClutchCancelled):
        run.get()
    assert run.cancel() is False
    assert run.resume() is True
    assert run.get() == [1]


def test_a_handle_in_asyncio(world: World) -> None:
    world.failing["x"] = 1

    async def main() -> list[Any]:
        with pytest.raises(ClutchFailed):
            await Clutch(world.fragile.s("x")).engage().aget(timeout=1)
        return await Clutch(world.give.s(1)).engage().aget(timeout=1)

    assert asyncio.run(main()) == [1]


def test_a_handle_is_its_id(world: World) -> None:
    run = Clutch(world.give.s(1), id="mine").engage()
    again = ClutchResult("mine", world.app)
    assert again == run
    assert hash(again) == hash(run)
    assert run != "mine"
    assert repr(run) == "<ClutchResult mine>"
    assert again.get() == [1]
    assert again.plan() == Series((Job("give", (1,)),))


def test_forget(world: World) -> None:
    run = Clutch(world.nesting.s(world.give.s())).engage()
    assert run.forget() is True
    assert run.forget() is False
    for look in (run.status, run.get, run.failures, run.ready, run.results, run.resume, run.cancel):
        with pytest.raises(RunNotFound, match=run.id):
            look()


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


@contextlib.contextmanager
def apps() -> Iterator[tuple[World, World]]:
    yield World(), World()


def test_runs_of_two_apps_do_not_meet() -> None:
    with apps() as (one, two):
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
