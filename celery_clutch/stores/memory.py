"""``memory://``: runs in this process, for tests, eager mode and the embedded worker."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..model.status import State
from .base import ENDED, NOTHING, StoreOptions
from .buckets import Buckets
from .machine import TransactionalStore
from .rows import Head, Rows, Wanted

Kinds = dict[str, dict[str, bytes]]


class MemoryStore(TransactionalStore, Buckets):
    """Runs in a dict behind a lock. Each instance is a world of its own."""

    def __init__(self, url: str = "memory://", options: StoreOptions = StoreOptions()) -> None:
        super().__init__(url, options)
        self._runs: dict[str, tuple[Head, Kinds]] = {}
        self._owners: dict[str, float] = {}
        self._counts: dict[str, tuple[float, Counter[str]]] = {}
        self._changed = threading.Condition()

    @contextmanager
    def transaction(self, run: str, wanted: Wanted = NOTHING) -> Iterator[Rows | None]:
        with self._changed:
            found = self._get(run)
            if found is None:
                yield None
                return
            before, kinds = found
            rows = Rows(replace(before), lambda kind, keys: _some(kinds, kind, keys))
            yield rows
            for kind in rows.cleared:
                kinds.pop(kind, None)
            for kind, changed in rows.changed.items():
                _write(kinds.setdefault(kind, {}), changed)
            self._runs[run] = rows.head, kinds

    def insert(self, head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> bool:
        with self._changed:
            if self._get(head.run) is not None:
                return False
            self._runs[head.run] = head, {kind: dict(some) for kind, some in rows.items()}
            return True

    def snapshot(self, run: str, kinds: Sequence[str]) -> tuple[Head, Kinds] | None:
        with self._changed:
            found = self._get(run)
            if found is None:
                return None
            return replace(found[0]), {kind: dict(found[1].get(kind, {})) for kind in kinds}

    def rows(self, run: str, kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
        with self._changed:
            found = self._get(run)
            return {} if found is None else _some(found[1], kind, keys)

    def heads(self, before: tuple[float, str] | None, count: int) -> list[Head]:
        with self._changed:
            found = [each for run in list(self._runs) if (each := self._get(run))]
            heads = [replace(head, due=len(kinds.get("due", ()))) for head, kinds in found]
        heads.sort(key=_order, reverse=True)
        later = heads if before is None else [head for head in heads if _order(head) < before]
        return later[:count]

    def delete(self, run: str) -> bool:
        with self._changed:
            existed = self._get(run) is not None
            self._runs.pop(run, None)
            self._changed.notify_all()
            return existed

    def renew(self, owners: Sequence[str], seconds: float) -> None:
        with self._changed:
            self._owners.update((owner, time.time() + seconds) for owner in owners)

    def owners(self) -> dict[str, float]:
        with self._changed:
            return {owner: until - time.time() for owner, until in self._owners.items()}

    def retire(self, owners: Sequence[str]) -> None:
        with self._changed:
            for owner in owners:
                self._owners.pop(owner, None)

    def add_counts(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> None:
        now = time.time()
        with self._changed:
            kept = {each: have for each, have in self._counts.items() if have[0] > now}
            for bucket, more in counts.items():
                _, count = kept.get(bucket, (0.0, Counter[str]()))
                count.update(more)
                kept[bucket] = now + seconds, count
            self._counts = kept

    def read_counts(self, buckets: Sequence[str]) -> list[dict[str, int]]:
        now, nothing = time.time(), (0.0, Counter[str]())
        with self._changed:
            found = [self._counts.get(bucket, nothing) for bucket in buckets]
            return [dict(count) if until > now else {} for until, count in found]

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while found := self._get(run):
                head, left = found[0], deadline - time.monotonic()
                if head.state in ENDED or left <= 0:
                    return head.state
                # A run that expires meanwhile wakes nobody up.
                self._changed.wait(min(left, head.expires_at - time.time(), 3600))
            return None

    def notify(self, run: str) -> None:
        with self._changed:
            self._changed.notify_all()

    def _get(self, run: str) -> tuple[Head, Kinds] | None:
        found = self._runs.get(run)
        if found is not None and found[0].expires_at <= time.time():
            del self._runs[run]
            return None
        return found


def _order(head: Head) -> tuple[float, str]:
    return head.created_at, head.run


def _some(kinds: Kinds, kind: str, keys: Sequence[str] | None) -> dict[str, bytes]:
    found = kinds.get(kind, {})
    if keys is None:
        return dict(found)
    return {key: found[key] for key in keys if key in found}


def _write(rows: dict[str, bytes], changed: Mapping[str, bytes | None]) -> None:
    for key, value in changed.items():
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value
