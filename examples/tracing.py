"""The trace of a clutch, drawn.

    pip install celery-clutch-otel opentelemetry-sdk
    python examples/tracing.py

A request engages a clutch, and is answered long before the clutch is done. Everything that follows
is in the request's trace: each attempt of each job, the spans that jobs make themselves, and the
clutch that one of them nests. It runs in this process, with no server; where the jobs run makes no
difference to the trace.
"""

from __future__ import annotations

import shutil
import sys
import time

from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from celery_clutch import Clutch, ClutchResult
from celery_clutch.testing import embedded

# An application has an exporter here that sends spans to where it looks at them.
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("photos")

app = Celery("photos", task_cls="celery_clutch:ClutchTask")


# --- the tasks --------------------------------------------------------------------------------


@app.task(name="fetch")
def fetch(name):
    with tracer.start_as_current_span("download", attributes={"photo": name}):
        time.sleep(0.1)
    time.sleep(0.03)
    return name


@app.task(name="resize", bind=True)
def resize(self, width):
    time.sleep(width / 8000)
    return f"{self.previous_results[0]} {width}px"


@app.task(name="scan", bind=True)
def scan(self):
    time.sleep(0.08)
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the scanner is busy"), countdown=0.3)
    return "clean"


@app.task(name="publish", bind=True)
def publish(self):
    time.sleep(0.05)
    letters = Clutch(parent=self, name="letters")
    with letters.parallel():
        letters << notify.s("ann")
        letters << notify.s("bob")
    letters.engage()
    return "published"


@app.task(name="notify")
def notify(who):
    time.sleep(0.12)
    return f"told {who}"


# --- what an application does ----------------------------------------------------------------


def answer() -> ClutchResult:
    """Answer a request: engage a clutch, and do not wait for it."""
    with tracer.start_as_current_span("POST /photos"):
        clutch = Clutch(name="sunset", app=app)
        clutch << fetch.s("sunset.png")
        with clutch.parallel():
            clutch << resize.s(640)
            clutch << resize.s(1280)
            clutch << scan.s()
        clutch << publish.s()
        return clutch.engage()


# --- drawing it -------------------------------------------------------------------------------


def draw(spans: list[ReadableSpan], width: int) -> list[str]:
    """A line for each span, below that of its parent, with a bar for when it was."""
    begin = min(span.start_time for span in spans)
    scale = width / (max(span.end_time for span in spans) - begin)
    rows = list(below(spans, None, ""))
    column = max(len(text) for text, _ in rows) + 2
    lines = []
    for text, span in rows:
        start = min(int((span.start_time - begin) * scale), width - 1)
        length = max(1, round((span.end_time - span.start_time) * scale))
        bar = " " * start + "▇" * min(length, width - start)
        lines.append(f"{text:{column}}{bar}")
    return lines


def below(spans: list[ReadableSpan], parent: int | None, indent: str):
    """What is inside the span *parent*, with how its line begins."""
    inside = [span for span in spans if (span.parent and span.parent.span_id) == parent]
    for span in sorted(inside, key=place):
        last = span is max(inside, key=place)
        head = "" if parent is None else f"{indent}{'└─ ' if last else '├─ '}"
        yield f"{head}{label(span)}", span
        further = "" if parent is None else indent + ("   " if last else "│  ")
        yield from below(spans, span.context.span_id, further)


def place(span: ReadableSpan) -> tuple[list[int], int]:
    """Jobs in the order of their addresses, attempts and all else in that of time."""
    address = (span.attributes or {}).get("clutch.job.address", "")
    return [int(part) for part in address.split(".") if part], span.start_time


def label(span: ReadableSpan) -> str:
    told = span.attributes or {}
    if "clutch.job.address" in told:
        number = told["clutch.job.attempt"]
        tries = f", attempt {number}" if number > 1 else ""
        failed = span.status.status_code is StatusCode.ERROR
        trouble = f": {span.status.description}" if failed else ""
        return f"{span.name} at {told['clutch.job.address']}{tries}{trouble}"
    if "clutch.run.state" in told:
        return f"{span.name} {told['clutch.run.state']}"
    return span.name


def main() -> int:
    with embedded(app):
        answer().get(timeout=60)
    # At the end of the block the worker has finished, and so all spans are exported.
    columns = shutil.get_terminal_size((110, 24)).columns
    print("\n".join(draw(list(exporter.get_finished_spans()), max(20, columns - 60))))
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # not every terminal has a tree to draw with
    sys.exit(main())
