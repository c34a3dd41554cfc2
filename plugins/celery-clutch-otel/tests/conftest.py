"""Providers for the process of the tests, and what the tests ask of what was exported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import pytest
from celery import Celery
from celery_clutch.testing import embedded
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler

from .app import app as tasks
from .app import entered, gate

T = TypeVar("T")

PATIENCE = 60.0


def until(condition: Callable[[], T], what: Callable[[], object] = str) -> T:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.01)
    return value


class Switch(Sampler):
    """The sampler of the provider, which a test may exchange: a process has one provider."""

    now: Sampler = ParentBased(ALWAYS_ON)

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        return self.now.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return "switch"


class Spans:
    """What has been exported since the test began."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def names(self) -> list[str]:
        return sorted(span.name for span in self.all())

    def of(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, the one that started first being first."""
        found = [span for span in self.all() if span.name == name]
        return sorted(found, key=lambda span: span.start_time)

    def wait(self, *names: str) -> list[ReadableSpan]:
        """The spans of these names, in this order, once all of them are there.

        They end when the store knows already: who waits for a run may be sooner.
        """
        until(lambda: self.names() == sorted(names), self.names)
        seen: dict[str, Iterator[ReadableSpan]] = {name: iter(self.of(name)) for name in names}
        return [next(seen[name]) for name in names]


class Points:
    """What has been measured since the test began."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader
        self._found: dict[str, list[Any]] = {}
        self.read()
        self._found.clear()

    def read(self) -> None:
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self._found.setdefault(metric.name, []).extend(metric.data.data_points)

    def count(self, name: str, **attributes: str) -> float:
        """The sum of a counter, or the number of what a histogram was given."""
        self.read()
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}.items()
        found = [p for p in self._found.get(name, ()) if wanted <= dict(p.attributes).items()]
        return sum(point.count if hasattr(point, "count") else point.value for point in found)

    def attributes(self) -> dict[str, set[str]]:
        """The names of the attributes of each metric."""
        self.read()
        return {
            name: {key for p in found for key in p.attributes}
            for name, found in self._found.items()
        }

    def sum(self, name: str) -> float:
        self.read()
        return sum(point.sum for point in self._found.get(name, ()))


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    made = InMemorySpanExporter()
    provider = TracerProvider(sampler=Switch())
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture(scope="session")
def reader() -> InMemoryMetricReader:
    delta = AggregationTemporality.DELTA
    made = InMemoryMetricReader(preferred_temporality={Counter: delta, Histogram: delta})
    metrics.set_meter_provider(MeterProvider([made]))
    return made


@pytest.fixture
def sampler(exporter: InMemorySpanExporter) -> Iterator[type[Switch]]:
    before = Switch.now
    yield Switch
    Switch.now = before


@pytest.fixture
def app() -> Iterator[Celery]:
    """The app, run in this process."""
    gate.clear()
    entered.clear()
    with embedded(tasks):
        try:
            yield tasks
        finally:
            gate.set()


@pytest.fixture
def spans(exporter: InMemorySpanExporter, app: Celery) -> Spans:
    exporter.clear()
    return Spans(exporter)


@pytest.fixture
def points(reader: InMemoryMetricReader, app: Celery) -> Points:
    return Points(reader)


@pytest.fixture(scope="session")
def missing() -> Callable[[str, object], NoReturn]:
    """Call it with the name of a service and why it cannot be used: skips, or fails in CI."""

    def say(service: str, reason: object) -> NoReturn:
        message = f"{service} is missing: {reason}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return say
