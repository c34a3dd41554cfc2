"""The ``clutch`` header: all that a message knows of its run.

Celery keeps custom headers across retries, but not across ``replace()``, and does not pass them to
the next step (5.3 to 5.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from ..stores.base import Joins, Settles
from .pages import CloseItem, JobItem, close_slot

NAME = "clutch"


class Behind(TypedDict):
    """What the job does that opens a barrier.

    It sends ``next``, the steps behind the barrier, the last of them first; where there are none it
    takes a ``place`` in the chord around (its body, group and index).
    """

    next: list[Any]
    place: dict[str, Any]


class Join(NamedTuple):
    """A barrier of ``width`` jobs, which the store counts.

    ``behind`` is None if it is in a page of the run (see `behind_page`), so that not every message
    carries it.
    """

    barrier: str
    width: int
    behind: Behind | None = None

    def to_list(self) -> list[Any]:
        """Short, for the message."""
        return [self.barrier, self.width, *([self.behind] if self.behind else [])]


def behind_page(barrier: str) -> str:
    """The key of the page with what is behind a barrier."""
    return f"behind {barrier}"


class Lane(TypedDict):
    """One of the lanes in which a narrow parallel runs its branches one after another.

    ``number`` is the branch that it runs, -1 before the first; ``outer`` is the lane that the
    parallel itself is in.
    """

    at: str
    width: int
    lane: int
    number: int
    queue: str
    outer: Lane | None


@dataclass(frozen=True, slots=True)
class Header:
    """Where a job belongs.

    Attributes:
        run, generation: the run.
        at: the job's address.
        slot: where its result goes.
        previous: where the previous results are (see `pages`).
        settles: which steps it settles (see `pages`).
        prepend: the previous result is its first argument.
        close: 1 for an internal step that closes something, 0 for a job.
        join: the barrier that the job is counted in, or None; see `Join`.
        lane: the lane of a narrow parallel that the job is in, or None; see `Lane`.
        task: the job's task, where the message is of another.
        expires: when it is too late to start, in seconds since the epoch; 0 for never.
        context: what observers sent along.
        late: how often the message was put off because the store was away.
    """

    run: str
    generation: int
    at: str
    slot: str
    previous: str = ""
    settles: str = ""
    prepend: bool = False
    close: bool = False
    join: Join | None = field(default=None, hash=False)
    lane: Lane | None = field(default=None, hash=False)
    task: str = ""
    expires: float = 0.0
    context: Mapping[str, str] = field(default_factory=dict, hash=False)
    late: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Short, for the message: what is empty is left out."""
        data: dict[str, Any] = {"run": self.run, "gen": self.generation, "at": self.at}
        if self.slot != self.at:
            data["slot"] = self.slot
        if self.previous:
            data["prev"] = self.previous
        if self.settles:
            data["step"] = self.settles
        for name in ("prepend", "close", "late"):
            if value := getattr(self, name):
                data[name] = int(value)
        if self.join:
            data["join"] = self.join.to_list()
        for name in ("lane", "task", "expires"):
            if value := getattr(self, name):
                data[name] = value
        if self.context:
            data["ctx"] = dict(self.context)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Header:
        """The header that `to_dict` wrote."""
        at, join = data["at"], data.get("join")
        return cls(
            data["run"],
            int(data["gen"]),
            at,
            data.get("slot", at),
            data.get("prev", ""),
            data.get("step", ""),
            bool(data.get("prepend")),
            bool(data.get("close")),
            Join(*join) if join else None,
            data.get("lane"),
            data.get("task", ""),
            data.get("expires", 0.0),
            data.get("ctx", {}),
            int(data.get("late", 0)),
        )

    @classmethod
    def of(cls, request: Any) -> Header | None:
        """The header of a Celery request (worker or eager), or None outside a run."""
        data = getattr(request, NAME, None)
        if data is None:  # eager requests have custom headers in `headers` only
            data = (getattr(request, "headers", None) or {}).get(NAME)
        return cls.from_dict(data) if data else None

    @classmethod
    def of_item(cls, origin: Header, item: JobItem | CloseItem) -> Header:
        """The header for an item of a page that *origin* stands for."""
        if isinstance(item, JobItem):
            slot, prepend = item.slot, bool(item.job.prepend and item.previous)
        else:
            slot, prepend = close_slot(item), False
        close = isinstance(item, CloseItem)
        where = (item.at, slot, item.previous, item.settles)
        return origin.elsewhere(*where, prepend=prepend, close=close)

    def elsewhere(
        self, at: str, slot: str, previous: str = "", settles: str = "", **own: Any
    ) -> Header:
        """A header for another place of the same run; *own* are further attributes of it."""
        shared = {"lane": self.lane, "expires": self.expires, "context": self.context}
        return Header(self.run, self.generation, at, slot, previous, settles, **{**shared, **own})

    def joins(self) -> Joins | None:
        """The barrier that this job, by completing, is counted in."""
        return Joins(self.join.barrier, self.join.width) if self.join else None

    def settled_by_completion(self, *, alone: bool) -> Settles | None:
        """The step of which this job, by completing, completes a member.

        With *alone* also the one that it is the only member of; nobody waits for that but
        observers.
        """
        parallel, _, _ = self.slot.rpartition(".")
        for step, width in self._steps():
            if alone and step == self.at:
                return Settles(step, step, width)
            if step == parallel:
                return Settles(step, self.slot, width)
        return None

    def settled_by_failure(self, *, loud: bool = True) -> list[Settles]:
        """The steps that a failure settles: the nearest is the one to report it."""
        found: list[Settles] = []
        for step, width in self._steps():
            member = step
            if step != self.at:
                branch = self.at[len(step) + 1 :].partition(".")[0]
                member = f"{step}.{branch}"
            found.append(Settles(step, member, width, loud and not found))
        return found

    def _steps(self) -> list[tuple[str, int]]:
        pairs = (each.partition("*") for each in self.settles.split())
        return [(step, int(width)) for step, _, width in pairs]


def completes(data: Mapping[str, Any]) -> bool:
    """Whether the message with the header *data* ends in a result, rather than in further messages
    (an internal task that expands a page, or a lane)."""
    return " " not in data["at"]
