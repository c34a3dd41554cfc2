"""What is counted, what charts show of it, and what the overview and the page of a task say."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery_clutch import parallel
from celery_clutch.errors import StoreUnavailable
from celery_clutch.extend.plugins import runtime
from celery_clutch.stores.memory import MemoryStore

from celery_clutch_web import recorder
from celery_clutch_web.buckets import OTHERS, PERIODS, TASKS, Counted, Task, tasks, time_name

from .conftest import Client, until
from .shop import Shop


def counted(site: Client) -> Any:
    """The overview, once what was counted is written."""
    recorder.flush()
    return site.json("/?span=hour")


# --- numbers --------------------------------------------------------------------------------------


def test_a_percentile_is_off_by_a_tenth_at_most() -> None:
    times = [0.004 * number for number in range(1, 1001)]
    bucket: dict[str, int] = {}
    for seconds in times:
        name = time_name(seconds, "shop.fetch")
        bucket[name] = bucket.get(name, 0) + 1
    found = tasks([bucket])["shop.fetch"]
    for share in (0.5, 0.95, 0.99):
        assert found.percentile(share) == pytest.approx(times[int(share * 1000) - 1], rel=0.1)


def test_percentiles_of_nothing() -> None:
    assert Task().percentile(0.5) is None
    found = Counted([0], 60, [{}])
    assert not found
    assert found.durations("shop.fetch").lines == {"p50": [None], "p95": [None]}


def test_there_are_never_many_buckets() -> None:
    now = 1_700_000_000.0
    for period in PERIODS.values():
        starts = period.starts(now)
        assert len(starts) == period.shown <= 96
        assert starts[-1] <= now < starts[-1] + period.seconds
        assert period.kept < 27 * 3600


def test_tasks_without_end_are_counted_together() -> None:
    store = MemoryStore()
    made = recorder.Recorder(store)
    for number in range(TASKS + 50):
        made.add_job(1000.0, "done", f"task {number}", 1.0)
    made.flush()
    (bucket,) = store.read_counts([PERIODS["hour"].bucket(1000.0)])
    found = tasks([bucket])
    assert len(found) == TASKS + 1
    assert found[OTHERS].done == 50


def test_counts_wait_for_a_store_that_is_away() -> None:
    class Away(MemoryStore):
        away = True

        def add_counts(self, counts: Any, seconds: float) -> None:
            if self.away:
                raise StoreUnavailable("away")
            super().add_counts(counts, seconds)

    store = Away()
    made = recorder.Recorder(store)
    made.add_run(1000.0, "engaged")
    made.flush()
    assert store.read_counts(["60.16"]) == [{}]
    made.add_run(1000.0, "engaged")
    store.away = False
    made.flush()
    assert store.read_counts(["60.16"]) == [{"run engaged": 2}]


# --- what pages show ------------------------------------------------------------------------------


def test_the_overview(site: Client, shop: Shop) -> None:
    shop.engage(parallel(shop.fetch.s(number) for number in range(5))).get(timeout=30)
    shop.failed()
    shop.engage(shop.wait.s(), name="slow one")
    data = counted(site)
    assert data["states"] == {"RUNNING": 1, "SUCCEEDED": 2, "FAILED": 1, "CANCELLED": 0}
    assert data["kept"]
    lines = data["runs"]["lines"]
    assert [sum(lines[name]) for name in ("engaged", "succeeded", "failed")] == [4, 2, 1]
    assert sum(data["jobs"]["lines"]["done"]) == 7
    assert sum(data["jobs"]["lines"]["failed"]) == 1
    assert data["tasks"]["shop.fetch"]["done"] == 7
    assert data["tasks"]["shop.fetch"]["p95"] < 1
    assert data["tasks"]["shop.store"]["dead"] == 1
    assert [run["name"] for run in data["longest"]] == ["slow one"]
    text = site.page("/")
    assert "1 running 2 succeeded 1 failed" in text
    assert "Waiting longest slow one" in text
    assert "per 15 minutes" in site.page("/?span=day")
    assert "A time is one of" in site.page("/?span=year", 400)


def test_numbers_come_from_the_runs_where_nobody_has_counted(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), shop.fetch.s(2)).get(timeout=30)
    data = site.json("/")
    assert not data["kept"]
    assert sum(data["runs"]["lines"]["engaged"]) == 2
    assert sum(data["jobs"]["lines"]["done"]) == 3
    assert data["tasks"]["shop.fetch"]["done"] == 3
    assert "Nobody has counted" in site.page("/")


def test_the_page_of_a_task(site: Client, shop: Shop) -> None:
    shop.failed(name="prints")
    recorder.flush()
    data = site.json("/task?name=shop.store")
    assert (data["done"], data["dead"]) == (0, 1)
    assert [run["id"] for run in data["recent"]] == ["bad"]
    assert data["groups"][0]["exception"] == "OSError"
    text = site.page("/task?name=shop.store")
    assert "Dead 1" in text
    assert "prints" in text
    assert "OSError the shelf is full" in text
    assert site.json("/task?name=shop.fetch")["p50"] is not None
    assert "None of the newest" in site.page("/task?name=nobody")


def test_workers_and_their_leases(site: Client, shop: Shop) -> None:
    data = until(
        lambda: (found := site.json("/workers"))["workers"] and found["processes"] and found
    )
    assert data["workers"][0]["name"] == "embedded@localhost"
    assert data["processes"][0]["seconds_left"] > 0
    assert "embedded@localhost" in site.page("/workers")


# --- on Redis ---------------------------------------------------------------------------------------


@pytest.fixture
def redis_shop(missing: Callable[..., Any]) -> Iterator[Shop]:
    import redis

    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    url = f"{server}/{os.environ.get('CLUTCH_TEST_DB', '2')}"
    client = redis.Redis.from_url(url, socket_connect_timeout=2)
    problem: object = None
    try:
        client.flushdb()
    except redis.RedisError as exc:
        problem = exc
    if problem:
        missing(f"Redis at {url}", problem)
    yield Shop("shop", clutch_store=url, broker_url="memory://")
    client.flushdb()
    client.close()


def test_counts_in_redis_have_a_time_to_live(redis_shop: Shop) -> None:
    store = runtime(redis_shop.app).store
    made = recorder.recorder(redis_shop.app)
    assert made is not None
    now = time.time()
    made.add_run(now, "engaged")
    made.add_job(now, "done", "shop.fetch", 0.2)
    made.flush()
    buckets = [period.bucket(now) for period in PERIODS.values()]
    for counts in store.read_counts(buckets):  # type: ignore[attr-defined]
        assert counts["run engaged"] == 1
        assert counts["job done shop.fetch"] == 1
    import redis

    with redis.Redis.from_url(store.url) as client:
        left = [client.ttl(f"clutch:counts:{bucket}") for bucket in buckets]
    assert all(0 < seconds <= 27 * 3600 for seconds in left)
