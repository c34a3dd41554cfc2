"""Clutches and raw canvas on other brokers and stores, and other libraries, against raw canvas on Redis.

    python tests/benchmarks/peers.py [--turns 3] [--only clutch] [--sizes 1000,100,50] [--out DIR]

Three shapes of no-op tasks, each as far as a peer can express it: parallel 1000 -> 1 ("fan"), series of 100, and
fifty small workflows (1 -> 3 -> 1) one after another. Each row has two worker processes, and takes turns with raw
canvas, whose workers are there all the time. Nobody waits for a result: the last task tells a list of Redis. Seconds
are wall time, and CPU time of the trees of the workers' processes; servers are not in it. A row is the ratio of its median
to that of raw canvas in the same turns. Absolute times mean nothing on shared machines.

Each library is installed in an environment of its own, in *out*; what does not install, or has no server, is left
out, with the reason. Writes ``peers.json`` after each row.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
SHAPES = ("fan", "series", "small")
RABBITMQ = os.environ.get("CLUTCH_TEST_RABBITMQ", "amqp://guest:guest@localhost:5672//")
POSTGRESQL = os.environ.get(
    "CLUTCH_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres"
).replace("+psycopg", "")
PATIENCE = 200
"""Seconds after which a shape counts as lost."""

CELERY = ["-m", "celery", "-A", "MODULE", "worker", "-c", "2", "-l", "ERROR"]


@dataclass
class Row:
    """A library, or Celery with another broker or store.

    Attributes:
        worker: what the environment's Python is called with.
        copies: how often that is started.
        packages: what to install; with none this environment is used.
        rabbitmq: RabbitMQ is the broker.
        database: the variable that says the URL of a database made for the row.
        migrate: what Python is called with to make the tables in it.
    """

    name: str
    module: str
    worker: list[str]
    copies: int = 1
    packages: list[str] = field(default_factory=list)
    rabbitmq: bool = False
    database: str = ""
    migrate: list[str] = field(default_factory=list)


RAW = Row("raw canvas, Redis", "peer_canvas", CELERY)
ROWS = [
    Row("celery-clutch, Redis", "peer_clutch", CELERY),
    Row("celery-clutch, RabbitMQ and Redis", "peer_clutch", CELERY, rabbitmq=True),
    Row(
        "celery-clutch, Redis and PostgreSQL",
        "peer_clutch",
        CELERY,
        database="PEERS_STORE",
        migrate=["-m", "celery", "-A", "peer_clutch", "clutch", "migrate"],
    ),
    Row("raw canvas, RabbitMQ and Redis", "peer_canvas", CELERY, rabbitmq=True),
    Row(
        "Huey",
        "peer_huey",
        ["-m", "huey.bin.huey_consumer", "peer_huey.huey", "-w", "2", "-k", "process", "-n"],
        packages=["huey", "redis"],
    ),
    Row(
        "taskiq-pipelines",
        "peer_taskiq",
        ["-m", "taskiq", "worker", "peer_taskiq:broker", "-w", "2"],
        packages=["taskiq-pipelines", "taskiq-redis"],
    ),
    Row(
        "dramatiq-workflow",
        "peer_dramatiq",
        ["-m", "dramatiq", "-p", "2", "-t", "1", "peer_dramatiq"],
        packages=["dramatiq[redis]", "dramatiq-workflow"],
    ),
    Row(
        "RQ",
        "peer_rq",
        ["-m", "rq.cli", "worker-pool", "-n", "2", "-q", "-u", "REDIS", "peers-rq"],
        packages=["rq"],
    ),
    Row(
        "DBOS",
        "peer_dbos",
        ["peer_dbos.py"],
        copies=2,
        packages=["dbos", "redis"],
        database="PEERS_DATABASE",
        migrate=["peer_dbos.py", "migrate"],
    ),
]


class LeftOut(Exception):
    """A row cannot be measured here; says why."""


def python_of(row: Row, out: Path) -> str:
    """The Python of the row's environment, which is made if it is not there."""
    if not row.packages:
        return sys.executable
    folder = out / "environments" / row.module
    python = str(folder / "bin" / "python")
    complete = folder / "complete"
    if complete.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    install = [python, "-m", "pip", "install", "--quiet", *row.packages]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        raise LeftOut(f"does not install: {done.stderr.strip().splitlines()[-1]}")
    complete.touch()
    return python


def versions(python: str, row: Row) -> str:
    """The first two packages of a row with their versions."""
    code = (
        "import sys, importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    )
    names = [name.partition("[")[0] for name in row.packages if name != "redis"]
    return subprocess.run(
        [python, "-c", code, *names], capture_output=True, text=True
    ).stdout.strip()


@contextmanager
def database() -> Iterator[str]:
    """The URL of a new database in PostgreSQL."""
    try:
        import psycopg

        server = psycopg.connect(POSTGRESQL, autocommit=True)
    except Exception as exc:
        raise LeftOut(f"no PostgreSQL: {exc}") from exc
    name = f"clutch_bench_{uuid4().hex[:12]}"
    with server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{POSTGRESQL.rpartition('/')[0]}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def cpu_of_tree(roots: list[int]) -> float:
    """The CPU seconds of processes and all below them, those that have ended included."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        ticks[pid] = sum(map(int, fields[11:15]))
        children.setdefault(int(fields[1]), []).append(pid)
    total, left = 0, list(roots)
    while left:
        pid = left.pop()
        total += ticks.get(pid, 0)
        left += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


class Bench:
    """The workers of a row, and the process that sends it shapes."""

    def __init__(self, row: Row, python: str, environment: dict[str, str]) -> None:
        replace = {"MODULE": row.module, "REDIS": environment["CLUTCH_BENCH_REDIS"]}
        command = [python, *(replace.get(word, word) for word in row.worker)]
        self.name = row.name
        self.workers = []
        for _ in range(row.copies):
            worker = subprocess.Popen(
                command,
                cwd=PEERS,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self.workers.append(worker)
        self.driver = subprocess.Popen(
            [python, "driver.py", row.module],
            cwd=PEERS,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, shape: str) -> float | None:
        """How long a shape took; None where the peer does not have it."""
        assert self.driver.stdin
        assert self.driver.stdout
        self.driver.stdin.write(f"{shape}\n")
        self.driver.stdin.flush()
        readable, _, _ = select.select([self.driver.stdout], [], [], PATIENCE)
        answer = self.driver.stdout.readline().strip() if readable else ""
        if not answer:
            raise LeftOut(f"{shape} did not end")
        return None if answer == "-" else float(answer)

    def measure(self, shape: str) -> tuple[float, float] | None:
        """Wall and CPU seconds."""
        pids = [worker.pid for worker in self.workers]
        before = cpu_of_tree(pids)
        wall = self.seconds(shape)
        if wall is None:
            return None
        time.sleep(0.3)  # what is left to do behind the last task
        return wall, cpu_of_tree(pids) - before

    def close(self) -> None:
        self.driver.kill()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()


@contextmanager
def bench(row: Row, out: Path) -> Iterator[tuple[Bench, str]]:
    """A row that is ready, and the versions in it."""
    with ExitStack() as stack:
        python = python_of(row, out)
        environment = {**os.environ, "PEERS_QUEUE": f"peers-{uuid4().hex[:8]}"}
        environment.setdefault("CLUTCH_BENCH_REDIS", "redis://localhost:6379/13")
        if row.rabbitmq:
            environment["PEERS_BROKER"] = RABBITMQ
        if row.database:
            environment[row.database] = stack.enter_context(database())
        if row.migrate:
            migrate = [python, *row.migrate]
            done = subprocess.run(
                migrate, cwd=PEERS, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise LeftOut(f"no tables: {done.stderr.strip().splitlines()[-1]}")
        started = Bench(row, python, environment)
        stack.callback(started.close)
        started.seconds("ready")
        yield started, versions(python, row)


def compare(row: Row, raw: Bench, turns: int, out: Path) -> dict[str, Any]:
    """The ratios of a row to raw canvas, shape by shape."""
    found: dict[str, Any] = {"row": row.name, "shapes": {}}
    with bench(row, out) as (peer, found["versions"]):
        for shape in SHAPES:
            pairs = []
            for _ in range(turns):
                one, other = raw.measure(shape), peer.measure(shape)
                if one and other:
                    pairs.append((one, other))
            if pairs:
                found["shapes"][shape] = ratios(pairs)
    return found


def ratios(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, float]:
    """Wall and CPU seconds as ratios of medians: raw canvas is 1, less is faster."""
    found = {}
    for index, name in enumerate(("wall", "cpu")):
        raw = statistics.median(one[index] for one, _ in pairs)
        found[name] = statistics.median(other[index] for _, other in pairs) / raw
    return found


def show(found: dict[str, Any]) -> None:
    cells = []
    for shape in SHAPES:
        figures = found["shapes"].get(shape)
        cells.append(f"{figures['wall']:.2f} / {figures['cpu']:.2f}" if figures else "-")
    name = f"{found['row']} ({found['versions']})" if found["versions"] else found["row"]
    print("|", " | ".join([name, *cells]), "|", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3, help="turns of each shape (3)")
    parser.add_argument("--only", default="", help="rows whose name contains one of these")
    parser.add_argument("--sizes", default="1000,100,50", help="of the three shapes")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where to write")
    options = parser.parse_args()
    os.environ["PEERS_SIZES"] = options.sizes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that workers end with this, too
    options.out.mkdir(parents=True, exist_ok=True)
    print("| wall / CPU, raw canvas on Redis = 1, less is faster |", " | ".join(SHAPES), "|")
    print("|---" * (1 + len(SHAPES)) + "|", flush=True)
    rows: list[dict[str, Any]] = []
    with bench(RAW, options.out) as (raw, _):
        for row in ROWS:
            if not any(part in row.name for part in options.only.split(",")):
                continue
            try:
                rows.append(compare(row, raw, options.turns, options.out.resolve()))
            except LeftOut as exc:
                print(f"{row.name}: left out: {exc}", file=sys.stderr)
                continue
            show(rows[-1])
            (options.out / "peers.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
