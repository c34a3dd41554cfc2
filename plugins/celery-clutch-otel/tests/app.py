"""Tasks for the tests; also what the worker in its own process runs."""

from __future__ import annotations

import os
import signal
import threading

from celery import Celery, Task
from celery.signals import worker_init, worker_process_shutdown
from celery_clutch import Clutch
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from celery_clutch_otel.processes import EachProcess

app = Celery("traced", task_cls="celery_clutch:ClutchTask", set_as_current=False)
app.conf.update(
    clutch_lease=1.0,
    clutch_max_starts=1,
    broker_url=os.environ.get("TRACED_BROKER"),
    result_backend=os.environ.get("TRACED_BROKER"),
    broker_connection_retry_on_startup=True,
    task_default_queue="celery-clutch-otel",
)

gate = threading.Event()
entered = threading.Event()
current: list[bool] = []


@app.task
def fetch(name):
    with trace.get_tracer("mine").start_as_current_span("download"):
        return name


@app.task(bind=True)
def resize(self, width):
    return f"{self.previous_results} {width}"


@app.task(bind=True, max_retries=2)
def flaky(self, failures):
    if self.request.retries < failures:
        # At once it could overtake this attempt, whose failure is recorded after the retry is sent.
        raise self.retry(exc=ConnectionError("the line is busy"), countdown=0.2)
    return "reached"


@app.task
def broken():
    raise ValueError("it is broken")


@app.task(bind=True)
def nesting(self, name="inner"):
    inner = Clutch(parent=self, name=name)
    inner << fetch.s(name) << resize.s(1)
    inner.engage()
    return "outer"


@app.task(bind=True)
def nesting_broken(self):
    inner = Clutch(parent=self, name="inner")
    inner << broken.s()
    inner.engage()


@app.task(bind=True)
def detached(self):
    return Clutch(fetch.s("elsewhere"), name="detached", app=app).engage().id


@app.task(bind=True)
def handing_on(self):
    raise self.replace(fetch.s("handed on"))


@app.task(base=Task)
def plain(number):
    return number


@app.task
def waiting():
    entered.set()
    assert gate.wait(60)
    return "waited"


@app.task
def who():
    return baggage.get_baggage("customer")


@app.task
def look():
    current.append(trace.get_current_span().get_span_context().is_valid)


@app.task
def killed():
    os.kill(os.getpid(), signal.SIGKILL)


# --- a worker of its own: its processes write spans to a file, one in a line --------------------


@worker_init.connect(weak=False)
def set_up(**_):
    path = os.environ.get("TRACED_SPANS")
    if path:
        provider = TracerProvider()
        provider.add_span_processor(EachProcess(lambda: to_file(path)))
        trace.set_tracer_provider(provider)


@worker_process_shutdown.connect(weak=False)
def flush(**_):
    if os.environ.get("TRACED_SPANS"):
        trace.get_tracer_provider().shutdown()


def to_file(path):
    out = open(path, "a", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    return BatchSpanProcessor(exporter, schedule_delay_millis=100)
