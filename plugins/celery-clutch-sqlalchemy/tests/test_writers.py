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

from celery_clutch_sqlalchemy.store import SQLAlchemyStore

HERE = Path(__file__).parent


def engage(store: SQLAlchemyStore) -> None:
    store.create(RUN, b"", {}, WIDTH, data={"last": b""})


def check(store: SQLAlchemyStore, told: list[dict[str, Any]]) -> None:
    """Each result counted once, and everything that is told once was told once."""
    fresh = [each["fresh"] for each in told if each.get("fresh")]
    addresses = [at for at, *_ in fresh]
    assert sorted(addresses) == sorted(f"0.{n}" for n in range(WIDTH))
    assert sorted(remaining for *_, remaining in fresh) == list(range(WIDTH))
    assert store.values(RUN, addresses) == [b"%d" % number for _, number, _ in fresh]
    assert sum(each.get("succeeded", False) for each in told) == 1
    inner = {f"0.{n}" for n in range(WIDTH) if n % 10 == 7}
    settled = Counter(step for each in told for step in each["settled"])
    assert settled == dict.fromkeys({"0", *inner}, 1), "each step once"
    due = Counter(key for each in told for key in each["due"] or ())
    expected = {"page 1", "failure 0", *(f"failure {at}" for at in inner)}
    assert due == dict.fromkeys(expected, 1), "and each thing that is due"
    record = store.read(RUN)
    assert record is not None
    assert (record.state, record.remaining, record.done) == (State.SUCCEEDED, 0, WIDTH)
    assert (record.failing, record.dead, record.finished) == (0, 0, inner)
    assert set(record.due) == expected
    assert store.leases(RUN) == {}, "nothing runs any more"


def test_threads(store: SQLAlchemyStore, url: str) -> None:
    engage(store)
    other = open_store(url, store.options)
    check(store, write_in_threads([store, other], list(range(16))))
    other.close()


def test_processes(store: SQLAlchemyStore, url: str) -> None:
    engage(store)
    command = [sys.executable, str(HERE / "writers.py"), url, store.options.prefix]
    processes = [
        subprocess.Popen([*command, str(first), "4"], stdout=subprocess.PIPE)
        for first in (0, 4, 8, 12)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    check(store, [told for output in outputs for told in json.loads(output)])
