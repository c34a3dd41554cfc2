"""What mypy --strict must refuse. Each ignore here is needed, or mypy says that it is not."""

from __future__ import annotations

from typing import Any

from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    Failure,
    State,
    Status,
    hookimpl,
    named,
    parallel,
    series,
)
from celery_clutch.stores.base import ResultStore


class Job(ClutchTask):
    def run(self) -> None:
        self.previous_results = []  # type: ignore[misc]
        self.results["photo"] = 1  # type: ignore[index]
        self.branches.append(self)  # type: ignore[attr-defined]
        self.previous_results()  # type: ignore[operator]
        self.iter_previous_results(chunk="all")  # type: ignore[arg-type]


def compose(step: Any) -> None:
    Clutch(step, name=5)  # type: ignore[arg-type]
    Clutch(step, queue=b"critical")  # type: ignore[arg-type]
    Clutch(step, id=7)  # type: ignore[arg-type]
    Clutch(step, tags=[1, 2])  # type: ignore[list-item]
    Clutch(step, tags=5)  # type: ignore[arg-type]
    Clutch(step, app="shop")  # type: ignore[arg-type, unused-ignore]
    Clutch(step, colour="red")  # type: ignore[call-arg]
    Clutch().parallel(step)  # type: ignore[call-arg]
    Clutch().engage(5)  # type: ignore[call-arg]
    Clutch().add()  # type: ignore[call-overload]
    Clutch(step, data=5)  # type: ignore[arg-type]
    Clutch(step, expires="soon")  # type: ignore[arg-type]
    Clutch().parallel(max_concurrency="two")  # type: ignore[arg-type]
    series(step, queue="nightly")  # type: ignore[call-arg]
    named(step)  # type: ignore[call-arg]
    Clutch(step).when()  # type: ignore[call-arg]
    Clutch(step).when(True)  # type: ignore[arg-type, unused-ignore]
    Clutch().choose(step)  # type: ignore[call-arg]
    Clutch().choose(step, [step])  # type: ignore[arg-type]
    Clutch().choose(step, {"eu": 5})  # type: ignore[dict-item, unused-ignore]
    Clutch().choose(step, {"eu": step}, default="us")  # type: ignore[arg-type, unused-ignore]
    Clutch(step).map()  # type: ignore[call-arg]
    Clutch(step).map([step])  # type: ignore[arg-type, unused-ignore]
    Clutch(step).map(step, kwargs=[1])  # type: ignore[arg-type]
    Clutch(step).map(step, need="two")  # type: ignore[arg-type]
    parallel(step, allow_failures="all")  # type: ignore[arg-type]
    parallel(step, need=0.5)  # type: ignore[arg-type]
    series(step, name=5)  # type: ignore[arg-type]
    Clutch().add(step).named(5)  # type: ignore[arg-type]
    step_count: str = len(Clutch())  # type: ignore[assignment]
    with Clutch():  # type: ignore[attr-defined]
        print(step_count)


def look(run: ClutchResult, status: Status, failure: Failure) -> None:
    ClutchResult()  # type: ignore[call-arg]
    ClutchResult(5)  # type: ignore[arg-type]
    run.get(timeout="soon")  # type: ignore[arg-type]
    run.state()  # type: ignore[operator]
    run.state = State.FAILED  # type: ignore[misc]
    run.results(0)  # type: ignore[arg-type]
    run.resume(True)  # type: ignore[call-arg]
    status.name = "other"  # type: ignore[misc]
    failure.final = True  # type: ignore[misc]
    first: str = run.get()  # type: ignore[assignment]
    print(first, status.colour)  # type: ignore[attr-defined]


class Half(ResultStore):
    def page(self, run: str, key: str) -> str:  # type: ignore[override]
        return ""


Half("half://")  # type: ignore[abstract]


@hookimpl
def clutch_stores() -> Any: ...
