"""What Celery itself is handed of a job: its id, and where that is wanted its value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.result import AsyncResult

from celery_clutch import Clutch, ClutchTask, parallel, series
from celery_clutch.errors import InvalidStep
from celery_clutch.testing import embedded

from .conftest import make_app
from .test_embedded import until


class Shop:
    """An app whose jobs are seen through Celery's own signals."""

    def __init__(self, **conf: Any) -> None:
        self.app = make_app(**conf)
        self.succeeded: dict[str, list[Any]] = {}
        task = self.app.task

        @task(name="one", bind=True)
        def one(job: ClutchTask, *more: Any) -> tuple[Any, ...]:
            return (1, *more)  # a list, as JSON has it

        @task(name="flaky", bind=True)
        def flaky(job: ClutchTask) -> str:
            if job.request.retries == 0:
                raise job.retry(exc=ValueError("not yet"), countdown=0)
            return "at last"

        @task(name="outer", bind=True)
        def outer(job: ClutchTask) -> str:
            Clutch(one, parent=job).engage()
            return "outer"

        @task(name="plain", base=Task)
        def plain() -> str:
            return "plain"

        @task(name="leave", bind=True)
        def leave(job: ClutchTask) -> None:
            raise job.replace(plain.s())

        @task(name="die")
        def die() -> None:
            raise ValueError("no money")

        self.one, self.flaky, self.outer, self.plain = one, flaky, outer, plain
        self.leave, self.die = leave, die

    def note(self, sender: Any = None, result: Any = None, **_: Any) -> None:
        self.succeeded.setdefault(sender.name, []).append(result)

    def result(self, id: str) -> Any:
        return AsyncResult(id, app=self.app)


@pytest.fixture(params=[{}, {"clutch_keep_results": True}], ids=["default", "kept"])
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(**request.param)
    # A worker looks at its start who listens.
    signals.task_success.connect(shop.note, weak=False)
    with embedded(shop.app):
        yield shop
    signals.task_success.disconnect(shop.note)


def test_values_are_handed_to_celery_where_that_is_wanted(shop: Shop) -> None:
    kept = shop.app.conf.get("clutch_keep_results")
    run = series(shop.one.s(2), shop.flaky, shop.outer, shop.plain, shop.leave, shop.one).engage()
    assert run.get(timeout=10) == [[1]]
    assert run.results("4") == "plain"
    wanted = {"one": [[1, 2], [1], [1]], "flaky": ["at last"], "outer": ["outer"]}
    until(lambda: len(shop.succeeded.get("one", ())) == 3)  # Celery tells of it last
    seen = {name: shop.succeeded[name] for name in wanted}
    assert seen == (wanted if kept else {"one": [None] * 3, "flaky": [None], "outer": [None]})


def test_the_value_of_every_kind_of_job_by_its_id(shop: Shop) -> None:
    jobs = (shop.one, shop.flaky, shop.outer, shop.plain, shop.leave)
    clutch = Clutch(parallel(job.s().set(task_id=f"id of {job.name}") for job in jobs))
    assert clutch.engage().get(timeout=10) == [[1], "at last", "outer", "plain", "plain"]
    for job, value in zip(jobs, ([1], "at last", "outer", "plain", "plain"), strict=True):
        assert shop.result(f"id of {job.name}").get(timeout=10) == value


def test_a_failure_by_its_id(shop: Shop) -> None:
    run = Clutch(shop.die.s().set(task_id="dead")).engage()
    run.get(timeout=10, propagate=False)
    assert run.failures()[0].task_id == "dead"
    with pytest.raises(ValueError, match="no money"):
        shop.result("dead").get(timeout=10)


def test_a_copy_of_a_message_does_not_change_the_value() -> None:
    shop = Shop(clutch_keep_results=True)
    with embedded(shop.app):
        run = series(shop.one.s().set(task_id="mine"), shop.outer.s().set(task_id="outer")).engage()
        assert run.get(timeout=10) == ["outer"]
        for id, address in (("mine", "0"), ("outer", "1")):
            header = {"run": run.id, "gen": 0, "at": address, "page": "0", "keep": 1}
            task = shop.one if id == "mine" else shop.outer
            task.apply_async(task_id=id, headers={"clutch": header}).get(timeout=10)
        assert shop.result("mine").get(timeout=10) == [1]
        assert shop.result("outer").get(timeout=10) == "outer"


def test_links_get_the_value_as_ever(shop: Shop) -> None:
    got: list[Any] = []

    @shop.app.task(name="told")
    def told(value: Any) -> None:
        got.append(value)

    Clutch(shop.one.s(3).set(link=told.s())).engage().get(timeout=10)
    until(lambda: got and "one" in shop.succeeded)
    assert got == [[1, 3]]
    assert shop.succeeded["one"] in ([[1, 3]], [(1, 3)])


def test_an_id_is_for_one_job(app: Celery) -> None:
    @app.task(name="one")
    def one() -> int:
        return 1

    twice = one.s().set(task_id="mine")
    with pytest.raises(InvalidStep, match=r"job 1 \(one\): another job .* task_id 'mine'"):
        Clutch(twice, twice).engage()
