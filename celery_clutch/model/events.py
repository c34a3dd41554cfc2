"""What observers are told: one frozen dataclass for each hook. Pure; knows no Celery.

``at`` is in seconds since the epoch, by the clock of the process that tells; ``created_at`` and
``ended_at`` are so by that of the store; ``seconds`` is a duration. ``context`` is what
``clutch_context`` hooks gave when the run was engaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .status import Failure, State


@dataclass(frozen=True, slots=True)
class Engaged:
    """A run was stored and its first messages were sent.

    ``parent`` is ``{"run": id, "address": address}`` of the job that nested it, or None.
    """

    run: str
    name: str | None
    tags: tuple[str, ...]
    jobs: int
    parent: Mapping[str, str] | None
    at: float
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _OfAttempt:
    run: str
    generation: int
    address: str
    task: str
    task_id: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class JobStarted(_OfAttempt):
    """An attempt of a job is about to run. ``attempt`` counts from 1.

    Not told of tasks that are not ClutchTasks.
    """

    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobFinished(_OfAttempt):
    """A job has its result. ``seconds`` is how long its function ran; 0.0 where that is unknown."""

    seconds: float
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobFailed(_OfAttempt):
    """An attempt of a job has failed; ``failure.final`` says whether no retry follows."""

    failure: Failure
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepSettled:
    """All members of a step have completed or failed for the first time.

    Told only of runs engaged by a process that has an observer for it: counting takes store memory.
    ``failed`` says whether one of them has failed.
    """

    run: str
    generation: int
    step: str
    failed: bool
    at: float
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run has succeeded, failed, or was cancelled. A failed one may recover and finish again."""

    run: str
    name: str | None
    tags: tuple[str, ...]
    state: State
    generation: int
    jobs: int
    done: int
    created_at: float
    ended_at: float
    parent: Mapping[str, str] | None
    context: Mapping[str, str] = field(default_factory=dict)


Event = Engaged | JobStarted | JobFinished | JobFailed | StepSettled | Finished
