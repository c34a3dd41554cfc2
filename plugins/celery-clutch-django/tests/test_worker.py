"""A real worker, with processes and with threads, that keeps its runs in Django's databases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
from celery_clutch_django.models import Run
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from django.test.utils import override_settings

from celery_clutch import Clutch, State, parallel, series
from celery_clutch.extend.plugins import forget_runtime, runtime

pytestmark = pytest.mark.integration

SERVER = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
BROKER = f"{SERVER}/{os.environ.get('CLUTCH_TEST_DB', '6')}"
WAIT = 90


@pytest.fixture(scope="module")
def broker(missing: Callable[[str, object], NoReturn]) -> Iterator[str]:
    """An empty database of a real Redis."""
    client = redis.Redis.from_url(BROKER, socket_connect_timeout=2)
    problem: object = None
    try:
        client.ping()
    except redis.RedisError as exc:
        problem = exc
    if problem:
        missing(f"Redis at {BROKER}", problem)
    client.flushdb()
    yield BROKER
    client.flushdb()
    client.close()


@pytest.fixture
def environment(alias: str, broker: str) -> dict[str, str]:
    """What processes of project.py are told."""
    known = {"NAME", "ENGINE", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS", "CONN_MAX_AGE"}
    databases = {
        name: {key: value for key, value in connections.settings[name].items() if key in known}
        for name in {"default", alias}
    }
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project",
        "CLUTCH_TEST_DATABASES": json.dumps(databases),
        "CLUTCH_TEST_BROKER": broker,
        "CLUTCH_TEST_STORE": f"django://{alias}",
        "PYTHONPATH": os.pathsep.join(
            (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
        ),
    }


@pytest.fixture
def worker(alias: str, broker: str, environment: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """A worker of project.py; its Celery app here, on the same broker and database.

    Processes share no connection that was opened before the fork, threads none at all.
    """
    import project

    app = project.app
    app.conf.update(broker_url=broker, result_backend=broker, clutch_store=f"django://{alias}")
    forget_runtime(app)
    log = tmp_path / "worker.log"
    pools = {"postgres": "prefork", "default": "threads"}
    pool = ["--pool", pools[alias], "--concurrency", "2", "--loglevel", "INFO"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "project", "worker", *pool, *quiet],
            env=environment,
            cwd=tmp_path,
            stdout=out,
            stderr=out,
        )
    yield app
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    print(log.read_text())
    store = runtime(app).store
    for summary in store.scan()[0]:
        store.delete(summary.run)
    forget_runtime(app)


def test_clutches_run(worker: Any, alias: str) -> None:
    from project import cut, number, shaky, total

    last = [cut.s(alias), number.s(9)] if alias == "postgres" else [number.s(9)]
    clutch = Clutch(
        number.s(1), parallel(number.s(2), shaky.s(3), series(number.s(4), total)), total, *last
    )
    run = clutch.engage()
    assert run.get(timeout=WAIT) == [9]
    assert run.results("2") == 9
    assert run.data()["seen"][0] == 1
    assert run.status().to_dict()["state"] == "SUCCEEDED"
    executions = runtime(worker).store.executions(run.id)
    assert json.loads(executions["1.1"].info or b"{}")["attempt"] == 3
    wide = series(parallel(number.s(n) for n in range(40)), total).engage()
    assert wide.get(timeout=WAIT) == [sum(range(40))]
    assert wide.state is State.SUCCEEDED


@pytest.mark.usefixtures("atomic_requests")
def test_what_the_admin_resumes_runs(worker: Any, alias: str) -> None:
    """Where each request is a transaction, the worker is not faster than the commit."""
    from project import number

    runs = [Clutch(number.s(n)).engage(countdown=3600) for n in range(20)]
    for run in runs:
        run.cancel()
    User.objects.filter(username="root").delete()
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    keys = list(Run.objects.using(alias).values_list("pk", flat=True))
    data = {"action": "resume", "_selected_action": keys}
    with override_settings(CLUTCH_CELERY_APP="project.app"):
        client.post("/admin/celery_clutch_django/run/", data)
    assert [run.get(timeout=WAIT) for run in runs] == [[n] for n in range(20)]
    assert {run.status().generation for run in runs} == {1}


def test_the_command_line_sets_django_up(worker: Any, environment: dict[str, str]) -> None:
    from project import number

    run = series(number.s(7)).engage()
    assert run.get(timeout=WAIT) == [7]
    wanted = {
        "ls": run.id[:8],
        f"show {run.id[:12]}": "project.number",
        f"results {run.id[:12]}": "7",
        "stats": "project.number",
        "doctor": "task_cls is a ClutchTask",
    }
    for command, said in wanted.items():
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "project", "clutch", *command.split()],
            env={**environment, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
