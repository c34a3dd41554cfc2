"""Real workers, and ways to look at what they do."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from celery import Celery

import celery_clutch
from celery_clutch import ClutchResult, State

from . import app as tasks

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds after which what was awaited counts as failed."""
MODULE = f"{__package__}.app"
ROOT = Path(__file__).resolve().parents[len(MODULE.split(".")) - 1]


def until(condition: Callable[[], T], what: str = "", patience: float = PATIENCE) -> T:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + patience
    pause = 0.005
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} seconds in vain {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return value


class Worker:
    """A `celery worker` process."""

    def __init__(
        self,
        name: str,
        queues: Iterable[str],
        conf: Mapping[str, Any],
        log: Path,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
    ) -> None:
        self.name = f"{name}@clutch"
        self.log = log
        command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-n", self.name]
        command += ["-Q", ",".join(queues), "-P", pool, "-c", str(concurrency), "-l", "INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        self._command = command
        path = [str(ROOT), str(Path(celery_clutch.__file__).parents[1])]
        self._environ = {
            **os.environ,
            "CLUTCH_IT_WORKER": "1",
            "CLUTCH_IT_CONF": json.dumps(dict(conf)),
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environ,
                cwd=self.log.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def dump_stacks(self) -> None:
        """Have the worker and its children write what they are doing into the log."""
        if self.process is not None and self.process.poll() is None:
            before = self.log.stat().st_size
            os.killpg(self.process.pid, signal.SIGUSR2)
            with suppress(AssertionError):
                until(lambda: self.log.stat().st_size > before, patience=2)

    def check(self) -> None:
        """Fail if the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the worker has ended:\n{self.log.read_text(errors='replace')}")

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait(5)


class Runs:
    """An app, and what the tests ask about its runs, wherever these run."""

    tasks = tasks
    app: Celery
    side = "side"
    """A queue beside the default one."""
    examples = 10
    """How many generated plans a property test tries."""

    def settle(self) -> None:
        """Wait until nothing is queued, put off or running: whatever was to be sent was sent."""
        raise NotImplementedError

    def finish(self, run: ClutchResult) -> State:
        """Wait until nothing is left to do; the state of *run* then."""
        self.settle()
        return run.state

    def ran(self, run: ClutchResult | str) -> Counter[str]:
        """How often the function of each job was called, by address."""
        return Counter(self.order(run))

    def order(self, run: ClutchResult | str) -> list[str]:
        """The addresses of the jobs whose function was called, in that order."""
        return list(tasks.notebook().lrange(f"it:ran:{getattr(run, 'id', run)}", 0, -1))

    def notes(self, tag: str, kind: str | None = None) -> list[Any]:
        """What the handlers of *tag* were told."""
        found = map(json.loads, tasks.notebook().lrange(f"it:notes:{tag}", 0, -1))
        return [each["status"] for each in found if kind in (None, each["kind"])]

    def kinds(self, tag: str) -> Counter[str]:
        """How often each kind of handler was called for *tag*."""
        found = map(json.loads, tasks.notebook().lrange(f"it:notes:{tag}", 0, -1))
        return Counter(each["kind"] for each in found)

    def nested(self, run: ClutchResult) -> list[ClutchResult]:
        """The runs nested in *run*, in the order in which they were engaged."""
        found = tasks.notebook().lrange(f"it:nested:{run.id}", 0, -1)
        return [ClutchResult(each, self.app) for each in found]

    def sent(self, run: ClutchResult | str) -> dict[str, int]:
        """How often each task was published for *run*; ``n`` and ``bytes`` of all of them."""
        found = tasks.notebook().hgetall(f"it:sent:{getattr(run, 'id', run)}")
        return {key: int(value) for key, value in found.items()}

    def task_id(self, run: ClutchResult, address: str) -> str:
        """The id of the message last sent for a job."""
        ids = f"it:ids:{run.id}"
        return until(lambda: tasks.notebook().hget(ids, address), f"for {address} to be sent")

    def raise_flag(self, name: str) -> None:
        """Let go all jobs that wait, or will wait, for the flag."""
        tasks.notebook().rpush(f"it:flag:{name}", *["up"] * 100)

    def let_fail(self, run: str, times: Mapping[str, int]) -> None:
        """Have the jobs at these addresses fail so many times."""
        if times:
            tasks.notebook().hset(f"it:failing:{run}", mapping=times)


class Lab(Runs):
    """An app on some broker, its workers, and what the tests ask about their runs.

    Every lab has queues of its own: ``queue`` (the default) and ``side``.
    """

    def __init__(self, name: str, directory: Path, **conf: Any) -> None:
        self.name = f"{name}-{uuid4().hex[:6]}"
        self.queue = f"it-{self.name}"
        self.side = f"{self.queue}-side"
        self.directory = directory
        options = {}
        if not str(conf.get("broker_url", "redis")).startswith(("amqp", "pyamqp")):
            unacked = ("unacked_key", "unacked_index_key", "unacked_mutex_key")
            options = {key: f"{self.queue}.{key}" for key in unacked}
        self.conf = {
            "task_default_queue": self.queue,
            "clutch_key_prefix": self.name,  # a sweep sees the runs of its own lab only
            "broker_transport_options": options,
            **conf,
        }
        self.app: Celery = tasks.make_app(self.conf)
        self._counting = ExitStack()
        self._counting.enter_context(tasks.counting())
        self.workers: list[Worker] = []
        self.broker = None if not options else redis.Redis.from_url(self.app.conf.broker_url)

    # --- workers --------------------------------------------------------------------------

    def start(self, pool: str = "prefork", workers: int = 1, concurrency: int = 2) -> None:
        """Start workers and wait until they answer."""
        for _ in range(workers):
            name = f"{self.name}-{len(self.workers)}"
            log = self.directory / f"{name}.log"
            queues = (self.queue, self.side)
            worker = Worker(name, queues, self.conf, log, pool=pool, concurrency=concurrency)
            self.workers.append(worker)
            worker.start()
        until(self.busy, "for the workers to start")

    def stop(self) -> None:
        """Stop the workers and let go of connections."""
        for worker in self.workers:
            worker.stop()
        if self.broker is None:
            self.delete(self.queue, self.side)
        self.app.close()
        self._counting.close()

    def busy(self) -> list[tuple[int, int]]:
        """What each worker says of itself; nothing if not all of them answer."""
        for worker in self.workers:
            worker.check()
        names = [worker.name for worker in self.workers]
        replies = self.app.control.broadcast(
            "clutch_it_busy", reply=True, destination=names, timeout=1.0, limit=len(names)
        )
        said = [answer for reply in replies or () for answer in reply.values()]
        return [(each["ever"], each["now"]) for each in said] if len(said) == len(names) else []

    def queued(self) -> int:
        """How many messages wait in the queues or, for their time, in the workers."""
        queues = (self.queue, self.side)
        if self.broker is None:
            return sum(map(self.length, queues))
        pipe = self.broker.pipeline(transaction=False)
        for queue in queues:
            for priority in ("", "\x06\x163", "\x06\x166", "\x06\x169"):
                pipe.llen(f"{queue}{priority}")
        pipe.hlen(f"{self.queue}.unacked_key")
        return sum(pipe.execute())

    def ever(self) -> int:
        """How many tasks the workers have ever accepted."""
        return sum(ever for ever, _ in until(self.busy))

    def length(self, queue: str) -> int:
        """How many messages lie in a queue."""
        if self.broker is not None:
            return int(self.broker.llen(queue))  # type: ignore[arg-type]
        with self.app.connection_for_write() as connection:
            declared = connection.default_channel.queue_declare(queue, passive=True)
            return int(declared.message_count)

    def delete(self, *queues: str) -> None:
        """Throw queues away, with what is in them."""
        with self.app.connection_for_write() as connection:
            for queue in queues:
                connection.default_channel.queue_delete(queue)

    def settle(self, patience: float = PATIENCE) -> None:
        """Wait until nothing is queued, put off or running: whatever was to be sent was sent."""
        before: list[Any] = []

        def quiet() -> bool:
            nonlocal before
            now = [self.queued(), *self.busy(), self.queued()]
            still = len(now) > 2 and not now[0] and not now[-1] and not any(b for _, b in now[1:-1])
            same, before = now == before, now
            return still and same

        try:
            until(quiet, "for the workers to have nothing to do", patience)
        except AssertionError as exc:
            self.restart()
            raise AssertionError(f"{exc}: queued, workers' (ever, now), queued: {before}") from None

    def restart(self) -> None:
        """Have every process write its stack into the worker's log, and start afresh, so that what
        hangs is known and does not spoil the tests that follow."""
        for worker in self.workers:
            worker.dump_stacks()
        for worker in self.workers:
            worker.stop()
        if self.broker is not None:
            keys = [f"{self.queue}.{key}" for key in ("unacked_key", "unacked_index_key")]
            self.broker.delete(self.queue, self.side, *keys)
        for worker in self.workers:
            worker.start()
        until(self.busy, "for the workers to start again")

    def finish(self, run: ClutchResult, patience: float = PATIENCE) -> State:
        """Wait until the workers have nothing left to do; the state of *run* then."""
        self.settle(patience)
        if run.state is State.RUNNING:  # a message may be on its way, or in another queue
            with suppress(AssertionError):
                until(run.ready, patience=3)
            self.settle(patience)
        return run.state

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """What lies in a queue, oldest first."""
        assert self.broker is not None
        return [json.loads(each) for each in reversed(self.broker.lrange(queue, 0, -1))]


class Gate:
    """A queue that no worker listens to until the gate is opened."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # Not used again: a worker that has stopped listening may take one message more.
        self.queue = f"{lab.queue}-gate-{uuid4().hex[:6]}"
        self._how = {"reply": True, "timeout": 5, "limit": len(lab.workers)}
        self._how["destination"] = [worker.name for worker in lab.workers]

    def open(self, over: Callable[[], Any] = lambda: True) -> None:
        """Let the workers listen; wait until the queue is empty, it is *over*, and all is quiet."""
        self.open_only(over)
        self.lab.settle()

    def open_only(self, over: Callable[[], Any] = lambda: True) -> None:
        """`open`, while other jobs go on."""
        self.lab.app.control.add_consumer(self.queue, **self._how)
        until(lambda: not self.lab.length(self.queue) and over(), "for what is behind the gate")

    def close(self) -> None:
        self.lab.app.control.cancel_consumer(self.queue, **self._how)
        self.lab.delete(self.queue)

    def copies(self) -> list[bytes]:
        """The messages in the queue, as they are (Redis only)."""
        assert self.lab.broker is not None
        return list(self.lab.broker.lrange(self.queue, 0, -1))  # type: ignore[arg-type]

    def send(self, copies: list[bytes]) -> None:
        """Put copies back into the queue, which had been in this order (Redis only)."""
        assert self.lab.broker is not None
        self.lab.broker.lpush(self.queue, *reversed(copies))


def handlers(tag: str, *kinds: str) -> dict[str, Any]:
    """The handlers of a clutch, all of them unless *kinds* are given; they note under *tag*."""
    wanted = kinds or ("on_failure", "on_death", "on_success")
    return {kind: tasks.note.s(tag, kind) for kind in wanted}


def new_tag() -> str:
    """A name that nobody else uses."""
    return uuid4().hex


class RedisServer:
    """A redis-server of our own, which can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = spare_port()
        self.url = f"redis://localhost:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        return shutil.which("redis-server") is not None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: _answers(self.client), "for redis-server to start")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(10)

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


def one_redis() -> dict[str, str]:
    """Settings with which the store is the broker: it sends messages."""
    if "CLUTCH_TEST_STORE" in os.environ:
        pytest.skip("the store of CLUTCH_TEST_STORE is no broker")
    return {"clutch_store": tasks.database(0)}


_COMMANDS = re.compile(rb"(?:^|\r\n)\*\d+\r\n")
"""Where commands of Redis begin."""


class Proxy:
    """In front of a server: closes the connection at the n-th command that it is sent."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._is_redis = place.scheme != "amqp"
        usual = 6379 if self._is_redis else 5672
        self._server = place.hostname or "localhost", place.port or usual
        self._listener = socket.create_server(("localhost", 0))
        user, at, _ = place.netloc.rpartition("@")
        netloc = f"{user}{at}localhost:{self._listener.getsockname()[1]}"
        self.url = place._replace(netloc=netloc).geturl()
        self.cuts = 0
        self._left = 0
        self._answered = False

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()

    def cut_at(self, number: int, *, answered: bool) -> None:
        """Close the connection at command *number* from now on, once; with *answered* the server
        has done it by then."""
        self.cuts, self._left, self._answered = 0, number, answered

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server, suppress(OSError):
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if server in ready:
                    answer = server.recv(1 << 16)
                    client.sendall(answer)
                    if not answer:
                        return
                if client in ready and not self._ask(client, server):
                    return

    def _ask(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass a command on; False if the connection is to be closed."""
        command = client.recv(1 << 20)
        if not command:
            return False
        before = self._left
        # Some are sent together (Redis), and may come so, or one by one.
        self._left -= max(len(_COMMANDS.findall(command)), 1)
        cut = before > 0 >= self._left
        self.cuts += cut
        if self._answered or not cut:
            server.sendall(command)
        if cut and self._answered and self._is_redis:
            # It does what it has been sent, answers all of that, and closes the connection.
            server.shutdown(socket.SHUT_WR)
            while server.recv(1 << 16):
                pass
        elif cut and self._answered:
            server.recv(1 << 16)
        return not cut


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def spare_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
