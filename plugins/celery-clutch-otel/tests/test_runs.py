"""The agreement about the span of a run, on its own."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, Tracer, TraceState

from celery_clutch_otel import runs


class Foreign(Tracer):
    """A tracer that is not the SDK's, as other vendors have one."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer

    def start_span(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.start_as_current_span(*args, **kwargs)


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exported))
    return made


@pytest.fixture
def tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("tests")


def test_both_sides_come_to_the_same_span(tracer: Tracer, exported: Any) -> None:
    with tracer.start_as_current_span("request") as request:
        carrier = runs.agree(tracer, "clutch")
    assert all(isinstance(each, str) for pair in carrier.items() for each in pair)
    there = runs.find(tracer, "a run", 0, carrier)
    assert there.own.trace_id == request.get_span_context().trace_id
    assert there.parent is not None
    assert there.parent.span_id == request.get_span_context().span_id
    made = runs.maker(tracer, there)
    assert made is not None
    made.start_span("clutch", there.surroundings()).end()
    request_span, top = exported.get_finished_spans()
    assert top.context.span_id == there.own.span_id
    assert top.parent.span_id == request_span.context.span_id
    # The application's own tracer is as it was.
    tracer.start_span("other").end()
    *_, other = exported.get_finished_spans()
    assert other.context.span_id != there.own.span_id


def test_the_state_of_a_trace_travels(tracer: Tracer) -> None:
    above = SpanContext(1, 2, True, TraceFlags(TraceFlags.SAMPLED), TraceState([("vendor", "x")]))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(above)))
    try:
        carrier = runs.agree(tracer, "clutch")
    finally:
        context.detach(token)
    assert runs.find(tracer, "a run", 0, carrier).own.trace_state.get("vendor") == "x"


def test_each_generation_has_a_span_of_its_own(tracer: Tracer) -> None:
    carrier = runs.agree(tracer, "clutch")
    first, second, third = (runs.find(tracer, "a run", number, carrier) for number in range(3))
    assert len({each.own.span_id for each in (first, second, third)}) == 3
    assert len({each.own.trace_id for each in (first, second, third)}) == 1
    assert first.parent is None
    assert second.parent == third.parent == first.own


@pytest.mark.parametrize("generation", [0, 1])
def test_with_the_tracer_of_somebody_else_the_span_ends_at_once(
    tracer: Tracer, exported: Any, generation: int
) -> None:
    foreign = Foreign(tracer)
    carrier = runs.agree(foreign, "clutch photos")
    (top,) = exported.get_finished_spans()
    assert top.name == "clutch photos"
    for either in (foreign, tracer):  # the SDK may well be what the workers have
        there = runs.find(either, "a run", generation, carrier)
        assert there.own.span_id == top.context.span_id
        assert runs.maker(either, there) is None


def test_without_an_agreement_all_come_to_the_same_ids(tracer: Tracer) -> None:
    other = TracerProvider().get_tracer("elsewhere")
    one, two = (runs.find(each, "a run", 0, {}) for each in (tracer, other))
    assert one == two
    assert one.own.is_valid
    assert runs.find(tracer, "another", 0, {}).own.trace_id != one.own.trace_id
