"""What a run looks like from outside: frozen dataclasses, JSON in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from typing import Any


class State(str, Enum):
    """The state of a run. "Failing but retrying" is a count in `Status`, not a state."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


def name_of(kind: type[BaseException]) -> str:
    """An exception class, as it stands in a `Failure`."""
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


@dataclass(frozen=True, slots=True)
class Failure:
    """The latest failed attempt of a job that has no result yet.

    Attributes:
        address: the job's address in the plan.
        task: the task's name.
        task_id: Celery's id of the attempt.
        exception: qualified name of the exception's type.
        message: ``str()`` of the exception, its first 1,000 characters.
        traceback: the last 4,000 characters of the traceback.
        attempt: counted from 1.
        final: no retry follows.
        at: when it was recorded (UTC, ISO 8601).
    """

    address: str
    task: str
    task_id: str
    exception: str
    message: str
    traceback: str
    attempt: int
    final: bool
    at: str

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-friendly dict."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Failure:
        """The failure that `to_dict` wrote; keys it does not know are left out."""
        return cls(**{each.name: data[each.name] for each in fields(cls) if each.name in data})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, in jobs.

    Attributes:
        done: jobs with a result.
        total: all jobs of the plan.
        failing: jobs whose last attempt failed and that will be retried.
        dead: jobs that will not be retried.
        rate: jobs done in a second, on average from ``engage`` to the last event; None before the
            first.
        seconds_left: how long the rest will take at that rate; None while that is unknown, 0.0
            when the run has ended.
    """

    done: int
    total: int
    failing: int
    dead: int
    rate: float | None = field(default=None, compare=False)
    seconds_left: float | None = field(default=None, compare=False)

    @property
    def fraction(self) -> float:
        """``done / total``, from 0.0 to 1.0; 1.0 for an empty run."""
        return self.done / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one moment.

    Attributes:
        id, name, tags: as given to the clutch (``id`` generated where it was not given).
        state: a `State`.
        generation: 0, and one more after each ``resume``.
        total, done, failing, dead: see `Progress`.
        created_at, updated_at, ended_at: UTC, ISO 8601; ``ended_at`` is None while running.
        parent: ``{"run": id, "address": address}`` of the job that nested this run, or None.
        step: in a callback, the address of the step it is about; else None.
        failures: the failures of jobs that have no result yet, by address, 20 at most;
            `ClutchResult.failures` has all.
        failure_count: how many there are.
        exceptions: how many there are of each exception, by its qualified name, the most frequent
            first, 20 at most.
        draining: how many jobs still run of a run that has failed or was cancelled; 0 in callbacks.
        skipped: how many jobs will not run, because of a choice, or because the run goes on, or has
            ended, without them; they are among those ``done``.
        tolerated: how many jobs are dead that the run goes on without; they are among those
            ``done``, too.
    """

    id: str
    name: str | None
    tags: tuple[str, ...]
    state: State
    generation: int
    total: int
    done: int
    failing: int
    dead: int
    created_at: str
    updated_at: str
    ended_at: str | None
    parent: dict[str, str] | None
    step: str | None
    failures: tuple[Failure, ...]
    failure_count: int = 0
    exceptions: Mapping[str, int] = field(default_factory=dict)
    draining: int = 0
    skipped: int = 0
    tolerated: int = 0

    @property
    def progress(self) -> Progress:
        """The counts, and what they say of the time the rest will take."""
        seconds = _timestamp(self.updated_at) - _timestamp(self.created_at)
        rate = self.done / seconds if self.done and seconds > 0 else None
        left = (self.total - self.done) / rate if rate else None
        if self.state is not State.RUNNING:
            left = 0.0
        return Progress(self.done, self.total, self.failing, self.dead, rate, left)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-friendly dict; what handlers receive."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["state"] = str(self.state)
        data["tags"] = list(self.tags)
        data["exceptions"] = dict(self.exceptions)
        data["failures"] = [failure.to_dict() for failure in self.failures]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Status:
        """The status that `to_dict` wrote."""
        values = {each.name: data[each.name] for each in fields(cls) if each.name in data}
        values["state"] = State(values["state"])
        values["tags"] = tuple(values["tags"])
        values["failures"] = tuple(map(Failure.from_dict, values["failures"]))
        return cls(**values)


def _timestamp(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def isoformat(timestamp: float) -> str:
    """*timestamp* (seconds since the epoch) as UTC, ISO 8601."""
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat()
