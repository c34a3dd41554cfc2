"""Sixteen writers of one wide run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from celery_clutch.model.status import State
from databases import open_store
from writers import RUN, WIDTH, write_in_threads

from celery_clutch_sqlalchemy.store import SQLStore

HERE = Path(__file__).parent


def engage(store: SQLStore) -> None:
    store.create(RUN, b"", {}, WIDTH, data={"last": b""})


def check(store: SQLStore, told: list[dict[str, Any]]) -> None:
    """Each result counted once, and everything that is told once was told once."""
    fresh = [each["fresh"] for each in told if each.get("fresh")]
    assert sorted(slot for slot, *_ in fresh) == sorted(f"0.{n}" for n in range(WIDTH))
    assert sorted(remaining for *_, remaining in fresh) == list(range(WIDTH))
    slots = [slot for slot, *_ in fresh]
    assert store.values(RUN, slots) == [b"%d" % number for _, number, _ in fresh]
    assert sum(each.get("succeeded", False) for each in told) == 1
    inner = {f"0.{n}" for n in range(WIDTH) if n % 10 == 7}
    for kind in ("reports", "settled"):
        counts = Counter(step for each in told for step in each[kind])
        assert counts == dict.fromkeys({"0", *inner}, 1), f"{kind}: each step once"
    joined = {each["joined"] for each in told if each.get("joined")}
    assert len(joined) == 1, "one job opens the barrier"
    record = store.read(RUN)
    assert record is not None
    assert (record.state, record.remaining, record.done) == (State.SUCCEEDED, 0, WIDTH)
    assert (record.failing, record.dead, record.finished) == (0, 0, inner)
    executions = store.executions(RUN).values()
    assert {each.starts for each in executions} == {0}, "nothing runs any more"


def test_threads(store: SQLStore, url: str) -> None:
    engage(store)
    other = open_store(url, store.options)
    check(store, write_in_threads([store, other], list(range(16))))
    other.close()


def test_processes(store: SQLStore, url: str) -> None:
    engage(store)
    command = [sys.executable, str(HERE / "writers.py"), url, store.options.prefix]
    processes = [
        subprocess.Popen([*command, str(first), "4"], stdout=subprocess.PIPE)
        for first in (0, 4, 8, 12)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    check(store, [told for output in outputs for told in json.loads(output)])
