"""The plugin: a span for each run and for each attempt of a job, and metrics of both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from celery import current_task, signals
from celery_clutch import State, hookimpl
from celery_clutch.model.events import Engaged, Finished, JobFailed, JobFinished, JobStarted
from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import Attributes

from . import runs

ENGAGED = "clutch-engaged"
"""Travels with a run: when it was engaged, in seconds since the epoch."""

SCOPE = "celery_clutch"

_ACTIVE = "_clutch_otel"
_INSIDE = context.create_key("clutch-job")
_JOB_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
_RUN_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

JobEvent = JobStarted | JobFinished | JobFailed


@dataclass(slots=True)
class Active:
    """An attempt that runs: kept on Celery's request, so that its end finds it."""

    job: tuple[str, int, str, int]
    span: Span
    clock: float
    token: Any = None

    def enter(self, around: context.Context) -> None:
        """Let the span be the current one."""
        inside = context.set_value(_INSIDE, self, trace.set_span_in_context(self.span, around))
        self.token = context.attach(inside)

    def leave(self) -> None:
        """End the span."""
        self.span.end()
        # Another instrumentation of the task may have put back its own context before.
        if context.get_value(_INSIDE) is self:
            context.detach(self.token)


class Telemetry:
    """Traces and metrics, by the global providers, which may be set later than this is made."""

    def __init__(self) -> None:
        self._version = version("celery-clutch-otel")
        meter = metrics.get_meter(SCOPE, self._version)
        self._runs = meter.create_counter(
            "clutch.runs", "{run}", "Runs that have come to a state; RUNNING when engaged."
        )
        self._jobs = meter.create_counter(
            "clutch.jobs", "{job}", "Attempts of jobs that have come to a state."
        )
        self._failures = meter.create_counter(
            "clutch.failures", "{failure}", "Failed attempts of jobs, by exception."
        )
        self._run_duration = meter.create_histogram(
            "clutch.run.duration",
            "s",
            "From the engaging of a run to its end.",
            explicit_bucket_boundaries_advisory=_RUN_BUCKETS,
        )
        self._job_duration = meter.create_histogram(
            "clutch.job.duration",
            "s",
            "How long the function of a job ran.",
            explicit_bucket_boundaries_advisory=_JOB_BUCKETS,
        )
        self._job_delay = meter.create_histogram(
            "clutch.job.delay",
            "s",
            "From the engaging of a run to the first attempt of each of its jobs.",
            explicit_bucket_boundaries_advisory=_JOB_BUCKETS,
        )

    # --- runs -----------------------------------------------------------------------------

    @hookimpl
    def clutch_context(self, engaged: Engaged) -> Mapping[str, str] | None:
        if not _configured():
            return None
        carrier = runs.agree(self._tracer(), _run_name(engaged.name))
        return {ENGAGED: f"{engaged.at:.6f}", **carrier}

    @hookimpl
    def clutch_engaged(self, event: Engaged) -> None:
        if not _configured():
            return
        self._runs.add(1, {"clutch.run.state": State.RUNNING.value})

    @hookimpl
    def clutch_finished(self, event: Finished) -> None:
        if not _configured():
            return
        state = {"clutch.run.state": event.state.value}
        self._runs.add(1, state)
        self._run_duration.record(max(0.0, event.ended_at - event.created_at), state)
        tracer = self._tracer()
        own = runs.find(tracer, event.run, event.generation, event.context)
        if (maker := runs.maker(tracer, own)) is None:
            return
        start, end = _engaged_at(event.context) or event.created_at, time.time()
        span = maker.start_span(
            _run_name(event.name),
            own.surroundings(),
            attributes=_run_attributes(event),
            start_time=_nanoseconds(start),
        )
        if event.state is State.FAILED:
            span.set_status(Status(StatusCode.ERROR, "a job is dead"))
        span.end(_nanoseconds(max(start, end)))

    # --- jobs -----------------------------------------------------------------------------

    @hookimpl
    def clutch_job_started(self, event: JobStarted) -> None:
        if not _configured():
            return
        self._count_job(event, "started")
        engaged = _engaged_at(event.context)
        if engaged and event.attempt == 1 and event.generation == 0:
            self._job_delay.record(max(0.0, event.at - engaged), {"clutch.job.task": event.task})
        around = context.get_current()
        active = Active(_job(event), self._start(event, around), time.perf_counter())
        active.enter(propagate.extract(event.context, around))
        setattr(current_task.request, _ACTIVE, active)

    @hookimpl
    def clutch_job_finished(self, event: JobFinished) -> None:
        if not _configured():
            return
        self._count_job(event, "done")
        if event.seconds:
            self._time_job(event, event.seconds, "done")
        active = _take(event)
        if active is not None:
            active.span.set_attribute("clutch.job.state", "done")
            active.leave()
        elif not event.seconds:
            # The value of a plain task, or of what a job has put in its place, was collected.
            span = self._start(event, context.Context())
            span.set_attributes({"clutch.job.state": "done", "clutch.job.collected": True})
            span.end()

    @hookimpl
    def clutch_job_failed(self, event: JobFailed) -> None:
        if not _configured():
            return
        state = "dead" if event.failure.final else "failing"
        kind = {"error.type": event.failure.exception}
        self._count_job(event, state)
        self._failures.add(1, {"clutch.job.task": event.task, **kind})
        active = _take(event)
        if active is not None:
            self._time_job(event, time.perf_counter() - active.clock, state)
        span = active.span if active else self._start(event, context.Context())
        span.set_attributes({"clutch.job.state": state, **kind})
        span.add_event("exception", _exception(event))
        if not event.failure.final:
            span.add_event("retry", {"clutch.job.attempt": event.attempt + 1})
        span.set_status(Status(StatusCode.ERROR, event.failure.message))
        if active:
            active.leave()
        else:
            span.end()

    # --- private --------------------------------------------------------------------------

    def _tracer(self) -> Tracer:
        return trace.get_tracer_provider().get_tracer(SCOPE, self._version)

    def _start(self, event: JobEvent, around: context.Context) -> Span:
        """The span of an attempt: inside that of its run, linked to the one that is current."""
        tracer = self._tracer()
        run = runs.find(tracer, event.run, event.generation, event.context)
        current = trace.get_current_span(around).get_span_context()
        return tracer.start_span(
            f"job {event.task}",
            run.around(around),
            SpanKind.CONSUMER,
            _job_attributes(event),
            [Link(current)] if current.is_valid else None,
        )

    def _count_job(self, event: JobEvent, state: str) -> None:
        self._jobs.add(1, {"clutch.job.task": event.task, "clutch.job.state": state})

    def _time_job(self, event: JobEvent, seconds: float, state: str) -> None:
        attributes = {"clutch.job.task": event.task, "clutch.job.state": state}
        self._job_duration.record(seconds, attributes)


telemetry = Telemetry()


@signals.task_postrun.connect(weak=False)
def _left(task: Any = None, **_: Any) -> None:
    """An attempt is over of whose outcome nobody has told.

    It has nested a clutch, put another task in its place, or gives its message back.
    """
    active = getattr(task.request, _ACTIVE, None)
    if active is not None:
        delattr(task.request, _ACTIVE)
        active.leave()


def _take(event: JobEvent) -> Active | None:
    """The attempt of *event*, if it runs here and now."""
    request = current_task.request if current_task else None
    active: Active | None = getattr(request, _ACTIVE, None)
    if active is None or active.job != _job(event):
        return None
    delattr(request, _ACTIVE)
    return active


def _job(event: JobEvent) -> tuple[str, int, str, int]:
    return event.run, event.generation, event.address, event.attempt


def _configured() -> bool:
    """Whether somebody has set a provider: the API's own do nothing."""
    traces = type(trace.get_tracer_provider()).__module__
    return not (
        traces.startswith("opentelemetry.trace")
        and type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics")
    )


def _engaged_at(carrier: Mapping[str, str]) -> float | None:
    return float(carrier[ENGAGED]) if ENGAGED in carrier else None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _run_name(name: str | None) -> str:
    return f"clutch {name}" if name else "clutch"


def _run_attributes(event: Finished) -> Attributes:
    found: dict[str, Any] = {
        "clutch.run.id": event.run,
        "clutch.run.state": event.state.value,
        "clutch.run.generation": event.generation,
        "clutch.run.jobs": event.jobs,
        "clutch.run.done": event.done,
    }
    if event.name:
        found["clutch.run.name"] = event.name
    if event.tags:
        found["clutch.run.tags"] = event.tags
    if event.parent:
        found["clutch.parent.run"] = event.parent["run"]
        found["clutch.parent.address"] = event.parent["address"]
    return found


def _job_attributes(event: JobEvent) -> Attributes:
    return {
        "clutch.run.id": event.run,
        "clutch.run.generation": event.generation,
        "clutch.job.address": event.address,
        "clutch.job.task": event.task,
        "clutch.job.attempt": event.attempt,
        "messaging.system": "celery",
        "messaging.operation.type": "process",
        "messaging.operation.name": "run",
        "messaging.message.id": event.task_id,
        "messaging.message.conversation_id": event.run,
    }


def _exception(event: JobFailed) -> Attributes:
    failure = event.failure
    return {
        "exception.type": failure.exception,
        "exception.message": failure.message,
        "exception.stacktrace": failure.traceback,
    }
