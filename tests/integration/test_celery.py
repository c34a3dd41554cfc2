"""What people do with Celery besides, on a real worker."""

from __future__ import annotations

from typing import Any

from celery.result import AsyncResult

from celery_clutch import parallel, series

from .app import fail, in_context, notebook, plain, retry, value
from .lab import PATIENCE, Lab, new_tag


def test_a_task_class_whose_call_does_not_call_ours(lab: Lab) -> None:
    run = series(in_context.s(), parallel(in_context.s(), in_context.s())).engage()
    first = [1, []]
    assert run.get(timeout=PATIENCE) == [[1, [first]]] * 2
    assert run.results("0") == first


def test_jobs_with_ids_can_be_looked_up(lab: Lab) -> None:
    ids = {name: f"{name}-{new_tag()}" for name in ("value", "retry", "plain", "fail")}
    steps: list[Any] = [value.s(5), retry.s(1, 6), plain.s(3), fail.s()]
    named = [
        step.set(task_id=ids[name])
        for name, step in zip(("value", "retry", "plain", "fail"), steps, strict=True)
    ]
    run = parallel(*named).engage()
    run.get(timeout=PATIENCE, propagate=False)
    known = [AsyncResult(ids[name], app=lab.app) for name in ("value", "retry", "plain")]
    values = [result.get(timeout=PATIENCE) for result in known]
    lab.settle()  # a plain task has its value before the run does
    assert values == [run.results(f"0.{index}") for index in range(3)]
    failed = AsyncResult(ids["fail"], app=lab.app)
    failed.get(timeout=PATIENCE, propagate=False)
    assert failed.state == "FAILURE"
    assert notebook().hget(f"it:ids:{run.id}", "0.0") == ids["value"]
