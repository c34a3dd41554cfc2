"""Every shape on result backends that cannot count, and on none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import chain

from celery_clutch import Clutch, State, parallel, series

from . import app as tasks
from .app import add, fail_unless, nests, plain, replace, retry, seen, total, value
from .conftest import MakeLab
from .lab import Lab, handlers

BACKENDS = ["db+sqlite", "file", "rpc", "disabled", "redis"]


@pytest.fixture(scope="module", params=BACKENDS)
def backed(
    make_lab: MakeLab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A worker with that result backend; the store is in Redis."""
    place: Path = tmp_path_factory.mktemp("results")
    url = {
        "db+sqlite": f"db+sqlite:///{place / 'results.db'}",
        "file": f"file://{place}",
        "rpc": "rpc://",
        "disabled": "disabled://",
        "redis": tasks.database(1),
    }[request.param]
    conf = {"result_backend": url, "clutch_store": tasks.database(1)}
    with make_lab(f"backend-{request.param.replace('+', '-')}", **conf) as lab:
        lab.app.set_current()
        yield lab


SHAPES = {
    "series": (lambda: series(value.s(1), total.s(1), total.s(1)), [3]),
    "fan-in": (lambda: series(parallel(value.s(1), value.s(2)), total.s()), [3]),
    "wide fan-in": (lambda: series(parallel(value.s(1) for _ in range(250)), total.s()), [250]),
    "parallel at the end": (lambda: series(value.s(1), parallel(total.s(1), total.s(2))), [2, 3]),
    "fan-ins in a row": (
        lambda: series(
            parallel(value.s(1), value.s(2)), parallel(total.s(), total.s(1)), total.s()
        ),
        [7],
    ),
    "nested parallels": (
        lambda: series(parallel(value.s(1), parallel(value.s(2), value.s(3))), seen.s()),
        [[1, [2, 3]]],
    ),
    "branches": (
        lambda: series(parallel(series(value.s(1), total.s(1)), value.s(3)), total.s()),
        [5],
    ),
    "narrow": (
        lambda: series(parallel((value.s(i) for i in range(7)), max_concurrency=2), total.s()),
        [21],
    ),
    "nested run": (
        lambda: series(parallel(nests.s(value.s(1), total.s(1), returns=4), value.s(2)), total.s()),
        [6],
    ),
    "plain": (lambda: series(parallel(plain.s(1), value.s(2)), seen.s()), None),
    "retry": (lambda: series(parallel(retry.s(2, 1), value.s(2)), total.s()), [3]),
    "replace": (
        lambda: series(parallel(replace.s(chain(add.s(1, 1), add.s(1))), value.s(2)), total.s()),
        [5],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(backed: Lab, shape: str) -> None:
    make, expected = SHAPES[shape]
    run = make().engage()
    assert backed.finish(run) is State.SUCCEEDED
    if expected is not None:
        assert run.get(timeout=1) == expected
    assert set(backed.ran(run).values()) <= {1, 3}, "a retry runs three times, all else once"


def test_resume(backed: Lab, tag: str) -> None:
    inner = parallel(value.s(2), value.s(3), max_concurrency=1)
    run = Clutch(parallel(fail_unless.s(tag, 1), inner), seen.s(), **handlers(tag)).engage()
    assert backed.finish(run) is State.FAILED
    backed.raise_flag(tag)
    assert run.resume()
    assert backed.finish(run) is State.SUCCEEDED
    assert run.get(timeout=1) == [[1, [2, 3]]]
    assert backed.ran(run) == {"0.0": 2, "0.1.0": 1, "0.1.1": 1, "1": 1}
