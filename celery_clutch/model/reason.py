"""Why a run does not go on, as `ClutchResult.why` says it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .status import isoformat


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact about what a run waits for. ``str()`` of it is its sentence.

    Attributes:
        kind: what it is about:

            ``ended``: the run is over;
            ``running``: a job runs, and on which host;
            ``died``: the process that had a job has died, or seems to;
            ``retry``: a job has failed, and when its next attempt is due;
            ``later``: a job has a ``countdown`` or ``eta``;
            ``waiting``: messages that have not begun;
            ``due``: what is due and is not known to have been sent;
            ``nested``: a job waits for another run;
            ``replaced``: other tasks stand in the place of a job;
            ``expired``: the deadline of the run has passed;
            ``quiet``: nothing else is known;

            and from what workers have answered: ``no worker`` answers, a ``queue`` that nobody
            consumes, a ``task`` that no worker knows, a worker with another ``store``.
        sentence: the fact.
        run: the id of the run; that of a nested run, where the fact is about one.
        address: of the job, or of the first of several; "" for the run.
        since: since when, or for ``retry`` and ``later`` at what time, in seconds since the epoch;
            None where that is not known.
        fix: what helps, or "".
    """

    kind: str
    sentence: str
    run: str = ""
    address: str = ""
    since: float | None = None
    fix: str = ""

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data; ``since`` in the form of ISO 8601."""
        return {**asdict(self), "since": None if self.since is None else isoformat(self.since)}
