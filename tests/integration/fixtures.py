"""Fixtures: labs, that is apps with real workers.

``CLUTCH_TEST_REDIS`` (default ``redis://localhost:6379``), ``CLUTCH_TEST_DB`` (8: that database and the
next one are emptied) and ``CLUTCH_TEST_RABBITMQ`` (``amqp://guest:guest@localhost:5672//``) say where
the services are.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from kombu import Connection

from . import app as tasks
from .lab import Gate, Lab, RedisServer, new_tag

Missing = Callable[[str, object], NoReturn]
MakeLab = Callable[..., Any]

MARK = "celery-clutch-tests"

_running: list[Lab] = []
_offsets: dict[Path, int] = {}


def register(config: pytest.Config) -> None:
    """Make the fixtures of this module known, once, to whichever folders of tests use them."""
    if not config.pluginmanager.has_plugin(__name__):
        config.pluginmanager.register(sys.modules[__name__], __name__)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for log in _logs():
        _offsets[log] = log.stat().st_size


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """Show with a failure what the workers have said since the test began."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for log in _logs():
            with log.open("rb") as lines:
                lines.seek(_offsets.get(log, 0))
                said = lines.read().decode(errors="replace")
            report.sections.append((f"worker log {log.name}", said[-20_000:]))


def _logs() -> list[Path]:
    logs = [worker.log for lab in _running for worker in lab.workers]
    return [log for log in logs if log.exists()]


@pytest.fixture(scope="session")
def redis_server(connect: Callable[..., Any]) -> Iterator[None]:
    """Two databases of a Redis server, emptied, for this session alone."""
    held = []
    for offset in (0, 1):
        url = tasks.database(offset)
        client = connect(url, max_connections=1)
        name = f"{MARK}-{url.rpartition('/')[2]}"
        if any(each["name"] == name for each in client.client_list()):
            pytest.fail(f"{url} is in use by other tests; set CLUTCH_TEST_DB", pytrace=False)
        if client.dbsize() and not client.exists(MARK) and not os.environ.get("CI"):
            pytest.fail(f"{url} is in use by something else; set CLUTCH_TEST_DB", pytrace=False)
        client.client_setname(name)
        client.flushdb()
        client.set(MARK, 1)
        held.append(client)
    yield
    for client in held:
        client.close()


@pytest.fixture(scope="session")
def interruptible() -> Iterator[None]:
    """Let SIGTERM be an interrupt: then pytest stops the workers before it ends."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def make_lab(
    redis_server: None, interruptible: None, tmp_path_factory: pytest.TempPathFactory
) -> MakeLab:
    """A context manager that makes a lab, current while it is open; see `Lab`."""

    @contextmanager
    def make(name: str, *, start: bool = True, **options: Any) -> Iterator[Lab]:
        how = {
            key: options.pop(key) for key in ("pool", "workers", "concurrency") if key in options
        }
        lab = Lab(name, tmp_path_factory.mktemp(name), **options)
        _running.append(lab)
        try:
            if start:
                lab.start(**how)
            yield lab
        finally:
            _running.remove(lab)
            lab.stop()

    return make


@pytest.fixture(scope="session")
def _prefork(make_lab: MakeLab) -> Iterator[Lab]:
    with make_lab("prefork") as lab:
        yield lab


@pytest.fixture
def lab(_prefork: Lab) -> Lab:
    """One prefork worker with two processes, shared by most tests."""
    _prefork.app.set_current()
    return _prefork


@pytest.fixture
def idle(make_lab: MakeLab) -> Iterator[Lab]:
    """An app without a worker: whatever is sent stays in its queue."""
    with make_lab("idle", start=False) as lab:
        lab.app.set_current()
        yield lab


@pytest.fixture
def gate(lab: Lab) -> Iterator[Gate]:
    """A queue that the worker of `lab` listens to once the test opens it."""
    gate = Gate(lab)
    yield gate
    gate.close()


@pytest.fixture
def tag() -> str:
    """A name that no other test uses."""
    return new_tag()


@pytest.fixture(scope="session")
def rabbitmq(missing: Missing) -> str:
    """The URL of a RabbitMQ."""
    url = os.environ.get("CLUTCH_TEST_RABBITMQ", "amqp://guest:guest@localhost:5672//")
    try:
        with Connection(url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1)
    except Exception as exc:
        missing(f"RabbitMQ at {url}", exc)
    return url


@pytest.fixture(scope="module")
def spare_redis(
    missing: Missing, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A redis-server of our own, running."""
    if not RedisServer.available():
        missing("redis-server", "the program is not installed")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()
