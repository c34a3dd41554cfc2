"""What needs the SDK: ids and sampling decisions for a span that is made later.

The provider, its sampler and its processors stay as they are. Imported only where the application
has set a provider.
"""

from __future__ import annotations

from copy import copy

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Tracer
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, SamplingResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags


def allot(tracer: Tracer, name: str, around: SpanContext) -> SpanContext:
    """Ids for a span inside *around*, and whether it is sampled."""
    generator = tracer.id_generator
    trace_id = around.trace_id if around.is_valid else generator.generate_trace_id()
    context = trace.set_span_in_context(NonRecordingSpan(around), Context())
    result = _ask(tracer, context, trace_id, name)
    sampled = TraceFlags.SAMPLED if result.decision.is_sampled() else TraceFlags.DEFAULT
    return SpanContext(
        trace_id,
        generator.generate_span_id(),
        is_remote=False,
        trace_flags=TraceFlags(sampled),
        trace_state=result.trace_state,
    )


def sampled(tracer: Tracer, name: str, trace_id: int) -> bool:
    """Whether the sampler wants a trace that begins with *name*."""
    return bool(_ask(tracer, Context(), trace_id, name).decision.is_sampled())


def maker(tracer: Tracer, own: SpanContext) -> Tracer:
    """A copy of *tracer* whose next span has the ids *own*; that it is sampled is decided."""
    copied = copy(tracer)
    copied.id_generator = _Agreed(own)
    copied.sampler = ALWAYS_ON
    return copied


def _ask(tracer: Tracer, context: Context, trace_id: int, name: str) -> SamplingResult:
    return tracer.sampler.should_sample(context, trace_id, name, trace.SpanKind.INTERNAL)


class _Agreed(IdGenerator):
    def __init__(self, own: SpanContext) -> None:
        self._own = own

    def generate_trace_id(self) -> int:
        return self._own.trace_id

    def generate_span_id(self) -> int:
        return self._own.span_id
