"""What happens to runs, in the log: one line each at INFO, to the logger ``celery_clutch.runs``.

Each record has the run as ``clutch_run`` and the address as ``clutch_address``, for formatters that
write fields; see `celery_clutch.logs`.
"""

from __future__ import annotations

import logging
from typing import Any

from ..compile import record
from ..compile.header import Header
from ..model.graph import printable
from ..model.status import Failure, State

logger = logging.getLogger("celery_clutch.runs")

LONGEST = 200
"""Characters of the message of a failure that are logged at most."""


def engaged(run: str, meta: record.Meta) -> None:
    """A run was engaged."""
    jobs = "1 job" if meta.jobs == 1 else f"{meta.jobs} jobs"
    name = f" {meta.name!r}" if meta.name else ""
    inside = ""
    if meta.parent is not None:
        header = meta.parent.header
        inside = f", nested in job {header['at']} of run {header['run']}"
    _info("run %s%s was engaged: %s%s", run, name, jobs, inside, run=run)


def resumed(run: str, generation: int) -> None:
    """A run was resumed."""
    _info("run %s was resumed, and is of generation %d now", run, generation, run=run)


def forgotten(run: str) -> None:
    """A run was deleted."""
    _info("run %s was forgotten", run, run=run)


def ended(run: str, state: State, why: str = "") -> None:
    """A run has ended; *why*, where that is not plain."""
    _info("run %s has ended: %s%s", run, state.value, why and f", {why}", run=run)


def failed(header: Header, failure: Failure, *, tolerated: bool = False) -> None:
    """An attempt of a job has failed; *tolerated*: the run goes on without its branch."""
    message = printable(failure.message.strip().partition("\n")[0])
    if len(message) > LONGEST:
        message = f"{message[:LONGEST]}..."
    then = "it is dead" if failure.final else "another attempt follows"
    if tolerated:
        then = "it is dead, and the run goes on without it"
    _info(
        "job %s %s of run %s has failed in attempt %d: %s: %s; %s",
        header.at,
        failure.task,
        header.run,
        failure.attempt,
        failure.exception,
        message,
        then,
        run=header.run,
        address=header.at,
    )


def dropped(header: Header, why: str) -> None:
    """A message does nothing: that of a job, or one that sends a page."""
    job = f"job {header.at} of " if header.at else ""
    _info(
        "a message of %srun %s is dropped: %s",
        job,
        header.run,
        why,
        run=header.run,
        address=header.at,
    )


def _info(message: str, *args: Any, run: str, address: str = "") -> None:
    extra = {"clutch_run": run, "clutch_address": address or "-"}
    logger.info(message, *args, extra=extra, stacklevel=3)
