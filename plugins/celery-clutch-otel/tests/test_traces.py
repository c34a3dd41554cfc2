"""The spans of runs, on an embedded worker."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery_clutch import Clutch, ClutchError, State, parallel
from celery_clutch.testing import embedded
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from . import app as tasks
from .conftest import Spans, Switch, until

JOB = f"job {tasks.__name__}"
FETCH, RESIZE, FLAKY, BROKEN = (f"{JOB}.{each}" for each in ("fetch", "resize", "flaky", "broken"))


def clutch(*steps: Any, **options: Any) -> Clutch:
    return Clutch(*steps, app=tasks.app, **options)


def inside(span: ReadableSpan, outer: ReadableSpan) -> bool:
    """Whether *outer* is the parent of *span*, in one trace."""
    same = span.context.trace_id == outer.context.trace_id
    return same and span.parent is not None and span.parent.span_id == outer.context.span_id


def attributes(span: ReadableSpan, *names: str) -> tuple[Any, ...]:
    return tuple((span.attributes or {}).get(f"clutch.{name}") for name in names)


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def test_a_run_is_a_trace(spans: Spans) -> None:
    steps = tasks.fetch.s("a"), parallel(tasks.resize.s(1), tasks.resize.s(2))
    run = clutch(*steps, name="photos", tags=["x", "y"]).engage()
    assert len(run.get(timeout=60)) == 2
    top, fetch, one, two, mine = spans.wait("clutch photos", FETCH, RESIZE, RESIZE, "download")
    assert top.parent is None
    assert all(inside(job, top) for job in (fetch, one, two))
    assert inside(mine, fetch)  # what the job does is inside it
    assert attributes(top, "run.id", "run.name", "run.tags", "run.state") == (
        *(run.id, "photos", ("x", "y")),
        "SUCCEEDED",
    )
    assert attributes(top, "run.jobs", "run.done", "run.generation") == (3, 3, 0)
    assert attributes(fetch, "run.id", "job.address", "job.attempt") == (run.id, "0", 1)
    assert {attributes(job, "job.address", "job.state") for job in (one, two)} == {
        ("1.0", "done"),
        ("1.1", "done"),
    }
    assert fetch.attributes["messaging.system"] == "celery"
    assert fetch.attributes["messaging.message.id"]
    assert (top.kind, fetch.kind) == (SpanKind.INTERNAL, SpanKind.CONSUMER)
    assert {span.status.status_code for span in (top, fetch, one, two)} == {StatusCode.UNSET}
    assert top.start_time <= fetch.start_time <= fetch.end_time <= one.start_time
    assert max(one.end_time, two.end_time) <= top.end_time


def test_a_run_without_a_name(spans: Spans) -> None:
    clutch(tasks.fetch.s("a")).engage().get(timeout=60)
    spans.wait("clutch", FETCH, "download")


def test_each_attempt_is_a_span(spans: Spans) -> None:
    clutch(tasks.flaky.s(2), name="retried").engage().get(timeout=60)
    top, *attempts = spans.wait("clutch retried", FLAKY, FLAKY, FLAKY)
    assert all(inside(each, top) for each in attempts)
    assert [attributes(each, "job.attempt", "job.state") for each in attempts] == [
        (1, "failing"),
        (2, "failing"),
        (3, "done"),
    ]
    assert [events(each) for each in attempts] == [["exception", "retry"]] * 2 + [[]]
    failed, retried = attempts[0].events
    assert failed.attributes["exception.type"] == "ConnectionError"
    assert failed.attributes["exception.message"] == "the line is busy"
    assert retried.attributes["clutch.job.attempt"] == 2
    assert attempts[0].status.status_code is StatusCode.ERROR
    assert attempts[0].status.description == "the line is busy"
    assert attempts[0].attributes["error.type"] == "ConnectionError"
    assert {attempts[2].status.status_code, top.status.status_code} == {StatusCode.UNSET}


def test_death(spans: Spans) -> None:
    run = clutch(tasks.broken.s(), tasks.fetch.s("never"), name="dead").engage()
    with pytest.raises(ClutchError):
        run.get(timeout=60)
    top, job = spans.wait("clutch dead", BROKEN)
    assert attributes(job, "job.state") == ("dead",)
    (exception,) = job.events
    assert exception.name == "exception"
    assert "in broken" in exception.attributes["exception.stacktrace"]
    assert (job.status.status_code, job.status.description) == (StatusCode.ERROR, "it is broken")
    assert top.status.status_code is StatusCode.ERROR
    assert attributes(top, "run.state", "run.done") == ("FAILED", 0)


def test_a_nested_run_is_inside_the_job_that_nested_it(spans: Spans) -> None:
    run = clutch(tasks.nesting.s(), tasks.resize.s(2), name="outer").engage()
    run.get(timeout=60)
    names = "clutch outer", f"{JOB}.nesting", "clutch inner", FETCH, RESIZE, RESIZE, "download"
    top, nesting, inner, fetch, first, second, _ = spans.wait(*names)
    assert inside(nesting, top)
    assert inside(inner, nesting)
    assert inside(fetch, inner)
    assert inside(first, inner)
    assert inside(second, top)
    assert attributes(inner, "parent.run", "parent.address") == (run.id, "0")
    assert nesting.end_time <= inner.end_time <= second.start_time


def test_a_nested_death_goes_up(spans: Spans) -> None:
    run = clutch(tasks.nesting_broken.s(), name="outer").engage()
    with pytest.raises(ClutchError):
        run.get(timeout=60)
    nesting = f"{JOB}.nesting_broken"
    top, began, died, inner, broken = spans.wait(
        "clutch outer", nesting, nesting, "clutch inner", BROKEN
    )
    assert inside(inner, began)
    assert inside(broken, inner)
    assert inside(died, top)
    assert attributes(died, "job.state") == ("dead",)
    assert died.attributes["error.type"] == "celery_clutch.errors.NestedClutchFailed"
    assert {s.status.status_code for s in (top, died, inner, broken)} == {StatusCode.ERROR}


def test_cancel(spans: Spans) -> None:
    run = clutch(tasks.waiting.s(), tasks.fetch.s("never"), name="cancelled").engage()
    assert tasks.entered.wait(60)
    assert run.cancel()
    tasks.gate.set()
    top, job = spans.wait("clutch cancelled", f"{JOB}.waiting")
    assert attributes(top, "run.state") == (State.CANCELLED.value,)
    assert top.status.status_code is StatusCode.UNSET
    assert inside(job, top)  # it was running, and has finished
    assert attributes(job, "job.state") == ("done",)


def test_a_resumed_run_goes_on_in_its_trace(spans: Spans) -> None:
    run = clutch(tasks.waiting.s(), tasks.fetch.s("a"), name="resumed").engage()
    assert tasks.entered.wait(60)
    run.cancel()
    tasks.gate.set()
    spans.wait("clutch resumed", f"{JOB}.waiting")
    assert run.resume()
    run.get(timeout=60)
    first, again, *_ = spans.wait(
        *("clutch resumed", "clutch resumed", f"{JOB}.waiting", FETCH, "download")
    )
    if attributes(first, "run.generation") == (1,):
        first, again = again, first
    (fetch,) = spans.of(FETCH)
    assert inside(again, first)
    assert inside(fetch, again)
    assert attributes(first, "run.state", "run.generation") == ("CANCELLED", 0)
    assert attributes(again, "run.state", "run.generation") == ("SUCCEEDED", 1)
    assert attributes(fetch, "run.generation") == (1,)
    assert first.context.span_id != again.context.span_id


def test_a_run_joins_the_trace_it_is_engaged_in(spans: Spans) -> None:
    with trace.get_tracer("mine").start_as_current_span("request"):
        run = clutch(tasks.fetch.s("a"), name="joined").engage()
    run.get(timeout=60)
    request, top, fetch, _ = spans.wait("request", "clutch joined", FETCH, "download")
    assert inside(top, request)
    assert inside(fetch, top)
    assert request.end_time < top.end_time


def test_a_run_engaged_in_a_job_but_not_nested_joins_too(spans: Spans) -> None:
    clutch(tasks.detached.s(), name="outer").engage().get(timeout=60)
    names = "clutch outer", f"{JOB}.detached", "clutch detached", FETCH, "download"
    _, job, other, fetch, _ = spans.wait(*names)
    assert inside(other, job)
    assert inside(fetch, other)


def test_baggage_travels_with_a_run(spans: Spans) -> None:
    token = context.attach(baggage.set_baggage("customer", "ann"))
    try:
        run = clutch(tasks.fetch.s("a"), parallel(tasks.who.s(), tasks.who.s())).engage()
    finally:
        context.detach(token)
    assert run.get(timeout=60) == ["ann", "ann"]


def test_a_plain_task_is_seen_when_its_value_is_collected(spans: Spans) -> None:
    clutch(tasks.plain.s(1), name="plain").engage().get(timeout=60)
    top, job = spans.wait("clutch plain", f"{JOB}.plain")
    assert inside(job, top)
    assert attributes(job, "job.state", "job.collected") == ("done", True)


def test_a_job_that_is_replaced(spans: Spans) -> None:
    assert clutch(tasks.handing_on.s(), name="replaced").engage().get(timeout=60) == ["handed on"]
    name = f"{JOB}.handing_on"
    top, one, two, _ = spans.wait("clutch replaced", name, name, "download")
    assert inside(one, top)
    assert inside(two, top)
    assert sorted([attributes(each, "job.collected")[0] or False for each in (one, two)]) == [
        False,
        True,
    ]


@pytest.mark.parametrize("steps", [[tasks.nesting.s()], [tasks.flaky.s(1)], [tasks.handing_on.s()]])
def test_nothing_stays_current_in_the_worker(exporter: Any, steps: list[Any]) -> None:
    tasks.current.clear()
    with embedded(tasks.app, pool="solo"):
        clutch(*steps).engage().get(timeout=60)
        tasks.look.delay()
        until(lambda: tasks.current)
    assert tasks.current == [False]


def test_a_job_is_linked_to_the_span_of_its_message(spans: Spans) -> None:
    """Somebody else's instrumentation of Celery has a span for each task."""
    from celery.signals import task_postrun, task_prerun

    attached: dict[str, Any] = {}
    tracer = trace.get_tracer("somebody else")

    def before(task_id: str = "", **_: Any) -> None:
        span = tracer.start_span("message")
        attached[task_id] = span, context.attach(trace.set_span_in_context(span))

    def after(task_id: str = "", **_: Any) -> None:
        span, token = attached.pop(task_id)
        span.end()
        context.detach(token)

    task_prerun.connect(before)
    task_postrun.connect(after)
    try:
        clutch(tasks.nesting.s(), name="outer").engage().get(timeout=60)
        until(lambda: spans.of("clutch outer"))
    finally:
        task_prerun.disconnect(before)
        task_postrun.disconnect(after)
    (job,) = spans.of(f"{JOB}.nesting")
    (link,) = job.links
    assert link.context.span_id in {span.context.span_id for span in spans.of("message")}
    assert inside(job, spans.of("clutch outer")[0])


def test_what_is_not_sampled_is_not_exported(spans: Spans, sampler: type[Switch]) -> None:
    sampler.now = ParentBased(ALWAYS_OFF)
    dull = clutch(tasks.nesting.s(), tasks.flaky.s(1), name="dull").engage()
    dull.get(timeout=60)
    # Neither is what follows once the sampler has changed its mind: the run was decided about.
    late = clutch(tasks.waiting.s(), tasks.fetch.s("a"), name="late").engage()
    assert tasks.entered.wait(60)
    sampler.now = ParentBased(ALWAYS_ON)
    tasks.gate.set()
    late.get(timeout=60)
    clutch(tasks.plain.s(1), name="wanted").engage().get(timeout=60)
    spans.wait("clutch wanted", f"{JOB}.plain")


def test_the_decision_of_a_surrounding_span_is_kept(spans: Spans, sampler: type[Switch]) -> None:
    sampler.now = ParentBased(ALWAYS_OFF)
    with trace.get_tracer("mine").start_as_current_span("request"):
        sampler.now = ParentBased(ALWAYS_ON)
        clutch(tasks.fetch.s("a"), name="dull").engage().get(timeout=60)
    clutch(tasks.plain.s(1), name="wanted").engage().get(timeout=60)
    spans.wait("clutch wanted", f"{JOB}.plain")


def test_a_ratio_keeps_whole_traces(spans: Spans, sampler: type[Switch]) -> None:
    sampler.now = TraceIdRatioBased(0.5)  # of each span, without asking its parent
    runs = [clutch(tasks.plain.s(1), tasks.resize.s(1)).engage() for _ in range(24)]
    for run in runs:
        run.get(timeout=60)
    sampler.now = ALWAYS_ON
    clutch(tasks.plain.s(1), name="last").engage().get(timeout=60)
    until(lambda: spans.of("clutch last"))
    kept = spans.of("clutch")
    assert 0 < len(kept) < 24
    until(lambda: len(spans.of(RESIZE)) == len(kept), spans.names)
    ours = {span.context.trace_id for span in kept}
    assert {span.context.trace_id for span in spans.of(RESIZE)} == ours


def test_in_eager_mode(exporter: Any) -> None:
    exporter.clear()
    spans = Spans(exporter)
    eager = Celery("eager", task_cls="celery_clutch:ClutchTask", set_as_current=False)
    eager.conf.task_always_eager = True

    @eager.task(bind=True, max_retries=1, name="eager.flaky")
    def flaky(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(exc=ConnectionError("busy"), countdown=0)
        return "done"

    @eager.task(bind=True, name="eager.nesting")
    def nesting(self: Any) -> None:
        Clutch(flaky.s(), name="inner", parent=self).engage()

    run = Clutch(nesting.s(), name="eager", app=eager).engage()
    assert run.state is State.SUCCEEDED
    names = "clutch eager", "job eager.nesting", "clutch inner", "job eager.flaky"
    top, job, inner, first, second = spans.wait(*names, "job eager.flaky")
    assert inside(job, top)
    assert inside(inner, job)
    assert inside(first, inner)
    assert inside(second, inner)
    assert not trace.get_current_span().get_span_context().is_valid
