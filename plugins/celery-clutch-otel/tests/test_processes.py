"""Runs that are engaged in one process and run in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
from celery_clutch import Clutch, ClutchError
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from . import app as tasks
from .conftest import until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
JOB = f"job {tasks.__name__}"


@dataclass
class Worker:
    """A `celery worker` with two processes, and the spans it has written."""

    broker: str
    environment: dict[str, str]
    file: Path
    log: Path

    def spans(self) -> dict[str, list[dict[str, Any]]]:
        """The spans by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in self.file.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                span = json.loads(line)
                found.setdefault(span["name"], []).append(span)
        return found

    def wait(self, *names: str) -> list[dict[str, Any]]:
        """The one span of each of *names*."""
        until(lambda: all(name in self.spans() for name in names), self.read_log)
        found = [self.spans()[name] for name in names]
        assert [len(each) for each in found] == [1] * len(names)
        return [each[0] for each in found]

    def read_log(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]


@pytest.fixture(scope="module")
def broker(missing: Callable[[str, object], NoReturn]) -> Iterator[str]:
    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    url = f"{server}/{os.environ.get('CLUTCH_TEST_DB', '12')}"
    client = redis.Redis.from_url(url)
    try:
        client.ping()
    except redis.RedisError as exc:
        reason = exc
    else:
        reason = None
    if reason:
        missing(f"Redis at {url}", reason)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


@pytest.fixture(scope="module")
def worker(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("worker")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**kept, "PYTHONPATH": path, "TRACED_BROKER": broker}
    worker = Worker(broker, environment, directory / "spans", directory / "log")
    worker.file.touch()
    command = [sys.executable, "-m", "celery", "-A", tasks.__name__, "worker", "-c", "2"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"]
    with worker.log.open("w") as log:
        process = subprocess.Popen(
            command,
            env={**environment, "TRACED_SPANS": str(worker.file)},
            stdout=log,
            stderr=log,
        )
    tasks.app.conf.update(broker_url=broker, result_backend=broker)
    try:
        until(lambda: " ready." in worker.read_log() or process.poll() is not None)
        assert process.poll() is None, worker.read_log()
        yield worker
    finally:
        tasks.app.conf.update(broker_url=None, result_backend=None)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def inside(span: dict[str, Any], trace_id: str, parent: str) -> bool:
    return (span["context"]["trace_id"], span["parent_id"]) == (trace_id, parent)


def ids(span: dict[str, Any]) -> tuple[str, str]:
    return span["context"]["trace_id"], span["context"]["span_id"]


def test_two_processes_give_one_trace(worker: Worker, exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    with trace.get_tracer("mine").start_as_current_span("request"):
        run = Clutch(tasks.nesting.s("two"), tasks.plain.s(1), name="one", app=tasks.app).engage()
    run.get(timeout=60)
    names = "clutch one", f"{JOB}.nesting", "clutch two", f"{JOB}.fetch", f"{JOB}.resize"
    top, nesting, inner, fetch, resize, plain, mine = worker.wait(
        *names, f"{JOB}.plain", "download"
    )
    (request,) = exporter.get_finished_spans()  # all else was exported there
    context = request.get_span_context()
    assert inside(top, f"0x{context.trace_id:032x}", f"0x{context.span_id:016x}")
    assert inside(nesting, *ids(top))
    assert inside(plain, *ids(top))
    assert inside(inner, *ids(nesting))
    assert inside(fetch, *ids(inner))
    assert inside(resize, *ids(inner))
    assert inside(mine, *ids(fetch))


def test_a_run_that_is_cancelled_here(worker: Worker, exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    later = tasks.who.s().set(countdown=3600)
    run = Clutch(tasks.flaky.s(1), later, name="here", app=tasks.app).engage()
    until(lambda: run.progress().done == 1, worker.read_log)
    run.cancel()
    (top,) = exporter.get_finished_spans()
    assert top.name == "clutch here"
    context = f"0x{top.context.trace_id:032x}", f"0x{top.context.span_id:016x}"
    attempts = until(lambda: len(s := worker.spans().get(f"{JOB}.flaky", [])) == 2 and s)
    assert all(inside(each, *context) for each in attempts)


def test_a_process_that_is_killed(worker: Worker) -> None:
    run = Clutch(tasks.killed.s(), name="lost", app=tasks.app).engage()
    with pytest.raises(ClutchError):
        run.get(timeout=60)
    top, job = worker.wait("clutch lost", f"{JOB}.killed")  # told by who gives the job up
    assert inside(job, *ids(top))
    assert job["status"]["status_code"] == top["status"]["status_code"] == "ERROR"
    assert job["attributes"]["error.type"] == "celery_clutch.errors.JobLost"
    # The process that replaces it was forked from one that has a provider.
    runs = [Clutch(tasks.broken.s(), app=tasks.app).engage() for _ in range(8)]
    for each in runs:
        with pytest.raises(ClutchError):
            each.get(timeout=60)
    until(lambda: len(worker.spans().get("clutch", ())) == 8, worker.read_log)


ENGAGE = f"""
from celery import signals
from celery_clutch import Clutch
from {tasks.__name__} import app, look, waiting, who

contexts = []

@signals.before_task_publish.connect
def note(headers, **_):
    contexts.append("ctx" in headers["clutch"])

run = Clutch(look.s(), who.s(), name="without", app=app).engage()
run.get(timeout=60)
print(contexts)
"""


def test_a_run_that_is_engaged_without_the_sdk(worker: Worker) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENGAGE], env=worker.environment, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("[False]\n", 0), done.stderr
    top, look, who = worker.wait("clutch without", f"{JOB}.look", f"{JOB}.who")
    assert top["parent_id"] is None
    assert inside(look, *ids(top))
    assert inside(who, *ids(top))
