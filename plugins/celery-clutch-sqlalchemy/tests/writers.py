"""Many writers of one run: in the threads of a test, and in processes of their own.

As a program: ``writers.py URL PREFIX NUMBER THREADS`` writes what its threads were told as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery_clutch.stores.base import (
    Attempted,
    Barrier,
    Claim,
    Completion,
    ResultStore,
    Settles,
    StoreOptions,
    Verdict,
)
from databases import open_store

WIDTH = 40
RUN = "wide"


def write(store: ResultStore, number: int) -> list[dict[str, Any]]:
    """Run all jobs of the run, in an order of one's own; what was told."""
    addresses = [f"0.{n}" for n in range(WIDTH)]
    told: list[dict[str, Any]] = []
    random.Random(number).shuffle(addresses)
    for at in addresses:
        token = f"{number} {at}"
        begun = store.begin(Claim(RUN, at, 0, owner=f"w{number}", limit=1000))
        assert begun.verdict in (Verdict.RUN, Verdict.BUSY, Verdict.DROP, Verdict.DONE), begun
        step = Settles("0", at, WIDTH)
        if at.endswith("7"):
            steps = Settles(at, at, 1), step
            attempt = Attempted(RUN, at, 0, b"broken", 1, False, f"{token} fails", steps)
            failed = store.fail(attempt)
            told.append({"settled": failed.settled, "due": failed.recorded and failed.due})
        barriers = (Barrier("page", WIDTH, then="page 1"),)
        changes = {"last": b"%d" % number}
        value = b"%d" % number
        done = store.complete(Completion(RUN, at, 0, value, token, step, barriers, changes=changes))
        told.append(
            {
                "fresh": done.fresh and [at, number, done.remaining],
                "succeeded": done.succeeded,
                "settled": done.settled,
                "due": done.fresh and done.due,
            }
        )
    return told


def write_in_threads(stores: list[ResultStore], numbers: list[int]) -> list[dict[str, Any]]:
    """`write`, each number in a thread of its own and all at once."""
    barrier = threading.Barrier(len(numbers))

    def work(number: int) -> list[dict[str, Any]]:
        barrier.wait(60)
        return write(stores[number % len(stores)], number)

    with ThreadPoolExecutor(len(numbers)) as pool:
        return [told for each in pool.map(work, numbers) for told in each]


if __name__ == "__main__":
    url, prefix, first, threads = sys.argv[1:]
    numbers = list(range(int(first), int(first) + int(threads)))
    own = open_store(url, StoreOptions(prefix))
    json.dump(write_in_threads([own], numbers), sys.stdout)
