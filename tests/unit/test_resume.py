"""Resume: whatever has stopped a run, it goes on, and nothing that has a result runs again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Task
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    State,
    parallel,
    previous_results,
    signals,
)
from celery_clutch.extend.plugins import forget_runtime, runtime
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Scope, Series

from .conftest import make_app
from .reference import Evaluation, before, evaluate, limits, value_of
from .strategies import plans


class World:
    """An eager app whose jobs fail, or cancel their run, as often as they are told to.

    Attributes:
        failing: how often the job at an address is still to fail.
        cancelling: the jobs that cancel their run when they run.
        tried: how often each job was executed.
        returned: how often each job has returned.
    """

    def __init__(self) -> None:
        self.app = make_app(task_always_eager=True, task_eager_propagates=False)
        self.failing: Counter[str] = Counter()
        self.cancelling: set[str] = set()
        self.tried: Counter[str] = Counter()
        self.returned: Counter[str] = Counter()
        world = self

        @self.app.task(name="job", bind=True)
        def job(self: ClutchTask) -> str:
            return world.work(self, self.previous_results)

        @self.app.task(name="plain", base=Task, bind=True)
        def plain(self: Task) -> str:
            return world.work(self, previous_results())

        self.job, self.plain = job, plain

    def work(self, task: Task, previous: list[Any]) -> str:
        header = task.request.headers["clutch"]
        at, run = header["at"], header["run"]
        self.tried[at] += 1
        if at in self.cancelling:
            self.cancelling.remove(at)
            ClutchResult(run, self.app).cancel()
        if self.failing[at] > 0:
            self.failing[at] -= 1
            raise ValueError(f"{at} fails")
        self.returned[at] += 1
        return value_of(at, previous)

    def build(self, node: Node) -> Any:
        """*node* composed as a user would."""
        if isinstance(node, Job):
            return self.plain if node.plain else self.job
        steps = [self.build(child) for child in plan.children(node)]
        if isinstance(node, Parallel):
            return parallel(*steps, max_concurrency=node.limit)
        return Clutch(*steps, app=self.app)

    def check(self, run: ClutchResult, wanted: Evaluation, root: Series) -> None:
        """The run has succeeded with the right values, and no job has returned twice."""
        assert run.state is State.SUCCEEDED
        assert run.get() == wanted.last
        for at, _ in plan.walk(root):
            assert run.results(at) == wanted.values[at]
        status = run.status()
        assert (status.total, status.done) == (root.size, root.size)
        assert (status.failing, status.dead) == (0, 0)
        assert self.returned == Counter(wanted.previous.keys())
        assert run.record().due == {}
        assert runtime(self.app).store.leases(run.id) == {}
        assert run.resume() is False
        assert self.returned == Counter(wanted.previous.keys())


@contextmanager
def a_world(small: bool = False) -> Iterator[World]:
    """A world; with *small* a plan of a few jobs is cut into many pages."""
    world = World()
    try:
        with limits(small):
            yield world
    finally:
        forget_runtime(world.app)


bare = plans(scope=st.just(Scope()), max_leaves=25, narrow=True)


def some_jobs(root: Series) -> st.SearchStrategy[set[str]]:
    """Subsets of the jobs of *root*."""
    jobs = [at for at, node in plan.walk(root) if isinstance(node, Job)]
    return st.sets(st.sampled_from(jobs)) if jobs else st.just(set())


@given(bare, st.booleans(), st.data())
def test_whatever_has_failed_goes_on(root: Series, small: bool, data: st.DataObject) -> None:
    wanted = evaluate(root)
    failing = data.draw(some_jobs(root))
    with a_world(small) as world:
        world.failing.update(failing)
        run = world.build(root).engage()
        reached = {at for at in wanted.previous if not before(root, at) & failing}
        assert set(world.tried) == reached, "all that does not come after a failure"
        assert run.state is (State.FAILED if failing else State.SUCCEEDED)
        assert {failure.address for failure in run.failures()} == failing & reached
        world.failing.clear()
        assert run.resume() is bool(failing)
        assert world.tried == Counter(wanted.previous.keys()) + Counter(failing & reached)
        world.check(run, wanted, root)


@given(bare, st.booleans(), st.data())
def test_however_often_it_fails(root: Series, small: bool, data: st.DataObject) -> None:
    wanted = evaluate(root)
    failing = {at: data.draw(st.integers(1, 3)) for at in sorted(data.draw(some_jobs(root)))}
    with a_world(small) as world:
        world.failing.update(failing)
        run = world.build(root).engage()
        rounds = 0
        while run.state is State.FAILED:
            left = +world.failing
            assert run.resume() is True
            rounds += 1
            assert run.state is State.SUCCEEDED or +world.failing < left, "it gets nowhere"
        assert run.status().generation == rounds
        assert world.tried == Counter(wanted.previous.keys()) + Counter(failing)
        world.check(run, wanted, root)


@given(bare, st.booleans(), st.data())
def test_what_was_cancelled_goes_on(root: Series, small: bool, data: st.DataObject) -> None:
    wanted = evaluate(root)
    failing = data.draw(some_jobs(root))
    cancelling = data.draw(some_jobs(root))
    with a_world(small) as world:
        world.failing.update(failing)
        world.cancelling |= cancelling
        run = world.build(root).engage()
        while run.state is not State.SUCCEEDED:
            assert run.resume() is True
        world.check(run, wanted, root)


@pytest.mark.parametrize("kind", ["job", "plain"])
def test_a_run_that_was_cancelled_in_its_last_job_is_done(kind: str) -> None:
    with a_world() as world:
        told: list[State] = []

        @signals.clutch_finished.connect
        def finished(sender: Any, event: Any, **_: Any) -> None:
            told.append(event.state)

        @world.app.task(name="well")
        def well(status: dict[str, Any]) -> None:
            told.append(status["state"])

        world.cancelling.add("1")
        clutch = Clutch(world.job, getattr(world, kind), app=world.app)
        clutch.on_success = well.s()
        run = clutch.engage()
        assert (run.state, run.status().done) == (State.CANCELLED, 2)
        assert run.resume() is True
        assert run.get() == [value_of("1", [value_of("0", [])])]
        assert world.returned == {"0": 1, "1": 1}, "what has a result is not run again"
        assert told == [State.CANCELLED, State.SUCCEEDED, State.SUCCEEDED]
        assert run.resume() is False


def test_a_narrow_parallel_passes_over_what_is_done() -> None:
    with a_world() as world:
        world.failing.update({"0.0", "0.3"})
        run = Clutch(parallel([world.job] * 5, max_concurrency=1), app=world.app).engage()
        assert run.status().done == 3
        assert run.resume() is True
        assert run.state is State.SUCCEEDED
        assert world.tried == {"0.0": 2, "0.1": 1, "0.2": 1, "0.3": 2, "0.4": 1}


def test_a_death_sends_what_follows_once() -> None:
    with a_world() as world:
        world.failing.update({"0.0"})
        narrow = parallel(world.job, parallel(world.job, world.plain), max_concurrency=1)
        run = Clutch(narrow, app=world.app).engage()
        assert run.state is State.FAILED
        assert world.tried == {"0.0": 1, "0.1.0": 1, "0.1.1": 1}


def test_a_series_of_thousands_that_is_done_is_walked_through() -> None:
    with a_world() as world:
        world.failing["10000"] = 1
        run = Clutch(*[world.job] * 10_001, app=world.app).engage()
        assert run.state is State.FAILED
        assert run.resume() is True
        assert run.state is State.SUCCEEDED
        assert max(world.returned.values()) == 1
