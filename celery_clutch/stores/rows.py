"""The rows of a run, as the rules read and write them in a transaction. Pure; knows no database.

The rows of a run are bytes by *kind* and key:

========== ==================== ======================================================
kind       key                  value
========== ==================== ======================================================
page       key of the page      as given to ``create``
result     address              as given to ``complete``
info       address              as given to ``complete``
data       key                  as given to ``create`` or ``complete``
lease      address              `Lease`, while the job is under way
failure    address              ``attempt final finished``, a new line, and as given to ``fail``
held       address              as given to ``checkpoint``
child      address, blank, id   as given to ``report``
barrier    name                 how many results it has counted
member     step/member          ``done`` or ``failed``
mark       what is marked       of this generation: how many have settled, what was reported
due        what is due          `Due`
========== ==================== ======================================================

Of the kind barrier are, for good, also ``more <name>``, how many results more a barrier waits for;
``added <address>``, the branches added to a parallel; ``dead <name>``, how many deaths a parallel
has tolerated; ``tolerated <address>``, which barrier the branch of such a death counts towards;
``skipped``, how many jobs will not run; ``end``, the last barrier has opened; and ``unusual``: a
death was tolerated, or branches were added, so that whoever has the rules a second time leaves the
run to those here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..model.status import State
from .base import (
    Summary,
)

ROOT = "page 0"
"""What is due when a run starts, or starts again."""

TELLS = ("failure ", "success ", "death ", "end ")
"""What begins so is due to somebody who is to be told of something that has happened."""

OVER = b"over"
"""The mark of a branch that has ended, and not by a death."""

TOLERATED = 2
"""The flag of a death without which the run goes on."""

SKIPPED = "skipped"
"""The barrier that counts the jobs that will not run."""

UNUSUAL = "unusual"
"""The barrier that marks a run in which a death was tolerated, or branches were added."""

RENEWED = 1.0
"""Seconds for which the time that a run is kept need not be written again by what changes nothing
else of its head; less where runs are not kept for long."""

Load = Callable[[str, Sequence[str] | None], Mapping[str, bytes]]

Wanted = Mapping[str, Sequence[str]]
"""Keys of rows by kind."""


@dataclass
class Head:
    """What there is of a run once. A store keeps it as columns, so that it can list by them.

    ``due`` is how many rows of that kind there are; it is read only.
    """

    run: str
    meta: bytes = b""
    name: str | None = None
    tags: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    jobs: int = 0
    remaining: int = 0
    state: State = State.RUNNING
    generation: int = 0
    failing: int = 0
    dead: int = 0
    ender: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    ended_at: float | None = None
    expires_at: float = 0.0
    due: int = 0

    def drops(self, generation: int) -> bool:
        """Whether messages of *generation* are of no use."""
        return self.state is State.CANCELLED or self.generation != generation

    def summary(self) -> Summary:
        """As in a listing."""
        return Summary(
            run=self.run,
            name=self.name,
            tags=self.tags,
            state=self.state,
            jobs=self.jobs,
            done=self.jobs - self.remaining,
            failing=self.failing,
            dead=self.dead,
            created_at=self.created_at,
            updated_at=self.updated_at,
            ended_at=self.ended_at,
            due=self.due,
        )


@dataclass
class Rows:
    """The rows of one run in a transaction. What is written is kept here until the store writes it.

    Args:
        head: of the run; written back at the end.
        load: reads rows of a kind: those with these keys, or with None all of them.
        known: rows that were read already, by kind and key; None stands for one that is not there.

    Attributes:
        cleared: kinds of which every row is to be deleted, before what has *changed* is written.
        changed: rows to write by kind and key; None deletes the row.
    """

    head: Head
    load: Load
    known: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    changed: dict[str, dict[str, bytes | None]] = field(default_factory=dict)

    def fetch(self, kind: str, keys: Iterable[str]) -> None:
        """Read rows that are going to be asked for."""
        known = self.known.setdefault(kind, {})
        unknown = [key for key in keys if key not in known]
        if unknown and kind not in self.cleared:
            found = self.load(kind, unknown)
            known.update((key, found.get(key)) for key in unknown)

    def get(self, kind: str, key: str) -> bytes | None:
        """One row; None if there is none."""
        changed = self.changed.get(kind, {})
        if key in changed:
            return changed[key]
        self.fetch(kind, (key,))
        return self.known[kind].get(key)

    def items(self, kind: str) -> dict[str, bytes]:
        """All rows of a kind."""
        found: dict[str, bytes | None] = {}
        if kind not in self.cleared:
            found.update(self.load(kind, None))
        found.update(self.changed.get(kind, {}))
        return {key: value for key, value in found.items() if value is not None}

    def put(self, kind: str, key: str, value: bytes | None) -> None:
        """Write a row, or delete it."""
        changed = self.changed.setdefault(kind, {})
        if value is None and self.known.get(kind, {}).get(key, b"") is None:
            changed.pop(key, None)  # there is nothing to delete
        else:
            changed[key] = value

    def clear(self, kind: str) -> None:
        """Delete all rows of a kind."""
        self.cleared.add(kind)
        self.changed.pop(kind, None)
        self.known[kind] = {}

    def number(self, kind: str, key: str) -> int:
        """A row that counts."""
        return int(self.get(kind, key) or 0)

    def add(self, kind: str, key: str, more: int = 1) -> int:
        """Count *more*; how many there are now."""
        count = self.number(kind, key) + more
        self.put(kind, key, b"%d" % count)
        return count
