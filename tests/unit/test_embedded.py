"""Embedded workers: what only they have. What they have in common with others is in `tests/behaviour`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app

import celery_clutch
from celery_clutch import Clutch, ClutchResult, ClutchTask, State, parallel, series
from celery_clutch.errors import ClutchError, ConfigurationError, RunNotFound
from celery_clutch.testing import embedded

ROOT = Path(celery_clutch.__file__).resolve().parents[1]


def until(condition: Callable[[], Any], patience: float = 10) -> Any:
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


class World:
    """An app with tasks that tell what they did."""

    def __init__(self) -> None:
        # Servers that are not there: nothing here may try to reach them.
        self.app = Celery(
            "world",
            broker="redis://localhost:1/0",
            backend="redis://localhost:1/0",
            task_cls=ClutchTask,
            set_as_current=False,
        )
        self.app.conf.clutch_store = "redis://localhost:1/0"
        self.told: list[Any] = []
        self.started = threading.Event()
        self.go_on = threading.Event()
        # Celery gives a shared task to every other app of the process too.
        task = self.task = partial(self.app.task, shared=False)

        @task(name="add", bind=True)
        def add(job: ClutchTask, number: int) -> int:
            return number + sum(job.previous_results)

        @task(name="flaky", bind=True)
        def flaky(job: ClutchTask, number: int) -> int:
            if job.request.retries == 0:
                raise job.retry(exc=ValueError("not yet"), countdown=0.1)
            return number

        @task(name="outer", bind=True)
        def outer(job: ClutchTask, number: int) -> int:
            inner = Clutch(parent=job)
            inner << add.s(1) << tell.s("nested")
            inner.engage()
            return number

        @task(name="tell", bind=True)
        def tell(job: ClutchTask, *what: Any) -> list[Any]:
            self.told.append(what)
            return job.previous_results

        @task(name="block")
        def block() -> str:
            self.started.set()
            self.go_on.wait(30)
            self.told.append("blocked")
            return "done"

        self.add, self.flaky, self.outer = add, flaky, outer
        self.tell, self.block = tell, block


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.go_on.set()


# --- what runs --------------------------------------------------------------------------------


def test_every_shape_runs_one_job_at_a_time(world: World) -> None:
    clutch = Clutch(on_failure=world.tell.s("on_failure"))
    clutch << world.add.s(1)
    with clutch.parallel():
        clutch << world.add.s(1) << world.flaky.s(10) << world.outer.s(100)
        with clutch.series():
            clutch << world.add.s(2) << world.add.s(3)
    clutch << world.add.s(1000)
    with embedded(world.app, pool="solo"):
        run = clutch.engage()
        assert run.get(timeout=10) == [2 + 10 + 100 + 6 + 1000]
        assert run.state is State.SUCCEEDED
        until(lambda: len(world.told) == 2)
    assert ("nested",) in world.told
    (status, what) = next(args for args in world.told if len(args) == 2)
    assert (status["step"], what) == ("1", "on_failure")


def test_every_queue_is_consumed(world: World) -> None:
    with embedded(world.app):
        clutch = Clutch(world.add.s(1), world.outer.s(2), queue="critical")
        clutch << world.add.s(3).set(queue="bulk")
        assert clutch.engage().get(timeout=10) == [5]
        assert world.add.s(4).apply_async(queue="other").get(timeout=10) == 4


def test_tasks_defined_inside_are_known(world: World) -> None:
    with embedded(world.app):

        @world.task
        def late() -> str:
            return "late"

        assert Clutch(late).engage().get(timeout=10) == ["late"]


@pytest.mark.slow
def test_parallel_wider_than_celerys_memory_cache(world: World) -> None:
    with embedded(world.app):
        jobs = parallel(world.add.si(1) for _ in range(5_200))
        assert series(jobs, world.add.s(0)).engage().get(timeout=280) == [5_200]


# --- the end of the block ------------------------------------------------------------------------


def snapshot(app: Celery) -> dict[str, Any]:
    names = ("broker_url", "broker_transport", "broker_transport_options", "result_backend")
    return {
        **{name: app.conf[name] for name in (*names, "clutch_store", "include")},
        "changes": dict(app.conf.changes),
        "backend": app.backend,
        "pool": app.pool,
        "producers": app.amqp.producer_pool,
        "current": current_app._get_current_object(),
        "environment": dict(os.environ),
        "handlers": list(logging.getLogger().handlers),
        "streams": (sys.stdout, sys.stderr),
        "threads": set(threading.enumerate()),
    }


def test_everything_is_as_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://localhost:1/5")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://localhost:1/5")
    before = snapshot(world.app)
    with embedded(world.app):
        assert Clutch(world.add.s(1)).engage().get(timeout=10) == [1]
        world.app.conf.task_default_priority = 3
    assert snapshot(world.app) == before
    assert world.app.conf.task_default_priority is None
    with pytest.raises(ConnectionError):  # the app is on its own servers again
        Clutch(world.add.s(1)).engage()


def test_everything_is_as_before_after_an_exception(world: World) -> None:
    before = snapshot(world.app)
    with pytest.raises(ZeroDivisionError), embedded(world.app):
        _ = 1 / 0
    assert snapshot(world.app) == before


def test_nothing_is_left_for_the_next_block(world: World) -> None:
    for number in range(3):
        with embedded(world.app, concurrency=1):
            run = Clutch(world.add.s(number), id="same").engage()
            assert run.get(timeout=10) == [number]
            world.tell.apply_async(args=("too late",), countdown=60)
            world.tell.apply_async(args=("to nobody",), exchange="none", routing_key="none")
    with embedded(world.app):
        with pytest.raises(RunNotFound):
            _ = ClutchResult("same", world.app).state
        assert Clutch(world.add.s(7)).engage().get(timeout=10) == [7]
    assert world.told == []


def test_running_jobs_finish(world: World) -> None:
    with embedded(world.app):
        Clutch(world.block.s()).engage()
        assert world.started.wait(10)
        threading.Timer(0.2, world.go_on.set).start()
    assert world.told == ["blocked"]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_job_that_does_not_end_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    monkeypatch.setattr(sys.modules[embedded.__module__], "STOP_AFTER", 0.2)
    world.app.conf.clutch_store = "memory://"  # what the job asks for when it ends after all
    before = set(threading.enumerate())
    with pytest.raises(ClutchError, match=r"still running .*: block$"):
        with embedded(world.app, pool=pool):
            Clutch(world.block.s()).engage()
            assert world.started.wait(10)
    world.go_on.set()
    until(lambda: set(threading.enumerate()) <= before)


def test_other_apps_in_memory_keep_their_messages(world: World) -> None:
    other = Celery("other", broker="memory://", set_as_current=False)
    with other.connection_for_write() as connection:
        queue = connection.SimpleQueue("kept")
        queue.put("message")
        with embedded(world.app):
            world.tell.apply_async(args=("mine",), queue="kept")
            until(lambda: world.told)
        assert queue.get(timeout=1).payload == "message"
        queue.close()
    assert world.told == [("mine",)]


def test_a_busy_worker_is_given_its_time_to_answer(world: World) -> None:
    with embedded(world.app, pool="solo"):
        Clutch(world.block.s()).engage()
        assert world.started.wait(10)
        threading.Timer(0.2, world.go_on.set).start()
        assert world.app.control.ping(timeout=10, limit=1) == [
            {"embedded@localhost": {"ok": "pong"}}
        ]


# --- what is refused ----------------------------------------------------------------------------


def test_one_at_a_time(world: World) -> None:
    other = World()
    with embedded(world.app):
        for app in (world.app, other.app):
            with pytest.raises(ConfigurationError, match="already"), embedded(app):
                pass
        assert Clutch(world.add.s(1)).engage().get(timeout=10) == [1]
    with embedded(other.app):
        assert Clutch(other.add.s(1)).engage().get(timeout=10) == [1]


def test_eager_apps_are_refused(world: World) -> None:
    world.app.conf.task_always_eager = True
    with pytest.raises(ConfigurationError, match="task_always_eager"), embedded(world.app):
        pass


def test_pools_of_processes_are_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match="threads, solo"):
        with embedded(world.app, pool="prefork"):
            pass


# --- in a process of its own ----------------------------------------------------------------------

PROGRAM = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None
from celery import Celery
from celery_clutch import Clutch, series
from celery_clutch.testing import embedded

app = Celery("program", task_cls="celery_clutch:ClutchTask")

@app.task(bind=True)
def flaky(self):
    if self.request.retries == 0:
        raise self.retry(exc=ValueError("not yet"), countdown=0.1)
    return "result"

@app.task
def fails():
    raise ValueError("no")

with embedded(app):
    print(series(flaky, flaky).engage().get(timeout=10))
    print(Clutch(fails).engage().get(timeout=10, propagate=False))
    Clutch(flaky.s().set(countdown=60)).engage()
"""

TESTS = """
from celery import Celery

app = Celery("tested", broker="redis://localhost:1", task_cls="celery_clutch:ClutchTask")

@app.task
def double(number):
    return number * 2

def test_runs(clutch_embedded):
    assert clutch_embedded(app, pool="solo") is app
    assert double.delay(2).get(timeout=10) == 4

def test_is_over():
    assert app.conf.broker_url == "redis://localhost:1"

def test_runs_again(clutch_embedded):
    clutch_embedded(app)
    assert double.delay(3).get(timeout=10) == 6
"""


def python(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_says_nothing_of_its_own_and_needs_no_pytest() -> None:
    done = python("-W", "default::UserWarning", "-c", PROGRAM)
    assert (done.stdout, done.stderr, done.returncode) == ("['result']\n[None]\n", "", 0)


def test_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_program.py").write_text(TESTS)
    plugin = ("-p", "celery_clutch.testing.fixtures", "-p", "no:cacheprovider")
    done = python(
        *("-m", "pytest", "-q", *plugin, str(tmp_path)), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
