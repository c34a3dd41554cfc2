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

from celery_clutch.stores.base import Joins, ResultStore, Settles, StoreOptions, Verdict
from databases import open_store

WIDTH = 40
RUN = "wide"


def write(store: ResultStore, number: int) -> list[dict[str, Any]]:
    """Run all jobs of the run, in an order of one's own; what was told."""
    slots, told = [f"0.{n}" for n in range(WIDTH)], []
    random.Random(number).shuffle(slots)
    for slot in slots:
        token = f"{number} {slot}"
        begun = store.begin(RUN, slot, slot, 0, 1000)
        assert begun.verdict in (Verdict.RUN, Verdict.DONE), begun
        step = Settles("0", slot, WIDTH)
        if slot.endswith("7"):
            inner = Settles(slot, slot, 1)
            failed = store.fail(
                *(RUN, slot, slot, b"broken"),
                attempt=1,
                final=False,
                generation=0,
                token=f"{token} fails",
                settles=[inner, step],
            )
            told.append({"reports": failed.reports, "settled": failed.settled})
        done = store.complete(
            *(RUN, slot, slot, b"%d" % number),
            generation=0,
            token=token,
            settles=step,
            joins=Joins("page", WIDTH),
            changes={"last": b"%d" % number},
        )
        told.append(
            {
                "fresh": done.fresh and [slot, number, done.remaining],
                "succeeded": done.succeeded,
                "reports": [done.report] if done.report else [],
                "settled": [done.settled] if done.settled else [],
                "joined": done.joined and slot,
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
