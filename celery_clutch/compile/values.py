"""Reading the values of a run: what a shape is by now, and what is stored there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import MissingResult
from ..model import absent, shape
from ..model.absent import Skipped
from ..model.shape import Added, Shape
from ..model.status import State
from ..stores.base import STOPPED, Missing, ResultStore
from ..stores.rows import UNUSUAL
from .header import Header


class Decisions:
    """What was decided in a run: read when it is asked for, and kept.

    Args:
        store: of the run.
        run: its id.
    """

    def __init__(self, store: ResultStore, run: str) -> None:
        self.store = store
        self.run = run
        self._known: dict[str, Any] = {}
        self._added: Added | None = None

    def __call__(self, address: str) -> Any:
        """The value of a decider, or how many branches a map has.

        Raises:
            MissingResult: there is none.
        """
        if address not in self._known:
            (data,) = self.store.patiently(self.store.values, self.run, [address])
            if data is Missing:
                raise missing(self.store, self.run, address)
            self._known[address] = absent.decode(data)
        return self._known[address]

    @property
    def added(self) -> Added:
        """The branches that were added while the run ran."""
        if self._added is None:
            store = self.store
            (unusual,) = store.patiently(store.counts, self.run, [UNUSUAL])
            self._added = store.patiently(store.added, self.run) if unusual else {}
        return self._added

    def resolve(self, of: Shape, *, grown: bool = True) -> Shape:
        """*of* as it is by now; *grown* says that branches may have been added.

        Raises:
            MissingResult: something in it is not decided.
        """
        if not grown and not shape.is_open(of):
            return of
        return shape.resolve(of, self, self.added)


def previous_value(store: ResultStore, header: Header) -> Any:
    """What Celery would prepend: the previous result, or a list of them after a parallel step."""
    values = previous_values(store, header)
    return values if shape.is_parallel(header.previous) else values[0]


def previous_values(store: ResultStore, header: Header) -> list[Any]:
    """The previous results of a job, in definition order; one round trip.

    Raises:
        MissingResult: one of them is not in the store.
    """
    return read(store, header.run, shape.members(header.previous), existed=True)


def read(
    store: ResultStore, run: str, shapes: Sequence[Shape], *, existed: bool = False
) -> list[Any]:
    """The values of these shapes, in which nothing is undecided; one round trip.

    *existed* says that the jobs are known to have had results.

    Raises:
        MissingResult: one of them is not in the store.
    """

    def stand_in(address: str, skipped: bool) -> Any:
        if skipped:
            return Skipped(address)
        raise missing(store, run, address, existed=existed)

    values = _stored(store, run, shapes)
    return [shape.arrange(each, values, stand_in, early=not existed) for each in shapes]


def last(store: ResultStore, run: str, of: Shape, *, whole: bool = True) -> list[Any]:
    """The results of a run whose last step has the shape *of*; without *whole*, None for each that
    is not there.

    Raises:
        MissingResult: one of them is not in the store.
    """
    stopped = False
    if shape.is_open(of):
        (value,) = store.patiently(store.values, run, [STOPPED])
        stopped = value is not Missing
    resolved = "" if stopped else _resolved(store, run, of, whole)

    def stand_in(address: str, skipped: bool) -> Any:
        if skipped:
            return Skipped(address)
        if whole:
            raise missing(store, run, address)
        return None

    values = _stored(store, run, [resolved], STOPPED)
    if STOPPED in values:
        return [values[STOPPED]]
    return shape.arrange_members(resolved, values, stand_in, early=True)


def _resolved(store: ResultStore, run: str, of: Shape, whole: bool) -> Shape:
    try:
        return Decisions(store, run).resolve(of, grown=_is_wide(of))
    except MissingResult:
        if whole:
            raise
        return ""


def _is_wide(of: Shape) -> bool:
    return isinstance(of, (list, dict)) or "*" in of


def _stored(store: ResultStore, run: str, shapes: Sequence[Shape], *more: str) -> dict[str, Any]:
    """What there is at the addresses of *shapes* and at those that are *more*."""
    wanted = [address for each in shapes for address in shape.addresses(each) if address]
    wanted.extend(more)
    found = store.patiently(store.values, run, wanted)
    pairs = zip(wanted, found, strict=True)
    return {address: absent.decode(data) for address, data in pairs if data is not Missing}


def missing(store: ResultStore, run: str, address: str, *, existed: bool = False) -> MissingResult:
    """Says why the job at *address* has no result in the store."""
    return MissingResult(_why_missing(store, run, address, existed), address)


def skipped(run: str, address: str) -> MissingResult:
    """Says that the job at *address* has no result and will have none, because it does not run."""
    return MissingResult(f"job {address} of run {run} has no result: it was skipped", address)


def _why_missing(store: ResultStore, run: str, address: str, existed: bool) -> str:
    found = store.patiently(store.read, run)
    if found is None:
        return (
            f"the result of {address} cannot be read because run {run} is gone: it was forgotten, "
            "or has expired (clutch_ttl, clutch_result_ttl)"
        )
    job = f"job {address} of run {run}"
    data = found.failures.get(address)
    failure = orjson.loads(data) if data else {"exception": "", "message": "", "final": False}
    died_of = f"{failure['exception']}: {failure['message']}"
    if address in found.tolerated:
        return f"{job} has no result: it died of {died_of}, and the run goes on without it"
    if failure["final"] and address not in found.finished:
        return f"{job} has no result: it died of {died_of}"
    ran = address in store.patiently(store.infos, run)
    if found.state is State.SUCCEEDED and not existed and not ran:
        (count,) = store.patiently(store.counts, run, ["skipped"])
        if count:
            return str(skipped(run, address))
    if existed or ran or found.state is State.SUCCEEDED:
        return (
            f"{job} had a result that is no longer in the store: it has expired there, or the "
            "server evicts keys (maxmemory-policy)"
        )
    yet = " yet" if found.state is State.RUNNING else ""
    return f"{job} has no result{yet}: the run is {found.state}"
