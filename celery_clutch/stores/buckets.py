"""Counts by time: something a store may keep besides runs, for charts.

It is an ability of its own: derive a store from `Buckets`, too, if it can count. `StoreContract`
tests it there.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import orjson

from ..errors import CorruptRecord


class Buckets(ABC):
    """Counts by name, in buckets that are forgotten by themselves.

    What a bucket stands for is up to the caller: the runs of a minute, say. Errors are those of
    `ResultStore`. Each prefix has buckets of its own.
    """

    @abstractmethod
    def add_counts(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> None:
        """Add to what is counted, by bucket and name, and keep these buckets for so many *seconds*
        from now.

        A bucket or a name that is not there has counted nothing before. Each is 1 to 255 printable
        characters. Every count is added whole, also where others add to it at the same time; a
        call that fails may have added some of them.
        """

    @abstractmethod
    def read_counts(self, buckets: Sequence[str]) -> list[dict[str, int]]:
        """The counts of each of *buckets* by name, in their order; none for one that is not there,
        or that nobody has added to for as long as it was to be kept."""


def counts_from_row(bucket: str, counts: bytes, expires_at: float) -> dict[str, int]:
    """What a row of a table has counted: *counts* is JSON; none once it has expired.

    Raises:
        CorruptRecord: *counts* is something else.
    """
    if expires_at <= time.time():
        return {}
    try:
        return {str(name): int(number) for name, number in orjson.loads(counts).items()}
    except (AttributeError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"the counts of {bucket!r} cannot be read: {exc!r}") from None
