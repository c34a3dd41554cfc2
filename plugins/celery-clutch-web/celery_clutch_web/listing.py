"""The list of runs: filters, as the address of the page has them, and pages of runs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlencode

from celery_clutch import ResultStore, State
from celery_clutch.compile import record
from celery_clutch.model.status import isoformat
from celery_clutch.stores.base import Summary

from .text import seconds

PAGE = 50
"""Runs of a page."""
MOST = 500
"""Runs that something is done to at once."""
PATIENCE = 1.0
"""Seconds that are looked for runs which fit; then a page is shown that may have fewer."""

SEVERAL = 4
"""So many times as long is looked for runs that something is to be done to."""

_BATCH = 500
"""Runs that are read at a time where most of them may not fit."""


class BadFilter(ValueError):
    """A filter, or a cursor, that makes no sense."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Which runs are listed.

    Attributes:
        state: a `State`.
        name, tag: the whole of it.
        older, newer: how long ago they were engaged, at least and at most, such as ``2h``.
        text: a piece of the id, the name or a tag, in upper or lower case.
    """

    state: str = ""
    name: str = ""
    tag: str = ""
    older: str = ""
    newer: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """Those in the address of a page.

        Raises:
            BadFilter: one of them makes no sense.
        """
        given = {each.name: query.get(each.name, "").strip() for each in fields(cls)}
        given["state"] = given["state"].upper()
        if given["state"] and given["state"] not in State.__members__:
            raise BadFilter(f"{given['state']!r} is not one of {', '.join(State)}")
        try:
            _ = [seconds(given[name]) for name in ("older", "newer") if given[name]]
        except ValueError as exc:
            raise BadFilter(str(exc)) from None
        return cls(**given)

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def query(self, **more: str) -> str:
        """For the address of a page: those that are given, and *more*."""
        return urlencode({key: value for key, value in {**asdict(self), **more}.items() if value})

    def wanted(self) -> dict[str, Any]:
        """Those that the store knows."""
        state = State(self.state) if self.state else None
        return {"state": state, "name": self.name or None, "tag": self.tag or None}

    def fits(self, run: Summary, now: float) -> bool:
        """Whether *run* is one of those, as far as the store does not know."""
        if self.older and now - run.created_at < seconds(self.older):
            return False
        return not self.text or _contains(run, self.text.casefold())

    def begins(self, now: float) -> float:
        """Runs engaged before this time do not fit."""
        return now - seconds(self.newer) if self.newer else 0.0


@dataclass(frozen=True, slots=True)
class Page:
    """Runs, the newest first.

    Attributes:
        runs: those that fit.
        next: the cursor of the next page; "" at the end.
        looked: about how many runs were looked at.
        now: when, in seconds since the epoch.
    """

    runs: list[Summary]
    next: str
    looked: int
    now: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return {"runs": [summary(run) for run in self.runs], "next": self.next or None}


def page(store: ResultStore, filters: Filters, cursor: str = "", count: int = PAGE) -> Page:
    """At most *count* runs that fit, from *cursor* on.

    Raises:
        BadFilter: the cursor is not one that `Page.next` had.
    """
    now, deadline = time.time(), time.monotonic() + PATIENCE
    after, at = _cursor(cursor)
    begins, looked = filters.begins(now), 0
    found: list[Summary] = []
    batch = _BATCH if filters else count
    while True:
        try:
            runs, following = store.scan(at, batch, **filters.wanted())
        except ValueError as exc:
            raise BadFilter(f"{cursor!r} is not a cursor") from exc
        looked += batch if following else len(runs)
        for index, run in enumerate(runs):
            if after is not None and (run.created_at, run.run) >= after:
                continue
            if run.created_at < begins:
                return Page(found, "", looked, now)
            if not filters.fits(run, now):
                continue
            found.append(run)
            if len(found) == count:
                more = index + 1 < len(runs)
                # A batch is read again for its second part: the store's cursors are its own.
                last = f"{run.created_at!r} {run.run} {at}" if more else _whole(following)
                return Page(found, last, looked, now)
        after, at = None, following
        if not following or time.monotonic() > deadline:
            return Page(found, _whole(following), looked, now)


def every(
    store: ResultStore, filters: Filters, states: Collection[State], cursor: str = ""
) -> tuple[list[Summary], str]:
    """The runs from *cursor* on that fit and are in one of *states*, `MOST` at most, and the cursor
    to look further, which is not "" either where it took long to find them."""
    found: list[Summary] = []
    deadline = time.monotonic() + SEVERAL * PATIENCE
    while True:
        # Not more than there is room for, or the cursor would be behind those left out.
        part = page(store, filters, cursor, MOST - len(found))
        found += [run for run in part.runs if run.state in states]
        cursor = part.next
        if not cursor or len(found) == MOST or time.monotonic() > deadline:
            return found, cursor


def one(store: ResultStore, id: str) -> Summary | None:
    """The run *id*, as it is listed."""
    found = store.read(id)
    if found is None:
        return None
    meta = record.Meta.loads(found.meta)
    counts = meta.jobs, found.done, found.failing, found.dead
    times = found.created_at, found.updated_at, found.ended_at
    return Summary(id, meta.name, meta.tags, found.state, *counts, *times, len(found.due))


def summary(run: Summary) -> dict[str, Any]:
    """A run with the names of `Status`, as the command line prints it."""
    found = asdict(run)
    del found["due"]
    for name in ("created_at", "updated_at", "ended_at"):
        found[name] = found[name] and isoformat(found[name])
    return {"id": found.pop("run"), "total": found.pop("jobs"), **found}


def _contains(run: Summary, text: str) -> bool:
    return any(text in each.casefold() for each in _texts(run))


def _texts(run: Summary) -> Iterator[str]:
    yield run.run
    yield run.name or ""
    yield from run.tags


def _whole(at: str) -> str:
    """The cursor of a page that begins with a batch."""
    return f"  {at}" if at else ""


def _cursor(text: str) -> tuple[tuple[float, str] | None, str]:
    """Which run of its batch a page begins behind, and the store's cursor of the batch."""
    if not text:
        return None, ""
    try:
        created, run, at = text.split(" ", 2)
        return (float(created), run) if created else None, at
    except ValueError:
        raise BadFilter(f"{text!r} is not a cursor") from None
