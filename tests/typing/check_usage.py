"""What users write, checked by mypy --strict. Every line here must pass; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from typing_extensions import assert_type

import celery_clutch
from celery_clutch import (
    Clutch,
    ClutchError,
    ClutchResult,
    ClutchTask,
    Failed,
    Failure,
    Progress,
    ResultStore,
    Sequence,
    Skipped,
    State,
    Status,
    Stop,
    hookimpl,
    named,
    parallel,
    previous_results,
    series,
    signals,
)
from celery_clutch.errors import ClutchFailed, ClutchTimeout
from celery_clutch.model.events import Finished, JobFailed
from celery_clutch.stores.base import StoreOptions

app = Celery("shop", task_cls=ClutchTask)


@app.task(bind=True)  # type: ignore[untyped-decorator, unused-ignore]
def publish(self: ClutchTask, url: str, draft: bool = False) -> str:
    assert_type(self.previous_results, list[Any])
    assert_type(self.iter_previous_results(100), Iterator[Any])
    assert_type(self.results["photo"], Any)
    names: list[str] = list(self.results)
    print("photo" in self.results, self.results.get("photo", 0), names)
    inner = Clutch(parent=self)
    inner << fetch.s(url)
    inner.engage()
    return "published"


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def fetch(url: str) -> list[Any]:
    return assert_type(previous_results(), list[Any])


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def alert(status: dict[str, Any], who: str) -> None:
    assert_type(Status.from_dict(status), Status)


@app.task(bind=True)  # type: ignore[untyped-decorator, unused-ignore]
def count(self: ClutchTask) -> None:
    self.data["seen"] = self.data.get("seen", 0) + 1
    assert_type(self.data["seen"], Any)
    del self.data["old"]
    Clutch(fetch.s("x"), parent=self, data=self.data).engage()


@app.task(bind=True)  # type: ignore[untyped-decorator, unused-ignore]
def grow(self: ClutchTask, urls: list[str]) -> list[str]:
    if not urls:
        raise Stop({"nothing": True})
    self.branches.add(fetch.s(urls[0]), (fetch, "y"), fetch, Clutch(fetch.s("z"))).add(Nightly)
    return urls[1:]


def decide(urls: list[str]) -> Clutch:
    clutch = Clutch(fetch.s("x"))
    assert_type(clutch.add(publish, "x").when(count), Clutch)
    assert_type(clutch.add(publish, "x").when(fetch.s("y")).named("maybe"), Clutch)
    options = {"eu": series(publish.s("x"), publish.s("y")), None: Clutch()}
    assert_type(clutch.choose(count, options, default=Nightly, name="route"), Clutch)
    clutch.choose(count.s(), {"eu": series(publish.s("x")), 5: publish, None: Clutch()})
    clutch.choose(count, {True: (publish, "x"), 1.5: Nightly})
    clutch.map(publish, args=["x"], kwargs={"draft": True}, max_concurrency=20, allow_failures=3)
    clutch.map(series(publish.s(), count), allow_failures=0.05, name="all").map(Nightly, need=1)
    with clutch.parallel(allow_failures=True):
        clutch << fetch.s("x")
    with clutch.parallel(need=2, max_concurrency=1):
        clutch << fetch.s("x") << fetch.s("y")
    assert_type(parallel([fetch.s(url) for url in urls], allow_failures=0.1), Clutch)
    return parallel(fetch.s("x"), fetch.s("y"), need=1, name="first")


def present(run: ClutchResult) -> list[str]:
    assert_type(run.resume(retry_tolerated=True), bool)
    found: list[str] = []
    for value in run.results("1"):
        if isinstance(value, Failed):
            found.append(f"{value.address} {value.exception} {value.message}")
        elif isinstance(value, Skipped):
            found.append(assert_type(value.address, str))
    return found


class Nightly(Sequence):
    steps = [count, parallel(fetch.s("a"), fetch.s("b"), max_concurrency=1), publish.s("x")]
    queue = "nights"
    on_failure = alert.s("ops")
    tags = ("night",)


class Longer(Nightly):
    steps = [*Nightly.steps, count]


def start() -> ClutchResult:
    assert_type(Nightly(seen=0).clutch(), Clutch)
    clutch = assert_type(Clutch().add(fetch, "x").named("photo"), Clutch)
    clutch << assert_type(named(fetch.s("x"), "again"), Clutch) << named(Nightly, "nightly")
    with clutch.parallel(name="sizes"), clutch.series(name="one"):
        clutch << series(fetch.s("x"), name="two") << parallel(fetch.s("y"), name="three")
    assert_type(Clutch.from_json(Longer({"a b": 1}).clutch().to_json()), Clutch)
    return assert_type(Nightly(seen=0).start(countdown=5), ClutchResult)


@signals.clutch_finished.connect  # type: ignore[untyped-decorator, unused-ignore]
def on_finished(sender: Any, event: Finished, **_: Any) -> None:
    assert_type(event.state, State)
    assert_type(event.parent, Mapping[str, str] | None)


@hookimpl
def clutch_job_failed(event: JobFailed) -> None:
    assert_type(event.failure, Failure)


def compose(urls: list[str]) -> Clutch:
    clutch = Clutch(
        fetch.s("x"),
        fetch,
        (fetch, "y"),
        name="nightly",
        queue="critical",
        on_failure=alert.s("ops"),
        on_success=alert,
        on_death=None,
        on_end=alert.s("ops"),
        id="tonight",
        tags=["a", "b"],
        data={"a": 1},
        expires=60,
        app=app,
    )
    same: Clutch = clutch << fetch.s("x")
    assert_type(same << Clutch(), Clutch)
    clutch << publish << (publish, "x") << Clutch()
    with clutch.parallel(max_concurrency=5) as block:
        assert_type(block, Clutch)
        clutch << fetch.s("x")
        with clutch.series():
            clutch << fetch.s("y")
    assert_type(clutch.add(publish, "url", draft=False), Clutch)
    assert_type(clutch.clear(), Clutch)
    assert_type(Clutch.from_canvas(fetch.s("x") | fetch.s("y"), name="old"), Clutch)
    assert_type(series(fetch.s("x"), parallel(fetch.s(url) for url in urls)), Clutch)
    assert_type(parallel([fetch.s(url) for url in urls]), Clutch)
    assert_type(len(clutch), int)
    assert_type(clutch.app, Celery[Any])
    return clutch


def look(clutch: Clutch) -> Mapping[str, Any]:
    run = clutch.engage(countdown=10, priority=3)
    assert_type(run, ClutchResult)
    assert_type(run.id, str)
    assert_type(run.state, State)
    assert_type(run.state is State.RUNNING or run.state == "FAILED", bool)
    assert_type(run.ready() or run.successful() or run.failed(), bool)
    assert_type(run.progress(), Progress)
    assert_type(run.progress().fraction, float)
    assert_type(run.progress().seconds_left, float | None)
    assert_type(run.data(), dict[str, Any])
    for status in run.watch(timeout=5):
        assert_type(status, Status)
    assert_type(run.failures(), list[Failure])
    assert_type(run.results("1.2"), Any)
    assert_type(run.cancel(), bool)
    assert_type(run.resume(), bool)
    assert_type(run.forget(), bool)
    try:
        assert_type(ClutchResult(run.id, app).get(timeout=30), list[Any])
        assert_type(run.get(2.5, propagate=False), list[Any])
    except ClutchFailed as exc:
        assert_type(exc.failures, list[Failure])
    except (ClutchTimeout, ClutchError):
        raise
    status = run.status()
    assert_type(status.name, str | None)
    assert_type(status.tags, tuple[str, ...])
    assert_type(status.failures[0].attempt, int)
    assert_type(Failure.from_dict(status.failures[0].to_dict()), Failure)
    return status.to_dict()


async def wait(run: ClutchResult) -> list[Any]:
    async for status in run.awatch():
        assert_type(status, Status)
    return assert_type(await run.aget(timeout=1), list[Any])


def open_store(url: str, options: StoreOptions) -> ResultStore:
    raise NotImplementedError


@hookimpl
def clutch_stores() -> dict[str, Any]:
    return {"mine": open_store}


version: str = celery_clutch.__version__
