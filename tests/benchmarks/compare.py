"""Raw canvas, clutches and plain fire-and-forget tasks: same worker, same Redis, in turn.

Who sends a canvas or a clutch waits for it with ``get()``, as programs do (the columns "raw" and
"clutch"): that costs raw canvas much, because Celery subscribes to the result of every task it sends.
In the columns "raw alone" and "clutch alone" nobody waits: the last task tells when its result is
stored. The ratios are raw to clutch with somebody waiting for both (``speed``), for neither (``alone``), and for
the clutch only (``against alone``), which is the hardest.

    python tests/benchmarks/compare.py [--quick] [--repeat 3] [--only parallel-3000] [--out DIR]

Prints for each shape the jobs per second, the ratio to raw canvas, the bytes that Redis moved for each
job (its own counters, both ways), and what the targets say; writes ``compare.json`` and, where matplotlib is
installed, ``compare.png``. Absolute times mean nothing on shared machines: read the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import redis  # noqa: E402
from bench_app import (  # noqa: E402
    URL,
    app,
    floor,
    floor_asks,
    floor_end,
    job,
    job_big,
    job_end,
    raw,
    raw_big,
    raw_end,
)
from celery import chain, chord, group  # noqa: E402

from celery_clutch import Clutch, ClutchResult, parallel, series  # noqa: E402
from celery_clutch.extend.plugins import runtime  # noqa: E402
from celery_clutch.stores.base import Claim, Completion  # noqa: E402

server = redis.Redis.from_url(URL, socket_timeout=None)
Sender = Callable[[str], Any]


@dataclass
class Shape:
    """One shape, sent in up to four ways. Each sender gets the key to wait for."""

    name: str
    jobs: int
    raw: Sender
    clutch: Sender
    floor: Sender | None = None
    asks: Sender | None = None  # as the floor, with two round trips to Redis in each task
    rounds: int = 1  # engaged so many times, one after another
    speed: float = 0.0  # the least ratio of raw time to clutch time, with somebody waiting for both
    against_alone: float = 0.0  # and with somebody waiting for the clutch only
    bytes_share: float = 0.0  # the largest share of raw's bytes
    floor_ratio: float = 0.0  # the largest ratio of clutch time to floor time


@dataclass
class Sample:
    """What one run took."""

    seconds: float
    dispatch: float
    bytes: int


@dataclass
class Series:
    """The samples of one way of sending a shape."""

    samples: list[Sample] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(getattr(sample, name) for sample in self.samples)


def moved() -> int:
    stats = server.info("stats")
    return int(stats["total_net_input_bytes"] + stats["total_net_output_bytes"])


def measure(shape: Shape, send: Sender, *, watched: bool, timeout: float = 300) -> Sample:
    """Send *shape* and wait: with ``get()`` if *watched*, else for what the last task tells."""
    gc.collect()  # what the way before has left, raw canvas thousands of results, is not this one's
    before = moved()
    start = time.perf_counter()
    dispatch = 0.0
    for _ in range(shape.rounds):
        key = f"bench:{uuid4().hex}"
        engaged = time.perf_counter()
        result = send(key)
        dispatch += time.perf_counter() - engaged
        if watched:
            result.get(timeout=timeout)
        elif server.blpop([key], timeout=timeout) is None:
            raise SystemExit(f"{shape.name}: no end after {timeout} seconds")
    return Sample(time.perf_counter() - start, dispatch, moved() - before)


def shapes(quick: bool) -> Iterator[Shape]:
    few = 10 if quick else 1
    wide, long, fives, small = 3000 // few, 500 // few, 50 // few, 200 // few
    yield Shape(
        f"parallel-{wide}",
        wide + 1,
        lambda key: chord([raw.s(i) for i in range(wide)], raw_end.s(key)).apply_async(),
        lambda key: series(parallel(job.s(i) for i in range(wide)), job_end.s(key)).engage(),
        lambda key: [floor.delay(i) for i in range(wide)] + [floor_end.delay(key)],
        lambda key: [floor_asks.delay(i) for i in range(wide)] + [floor_end.delay(key)],
        speed=2.2,
        floor_ratio=1.15,
    )
    yield Shape(
        "parallel-100x100KB",
        101,
        lambda key: chord([raw_big.s(100_000) for _ in range(100)], raw_end.s(key)).apply_async(),
        lambda key: series(
            parallel(job_big.s(100_000) for _ in range(100)), job_end.s(key)
        ).engage(),
        speed=3.5,
        bytes_share=0.25,
    )
    yield Shape(
        f"series-{long}",
        long + 1,
        lambda key: chain(*[raw.si(i) for i in range(long)], raw_end.s(key)).apply_async(),
        lambda key: series([*(job.s(i) for i in range(long)), job_end.s(key)]).engage(),
        speed=2.0,
    )
    yield Shape(
        f"series-{long // 5}",
        long // 5 + 1,
        lambda key: chain(*[raw.si(i) for i in range(long // 5)], raw_end.s(key)).apply_async(),
        lambda key: series([*(job.s(i) for i in range(long // 5)), job_end.s(key)]).engage(),
        against_alone=1.15,
    )
    for times in (5, 1):
        yield Shape(
            f"{times}x(parallel-{fives}->1)",
            times * (fives + 1) + 1,
            lambda key, times=times: raw_fans(times, fives, key).apply_async(),
            lambda key, times=times: clutch_fans(times, fives, key).engage(),
            speed=2.0 if times == 5 else 0.0,
        )
    yield Shape(
        "small(1->parallel-3->1)",
        5 * small,
        lambda key: chain(raw.s(), chord([raw.si(i) for i in range(3)], raw_end.s(key))).delay(),
        lambda key: series(job.s(), parallel(job.s(i) for i in range(3)), job_end.s(key)).engage(),
        rounds=small,
        against_alone=1.15,
    )


def raw_fans(times: int, width: int, key: str) -> Any:
    steps: list[Any] = []
    for _ in range(times):
        steps += [group(raw.si(i) for i in range(width)), raw.si()]
    return chain(*steps, raw_end.s(key))


def clutch_fans(times: int, width: int, key: str) -> Clutch:
    clutch = Clutch()
    for _ in range(times):
        with clutch.parallel():
            for index in range(width):
                clutch << job.s(index)
        clutch << job.s()
    return clutch << job_end.s(key)


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A prefork worker with two processes, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    command = [sys.executable, "-m", "celery", "-A", "bench_app", "worker", "-c", "2"]
    command += ["-l", "ERROR"]
    process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.DEVNULL)
    try:
        floor_end.delay("bench:ready")
        if server.blpop(["bench:ready"], timeout=60) is None:
            raise SystemExit("the worker does not answer")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def run_shape(shape: Shape, repeat: int) -> dict[str, Series]:
    ways = [("raw", shape.raw, True), ("clutch", shape.clutch, True)]
    ways += [("raw alone", shape.raw, False), ("clutch alone", shape.clutch, False)]
    if shape.floor and shape.asks:
        ways += [("floor", shape.floor, False), ("asks", shape.asks, False)]
    found = {name: Series() for name, *_ in ways}
    for _ in range(repeat):
        for name, send, watched in ways:
            found[name].samples.append(measure(shape, send, watched=watched))
    return found


def judge(shape: Shape, found: dict[str, Series]) -> dict[str, Any]:
    """The figures of a shape, with the ratios taken pair by pair in one turn."""
    pairs = list(zip(found["raw"].samples, found["clutch"].samples))

    def ratio(over: str, under: str) -> float:
        turns = zip(found[over].samples, found[under].samples)
        return statistics.median(one.seconds / other.seconds for one, other in turns)

    row: dict[str, Any] = {
        "shape": shape.name,
        "jobs": shape.jobs,
        "jobs_per_second": {
            name: round(shape.jobs / each.median("seconds")) for name, each in found.items()
        },
        "bytes_per_job": {
            name: round(each.median("bytes") / shape.jobs) for name, each in found.items()
        },
        "dispatch_ms": {
            name: round(1000 * each.median("dispatch") / shape.rounds, 2)
            for name, each in found.items()
        },
        "speed": ratio("raw", "clutch"),
        "alone": ratio("raw alone", "clutch alone"),
        "against_alone": ratio("raw alone", "clutch"),
        "bytes_share": statistics.median(c.bytes / r.bytes for r, c in pairs),
        "targets": [],
    }
    check = row["targets"].append
    if shape.speed:
        check(
            (
                f"speed {row['speed']:.2f} x raw (at least {shape.speed})",
                row["speed"] >= shape.speed,
            )
        )
    if shape.against_alone:
        speed = row["against_alone"]
        text = f"speed {speed:.2f} x raw that nobody waits for (at least {shape.against_alone})"
        check((text, speed >= shape.against_alone))
    if shape.bytes_share:
        share = row["bytes_share"]
        check(
            (f"bytes {share:.3f} of raw (at most {shape.bytes_share})", share <= shape.bytes_share)
        )
    if "floor" in found:
        cost = row["floor_ratio"] = ratio("clutch", "floor")
        asks = row["asks_ratio"] = ratio("asks", "floor")
        text = f"cost {cost:.2f} x floor (at most {shape.floor_ratio}; two bare round trips {asks:.2f})"
        check((text, cost <= shape.floor_ratio))
    return row


def compare_bytes(rows: dict[str, Any], long: str, short: str, limit: float) -> dict[str, Any]:
    """Whether bytes per job stay the same when a shape grows."""
    ratio = rows[long]["bytes_per_job"]["clutch"] / rows[short]["bytes_per_job"]["clutch"]
    text = f"bytes a job {ratio:.3f} x those of {short} (within {limit:.0%})"
    return {"shape": long, "targets": [(text, abs(ratio - 1) <= limit)]}


def engage_latency(quick: bool, repeat: int) -> dict[str, Any]:
    """What it takes to engage 10,000 jobs, and what the store holds of them; no worker is running."""
    jobs = 1000 if quick else 10_000
    shares, per_job = [], []
    for _ in range(repeat):
        canvas = chord([raw.s(i) for i in range(jobs)], raw_end.s("bench:none"))
        start = time.perf_counter()
        canvas.apply_async()
        dispatch = time.perf_counter() - start
        server.flushdb()
        clutch = series(parallel(job.s(i) for i in range(jobs)), job_end.s("bench:none"))
        start = time.perf_counter()
        run = clutch.engage()
        engage = time.perf_counter() - start
        shares.append(engage / dispatch)
        per_job.append(live_memory(run, jobs))
        server.flushdb()
    share, memory = statistics.median(shares), statistics.median(per_job)
    return {
        "shape": f"engage-{jobs}",
        "engage_share": share,
        "memory_per_job": memory,
        "targets": [
            (f"engage 1/{1 / share:.0f} of raw dispatch (at most 1/50)", share <= 1 / 50),
            (f"memory {memory:.0f} bytes a job besides values (at most 200)", memory <= 200),
        ],
    }


def live_memory(run: ClutchResult, jobs: int) -> float:
    """Bytes that Redis holds for a run in which every job but the last has ended."""
    store = runtime(app).store
    value = b"null"
    for index in range(jobs):
        address = f"0.{index}"
        store.begin(Claim(run.id, address, 0, owner="bench", limit=5, page="1"))
        store.complete(Completion(run.id, address, 0, value, token="bench"))
    keys = list(server.scan_iter(match=f"*{run.id}*", count=10_000))
    used = sum(server.memory_usage(key, samples=0) or 0 for key in keys)
    return (used - len(value) * jobs) / jobs


def worker_growth(process: subprocess.Popen[bytes], quick: bool) -> dict[str, Any]:
    """Memory of the worker's children before and after 50,000 jobs."""
    jobs, batch = (3000, 1000) if quick else (50_000, 5000)

    def resident() -> int:
        children = subprocess.run(
            ["ps", "-o", "rss=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        return sum(map(int, children.stdout.split()))

    readings = []
    for _ in range(jobs // batch):
        key = f"bench:{uuid4().hex}"
        series(parallel(job.s(i) for i in range(batch)), job_end.s(key)).engage()
        server.blpop([key], timeout=300)
        readings.append(resident())
    # The first batches fill caches and arenas; growth is what comes after them.
    half = len(readings) // 2
    growth = readings[-1] / readings[half] - 1 if half else 0.0
    return {
        "shape": f"memory-{jobs}",
        "resident_kb": readings,
        "targets": [
            (f"children grew by {growth:.1%} in the second half (at most 2 %)", growth <= 0.02)
        ],
    }


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['shape']}")
    for name in ("jobs_per_second", "bytes_per_job", "dispatch_ms"):
        if name in row:
            values = "  ".join(f"{way} {value:,}" for way, value in row[name].items())
            print(f"  {name.replace('_', ' '):16} {values}")
    if "speed" in row:
        print(
            f"  {'ratios':16} speed {row['speed']:.2f}  alone {row['alone']:.2f}  "
            f"against alone {row['against_alone']:.2f}  bytes {row['bytes_share']:.3f}"
        )
    for text, met in row["targets"]:
        print(f"  {'ok ' if met else 'BAD'} {text}", flush=True)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "speed" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.6 * len(rows) + 2), sharey=True)
    names = [row["shape"] for row in rows]
    left.barh(names, [row["speed"] for row in rows], color="#2a7f62")
    left.axvline(1, color="#888", linewidth=1)
    left.set_title("speed, raw canvas = 1")
    right.barh(names, [row["bytes_share"] for row in rows], color="#c3423f")
    right.axvline(1, color="#888", linewidth=1)
    right.set_title("bytes moved, raw canvas = 1")
    left.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of everything, once; no verdict"
    )
    parser.add_argument("--repeat", type=int, default=3, help="turns of each shape (default 3)")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where to write")
    options = parser.parse_args()
    repeat = 1 if options.quick else options.repeat
    server.flushdb()
    rows: list[dict[str, Any]] = []
    with worker() as process:
        for shape in shapes(options.quick):
            if options.only not in shape.name:
                continue
            measure(shape, shape.clutch, watched=True)  # warm-up
            rows.append(judge(shape, run_shape(shape, repeat)))
            show(rows[-1])
        if options.only in "memory":
            rows.append(worker_growth(process, options.quick))
            show(rows[-1])
    by_name = {row["shape"]: row for row in rows}
    pairs = [("series-500", "series-100", 0.10), ("5x(parallel-50->1)", "1x(parallel-50->1)", 0.15)]
    for long, short, limit in pairs:
        if long in by_name and short in by_name:
            rows.append(compare_bytes(by_name, long, short, limit))
            show(rows[-1])
    if options.only in "engage":
        rows.append(engage_latency(options.quick, repeat))
        show(rows[-1])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n")
    plot(rows, options.out / "compare.png")
    missed = [text for row in rows for text, met in row["targets"] if not met]
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
