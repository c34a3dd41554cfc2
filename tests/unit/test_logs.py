"""What is logged of runs, and the filter that names run and job in a user's own lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task

from celery_clutch import Clutch, ClutchResult, ClutchTask, logs
from celery_clutch.compile.canvas import COLLECT
from celery_clutch.compile.header import Header
from celery_clutch.model.status import State
from celery_clutch.runtime.attempt import why_dropped
from celery_clutch.testing import embedded

from .conftest import App

logger = logging.getLogger("shop.tasks")


class Lines(logging.Handler):
    """Keeps what is logged, as it is formatted."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.setFormatter(logging.Formatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        self.records.append(record)


@pytest.fixture
def own() -> Iterator[Lines]:
    """What the tasks log, with a filter on the handler."""
    handler = Lines("%(clutch_run)s/%(clutch_address)s %(message)s")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logs.extend(logger)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def told() -> Iterator[Lines]:
    """What is logged of runs."""
    handler = Lines("%(message)s")
    runs = logging.getLogger("celery_clutch.runs")
    before = runs.level
    runs.addHandler(handler)
    runs.setLevel(logging.INFO)
    yield handler
    runs.removeHandler(handler)
    runs.setLevel(before)


@pytest.fixture
def shop() -> Iterator[Celery]:
    app = App("logs", task_cls=ClutchTask, set_as_current=False)

    @app.task(name="shop.say")
    def say(what: str) -> None:
        logger.info(what)

    @app.task(name="shop.scan", bind=True)
    def scan(self: Any, retries: int) -> None:
        if self.request.retries < retries:
            raise self.retry(exc=ValueError("busy\x1b\nfor now"), countdown=0)
        raise ValueError("jammed")

    @app.task(name="shop.nest", bind=True)
    def nest(self: Any) -> None:
        Clutch(app.tasks["shop.say"].s("inside"), parent=self).engage()

    with embedded(app):
        yield app


def test_the_lines_of_a_job_name_its_run(shop: Celery, own: Lines) -> None:
    say = shop.tasks["shop.say"]
    run = Clutch(say.s("first"), say.s("second"), app=shop).engage()
    run.get(timeout=10)
    assert own.lines == [f"{run.id}/0 first", f"{run.id}/1 second"]
    logger.info("outside")
    assert own.lines[-1] == "-/- outside"


def test_a_task_outside_a_run(shop: Celery, own: Lines) -> None:
    shop.tasks["shop.say"].delay("alone").get(timeout=10)
    assert own.lines == ["-/- alone"]


def test_eager_mode(eager: Celery, own: Lines) -> None:
    @eager.task(name="say")
    def say() -> None:
        logger.info("eager")

    run = Clutch(say.s(), app=eager).engage()
    assert own.lines == [f"{run.id}/0 eager"]


def test_extend_adds_one_filter_to_each_handler() -> None:
    some = logging.getLogger("some.logger")
    some.addHandler(logging.NullHandler())
    logs.extend(some)
    logs.extend(some)
    (handler,) = some.handlers
    assert [type(each) for each in handler.filters] == [logs.ClutchFilter]


def test_the_filter_keeps_what_a_record_says_itself() -> None:
    record = logging.makeLogRecord({"clutch_run": "r", "clutch_address": "1"})
    assert logs.ClutchFilter("").filter(record)
    assert (record.clutch_run, record.clutch_address) == ("r", "1")  # type: ignore[attr-defined]
    plain = logging.makeLogRecord({})
    assert logs.ClutchFilter("").filter(plain)
    assert (plain.clutch_run, plain.clutch_address) == ("", "")  # type: ignore[attr-defined]


def test_a_run_that_succeeds(shop: Celery, told: Lines) -> None:
    run = Clutch(shop.tasks["shop.say"].s("x"), name="nightly", app=shop).engage()
    # A run is told of once it is recorded: who waits for it may know earlier.
    wait_for(lambda: len(told.lines) == 2)
    assert sorted(told.lines) == sorted(
        [f"run {run.id} 'nightly' was engaged: 1 job", f"run {run.id} has ended: SUCCEEDED"]
    )
    assert {each.levelno for each in told.records} == {logging.INFO}
    assert {each.clutch_run for each in told.records} == {run.id}  # type: ignore[attr-defined]


def test_a_run_that_fails(shop: Celery, told: Lines) -> None:
    run = Clutch(shop.tasks["shop.scan"].s(1), app=shop).engage()
    wait_for(lambda: f"run {run.id} has ended: FAILED, job 0 is dead" in told.lines)
    failures = [line for line in told.lines if " has failed " in line]
    job = f"job 0 shop.scan of run {run.id} has failed"
    assert failures[0].startswith(f"{job} in attempt 1: ValueError: busy")
    assert "\x1b" not in failures[0]
    assert failures[0].endswith("; another attempt follows")
    assert failures[1:] == [f"{job} in attempt 2: ValueError: jammed; it is dead"]
    (first, *_) = [each for each in told.records if " has failed " in each.getMessage()]
    assert first.clutch_address == "0"  # type: ignore[attr-defined]


def test_a_nested_run(shop: Celery, told: Lines) -> None:
    run = Clutch(shop.tasks["shop.nest"].s(), app=shop).engage()
    run.get(timeout=10)
    assert any(line.endswith(f"1 job, nested in job 0 of run {run.id}") for line in told.lines)


def test_a_run_that_is_cancelled_and_resumed(app: Celery, told: Lines) -> None:
    @app.task(name="job")
    def job() -> None: ...

    run = Clutch(job.s(), app=app).engage()
    run.cancel()
    run.resume()
    assert told.lines == [
        f"run {run.id} was engaged: 1 job",
        f"run {run.id} has ended: CANCELLED",
        f"run {run.id} was resumed, and is of generation 1 now",
    ]
    run.forget()
    assert told.lines[3:] == [f"run {run.id} was forgotten"]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("cancel", "the run was cancelled"),
        ("forget", "the run is gone: it was forgotten, or has expired"),
    ],
)
def test_what_is_dropped(shop: Celery, told: Lines, act: str, why: str) -> None:
    say = shop.tasks["shop.say"]
    run = Clutch(say.s("now"), say.s("later").set(countdown=0.5), app=shop).engage()
    for status in run.watch(timeout=10):
        if status.done:
            break
    getattr(run, act)()
    line = f"a message of job 1 of run {run.id} is dropped: {why}"
    wait_for(lambda: line in told.lines)


def test_a_job_that_nests_in_a_run_that_goes_away(shop: Celery, told: Lines) -> None:
    """It has run; what it has nested does not start."""

    @shop.task(name="shop.cancelled", bind=True)
    def cancelled(self: Any) -> None:
        Clutch(shop.tasks["shop.say"].s("inside"), parent=self).engage()
        ClutchResult(self.request.clutch["run"], shop).cancel()

    run = Clutch(cancelled.s(), app=shop).engage()
    line = f"a message of job 0 of run {run.id} is dropped: the run was cancelled"
    wait_for(lambda: line in told.lines)


def test_a_copy_of_a_message_whose_job_has_its_result(app: Celery, told: Lines) -> None:
    @app.task(name="plain", base=Task)
    def plain() -> None: ...

    @app.task(name="job")
    def job() -> None: ...

    with embedded(app):
        run = Clutch(job.s(), plain.s(), app=app).engage()
        run.get(timeout=10)
        for name in ("job", COLLECT):
            address = "0" if name == "job" else "1"
            header = {"run": run.id, "gen": 0, "at": address, "page": "0"}
            app.send_task(name, headers={"clutch": header})
        for address in "01":
            line = f"a message of job {address} of run {run.id} is dropped: the job has its result"
            wait_for(lambda line=line: any(each.startswith(line) for each in told.lines))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_why_a_message_is_dropped() -> None:
    header = Header("r", 1, "0")
    assert why_dropped(header, (State.RUNNING, 2)) == (
        "the run was resumed; this message is of generation 1"
    )
    assert "this message is a copy" in why_dropped(header, (State.RUNNING, 1))
