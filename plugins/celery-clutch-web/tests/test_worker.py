"""On Redis with a real worker: what its processes count, and updates that arrive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
from celery import Celery
from celery_clutch import Clutch
from celery_clutch.extend.plugins import forget_runtime

from celery_clutch_web import dashboard

from .conftest import until, visiting, words

pytestmark = pytest.mark.integration

PROJECT = """
import os

from celery import Celery

app = Celery("real", task_cls="celery_clutch:ClutchTask")
app.conf.update(broker_url=os.environ["REAL_REDIS"], broker_connection_retry_on_startup=True)


@app.task(name="real.double")
def double(number):
    return 2 * number


@app.task(name="real.fail")
def fail():
    raise OSError("never")
"""


@pytest.fixture
def url(missing: Callable[..., Any]) -> Iterator[str]:
    """An empty database."""
    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    url = f"{server}/{os.environ.get('CLUTCH_TEST_DB', '2')}"
    with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
        problem: object = None
        try:
            client.flushdb()
        except redis.RedisError as exc:
            problem = exc
        if problem:
            missing(f"Redis at {url}", problem)
        yield url
        client.flushdb()


@pytest.fixture
def app(url: str, tmp_path: Path) -> Iterator[Celery]:
    """An app whose worker has processes of its own."""
    (tmp_path / "real.py").write_text(PROJECT)
    command = ("-m", "celery", "-A", "real", "worker", "-P", "prefork", "-c", "2")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--without-gossip", "--without-mingle"],
            cwd=tmp_path,
            env={**os.environ, "REAL_REDIS": url, "PYTHONPATH": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    made = Celery("real", task_cls="celery_clutch:ClutchTask", set_as_current=False)
    made.conf.broker_url = url
    try:
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        print((tmp_path / "log").read_text()[-3000:])
        forget_runtime(made)
        made.pool.force_close_all()


def test_processes_count_and_updates_arrive(app: Celery) -> None:
    double, fail = app.signature("real.double"), app.signature("real.fail")
    with visiting(dashboard(app, loopback=True)) as client:
        run = Clutch(*(double.clone((n,)) for n in range(6)), app=app, id="real").engage()
        shown = ""
        with client.stream("GET", "/run/events?id=real") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    shown = words(json.loads(line.removeprefix("data: ")))
                if "succeeded" in shown:
                    break
        assert "Done 6 of 6" in shown
        assert run.get(timeout=30) == [10]
        Clutch(fail, app=app).engage().get(timeout=30, propagate=False)

        def counted() -> Any:
            data = client.json("/?span=day")
            tasks = data["tasks"]
            done = tasks.get("real.double", {}).get("done")
            return data if done == 6 and tasks.get("real.fail", {}).get("dead") == 1 else None

        data = until(counted, lambda: client.json("/?span=day")["tasks"])
        assert data["kept"]
        lines = data["runs"]["lines"]
        assert [sum(lines[name]) for name in ("engaged", "succeeded", "failed")] == [2, 1, 1]
        workers = client.json("/workers")["workers"]
        assert [worker["same_store"] for worker in workers] == [True]


def test_a_page_reads_fifty_runs_of_thousands(url: str) -> None:
    app = Celery("many", task_cls="celery_clutch:ClutchTask", set_as_current=False)
    app.conf.update(broker_url="memory://", clutch_store=url)
    for number in range(3000):
        tags = ["rare"] if number == 1500 else []
        Clutch(app=app, name=f"run {number}", tags=tags).engage()
    try:
        with visiting(dashboard(app, loopback=True)) as client:
            with redis.Redis.from_url(url) as counting:

                def keys() -> int:
                    """How many keys have been looked up."""
                    stats = counting.info("stats")
                    return int(stats["keyspace_hits"] + stats["keyspace_misses"])

                before = keys()
                page = client.json("/runs")
                assert [run["name"] for run in page["runs"]][:2] == ["run 2999", "run 2998"]
                assert len(page["runs"]) == 50
                assert keys() - before < 1000
            found = client.json("/runs?tag=rare")
            while not found["runs"] and found["next"]:
                query = urlencode({"tag": "rare", "cursor": found["next"]})
                found = client.json(f"/runs?{query}")
            assert [run["name"] for run in found["runs"]] == ["run 1500"]
    finally:
        forget_runtime(app)
