"""Whether a worker's memory and open files stay what they are, over runs of every shape.

    python tests/benchmarks/memory.py [--jobs 100000] [--samples 20] [--slack 5]

One worker (prefork, two processes, no ``max_tasks_per_child``) runs the shapes in turn. The first fifth
is for warming up. Of the rest, the memory (unique to the process, in MB) and the open descriptors of each child
are sampled; the program fails if the line through the samples of a child rises by more than *slack* MB, or the
number of its descriptors by one or more.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import linear_regression
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from bench_app import job, job_big, job_data, job_end, job_fails, job_nests  # noqa: E402
from compare import server, worker  # noqa: E402

from celery_clutch import Clutch, parallel, series  # noqa: E402

TIMEOUT = 300


class Shape(NamedTuple):
    """A run that is engaged again and again: how many jobs it has, and what builds it."""

    name: str
    jobs: int
    build: Callable[[str], Clutch]


def _fan(width: int, **options: Any) -> Clutch:
    return parallel((job.s(i) for i in range(width)), **options)


SHAPES = (
    Shape("small", 6, lambda key: series(job.s(), _fan(3), job.s(), job_end.s(key))),
    Shape("series", 101, lambda key: series(*(job.s() for _ in range(100)), job_end.s(key))),
    Shape("parallel", 1001, lambda key: series(_fan(1000), job_end.s(key))),
    Shape(
        "waves",
        256,
        lambda key: series(*(s for _ in range(5) for s in (_fan(50), job.s())), job_end.s(key)),
    ),
    Shape("narrow", 101, lambda key: series(_fan(100, max_concurrency=10), job_end.s(key))),
    Shape(
        "large results",
        51,
        lambda key: series(parallel(job_big.s(100_000) for _ in range(50)), job_end.s(key)),
    ),
    Shape(
        "nested",
        41,
        lambda key: series(parallel(job_nests.s() for _ in range(10)), job_end.s(key)),
    ),
    Shape(
        "data",
        51,
        lambda key: series(parallel(job_data.s(i) for i in range(50)), job_end.s(key)),
    ),
    Shape("dies", 1, lambda key: series(job_fails.s(key))),
)


class Sample(NamedTuple):
    """What a process had after so many jobs: MB of its own, and open descriptors."""

    jobs: int
    megabytes: float
    descriptors: int


def children(parent: int) -> list[int]:
    """The processes that *parent* has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in found.split()]


def sample(pid: int, jobs: int) -> Sample:
    own = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            own += int(line.split()[1])
    return Sample(jobs, own / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def run_each_shape() -> int:
    """Run every shape once; how many jobs that were."""
    for shape in SHAPES:
        key = f"bench:{uuid.uuid4().hex}"
        run = shape.build(key).engage()
        if server.blpop([key], timeout=TIMEOUT) is None:
            raise SystemExit(f"a run of {shape.name} has not ended: {run.id}")
        run.forget()
    return sum(shape.jobs for shape in SHAPES)


def measure(parent: int, jobs: int, samples: int) -> dict[int, list[Sample]]:
    """The samples of each process of the worker, itself included."""
    done = 0
    while done < jobs / 5:
        done += run_each_shape()
    pids = [parent, *children(parent)]
    found: dict[int, list[Sample]] = {pid: [] for pid in pids}
    for number in range(1, samples + 1):
        while done < jobs * (0.2 + 0.8 * number / samples):
            done += run_each_shape()
        for pid in pids:
            found[pid].append(sample(pid, done))
    return found


def rise(of: list[Sample], name: str) -> float:
    """How much the line through the samples rises from the first to the last."""
    numbers = [each.jobs for each in of]
    slope, _ = linear_regression(numbers, [getattr(each, name) for each in of])
    return slope * (numbers[-1] - numbers[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--slack", type=float, default=5.0)
    options = parser.parse_args()
    with worker() as process:
        found = measure(process.pid, options.jobs, options.samples)
    flat = True
    for pid, samples in found.items():
        kind = "worker" if pid == process.pid else "child"
        memory, descriptors = rise(samples, "megabytes"), rise(samples, "descriptors")
        first, last = samples[0], samples[-1]
        print(
            f"{kind} {pid}: {first.megabytes:.1f} -> {last.megabytes:.1f} MB ({memory:+.1f}), "
            f"{first.descriptors} -> {last.descriptors} descriptors ({descriptors:+.1f}), "
            f"jobs {first.jobs:,} to {last.jobs:,}"
        )
        flat = flat and memory <= options.slack and descriptors < 1
    if not flat:
        raise SystemExit("it is not flat")


if __name__ == "__main__":
    main()
