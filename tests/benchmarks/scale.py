"""Runs of any width: what a client takes to engage one, when its first job ends, how many messages wait
in the broker, and whether a job costs the same in a run of a million as in one of a thousand.

    python tests/benchmarks/scale.py [--widths 1000,300000,1000000] [--jobs 20000] [--repeat 3]

Each width is engaged by a process of its own, from a generator. Then a worker (prefork, two processes) runs *jobs*
of its jobs: those of the narrowest in as many runs as it takes. The widths take turns; the ratio is that of the
medians of the CPU time of the worker's children for a job, to the first width. Absolute times mean nothing on shared
machines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from bench_app import app, job, job_end  # noqa: E402
from compare import server, worker  # noqa: E402

from celery_clutch import ClutchResult, parallel, series  # noqa: E402

QUEUE = "celery"


def engage(width: int) -> dict[str, Any]:
    """Engage a run in this process; what that took."""
    start = time.perf_counter()
    run = series(parallel(job.s(i) for i in range(width)), job_end.s("bench:end")).engage()
    seconds = time.perf_counter() - start
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"run": run.id, "seconds": seconds, "megabytes": megabytes}


def engage_elsewhere(width: int) -> dict[str, Any]:
    """Engage a run in a process of its own."""
    command = [sys.executable, __file__, "--engage", str(width)]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found


def cpu_of_children(parent: int) -> float:
    """The CPU seconds that the children of a process have taken."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def first_job(run: ClutchResult) -> float:
    """Seconds until the first job has ended."""
    start = time.perf_counter()
    while not run.status().done:
        time.sleep(0.01)
    return time.perf_counter() - start


def measure(width: int, jobs: int) -> dict[str, Any]:
    """Engage runs of *width* until *jobs* jobs have ended in them."""
    server.flushdb()
    engaged = engage_elsewhere(width)
    messages = ended = 0
    first = 0.0
    with worker() as process:
        run = ClutchResult(engaged["run"], app)
        first = first_job(run)
        begin = cpu_of_children(process.pid)
        while ended < jobs:
            done, total = run.status().done, width + 1
            messages = max(messages, server.llen(QUEUE))
            if done == total:
                ended += done
                run = ClutchResult(engage_elsewhere(width)["run"], app)
            elif ended + done >= jobs:
                ended += done
            time.sleep(0.02)
        cpu = (cpu_of_children(process.pid) - begin) / ended
    return {**engaged, "first": first, "messages": messages, "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--widths", default="1000,300000,1000000")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs to run of each (20000)")
    parser.add_argument("--repeat", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--engage", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engage:
        print(json.dumps(engage(options.engage)))
        return 0
    widths = [int(width) for width in options.widths.split(",")]
    turns: dict[int, list[dict[str, Any]]] = {width: [] for width in widths}
    for _ in range(options.repeat):
        for width in widths:
            turns[width].append(measure(width, min(options.jobs, 20 * width)))
    flat = statistics.median(turn["cpu"] for turn in turns[widths[0]])
    for width in widths:
        found = {
            name: statistics.median(turn[name] for turn in turns[width])
            for name in ("seconds", "megabytes", "first", "messages", "cpu")
        }
        print(
            f"{width:>9,} jobs: engaged in {found['seconds']:.1f} s and {found['megabytes']:.0f} MB; "
            f"first job ends after {found['first']:.2f} s; at most {found['messages']:.0f} messages; "
            f"a job costs {found['cpu'] / flat:.2f} x"
        )
    server.flushdb()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
