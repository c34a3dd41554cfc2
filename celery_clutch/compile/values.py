"""Reading the values of a run: what a shape is by now, and what is stored there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def explain(address: str) -> Any:
        raise missing(store, run, address, existed=existed)

    return _read(store, run, shapes, explain)


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
    members: Sequence[Shape] = []
    if not stopped:
        members = shape.members(_resolved(store, run, of, whole))

    def explain(address: str) -> Any:
        if whole:
            raise missing(store, run, address)

    return _read(store, run, members, explain, or_else=STOPPED)


def _resolved(store: ResultStore, run: str, of: Shape, whole: bool) -> Shape:
    try:
        return Decisions(store, run).resolve(of, grown=_is_wide(of))
    except MissingResult:
        if whole:
            raise
        return ""


def _is_wide(of: Shape) -> bool:
    return isinstance(of, (list, dict)) or "*" in of


def _read(
    store: ResultStore,
    run: str,
    shapes: Sequence[Shape],
    explain: Callable[[str], Any],
    or_else: str = "",
) -> list[Any]:
    """The values of *shapes*, or only that at the address *or_else* if there is one."""
    wanted = [address for each in shapes for address in shape.addresses(each) if address]
    if or_else:
        wanted.append(or_else)
    values: dict[str, Any] = {}
    found = store.patiently(store.values, run, wanted)
    for address, data in zip(wanted, found, strict=True):
        if data is not Missing:
            values[address] = absent.decode(data)
    if or_else in values:
        return [values[or_else]]

    def stand_in(address: str, skipped: bool) -> Any:
        return Skipped(address) if skipped else explain(address)

    return [shape.arrange(each, values, stand_in) for each in shapes]


def missing(store: ResultStore, run: str, address: str, *, existed: bool = False) -> MissingResult:
    """Says why the job at *address* has no result in the store."""
    found = store.patiently(store.read, run)
    if found is None:
        return MissingResult(
            f"the result of {address} cannot be read because run {run} is gone: it was forgotten, "
            "or has expired (clutch_ttl, clutch_result_ttl)"
        )
    job = f"job {address} of run {run}"
    data = found.failures.get(address)
    failure = orjson.loads(data) if data and address not in found.finished else None
    if failure and failure["final"]:
        died_of = f"{failure['exception']}: {failure['message']}"
        return MissingResult(f"{job} has no result: it died of {died_of}")
    if address in found.tolerated:
        return MissingResult(f"{job} has no result: it died, and the run goes on without it")
    ran = address in store.patiently(store.infos, run)
    if found.state is State.SUCCEEDED and not existed and not ran:
        (skipped,) = store.patiently(store.counts, run, ["skipped"])
        if skipped:
            return MissingResult(f"{job} has no result: it was skipped")
    if existed or ran or found.state is State.SUCCEEDED:
        return MissingResult(
            f"{job} had a result that is no longer in the store: it has expired there, or the "
            "server evicts keys (maxmemory-policy)"
        )
    yet = " yet" if found.state is State.RUNNING else ""
    return MissingResult(f"{job} has no result{yet}: the run is {found.state}")
