"""Redis servers for the tests of stores.

``CLUTCH_TEST_REDIS`` (default ``redis://localhost:6379``) and ``CLUTCH_TEST_DB`` (6) say where the
real one is; keys have prefixes of their own and are deleted. Servers that have to be set up in a
special way are started by the tests, with the program ``redis-server``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis

Missing = Callable[[str, object], NoReturn]


@pytest.fixture(scope="session")
def redis_url(connect: Callable[..., redis.Redis]) -> str:
    """The URL of a database on a real server."""
    base = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    url = f"{base}/{os.environ.get('CLUTCH_TEST_DB', '6')}"
    connect(url).close()
    return url


class Server:
    """A redis-server of our own.

    Attributes:
        url: where redis-py finds it.
        client: a client with no store around it.
    """

    def __init__(self, url: str, directory: Path, *arguments: str) -> None:
        self.url = url
        self.arguments = arguments
        self.directory = directory
        self.log = directory / "redis.log"
        self.client = redis.Redis.from_url(url)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        with self.log.open("ab") as log:
            command = ["redis-server", *self.arguments, *quiet]
            self.process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)
        until(self.answers, self.log.read_text)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def pause(self) -> None:
        """Let it hang: connections stand, and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.client.close()


@pytest.fixture
def start_redis(missing: Missing, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Call it with options of redis-server to start one; stopped at the end of the test.

    It listens on a free port, unless *url* says where else.
    """
    if shutil.which("redis-server") is None:
        missing("redis-server", "the program is not installed")
    started: list[Server] = []

    def start(*arguments: Any, url: str = "") -> Server:
        own = [str(argument) for argument in arguments]
        if not url:
            port = free_port()
            url, own = f"redis://localhost:{port}", [*own, "--port", str(port)]
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Server(url, directory, *own))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def free_port() -> int:
    """A port nobody listens on; low enough for a cluster, whose bus is 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


def until(condition: Callable[[], Any], explain: Callable[[], str] = str) -> None:
    """Wait for *condition*; *explain* says in the failure what was the matter."""
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, f"not within 15 seconds: {explain()}"
        time.sleep(0.01)


@pytest.fixture(name="free_port")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(name="until")
def _until() -> Callable[..., None]:
    return until
