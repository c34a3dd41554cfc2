"""Launching, sweeping, watching and observing, in this process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from celery import Celery, Task, chain
from celery.signals import before_task_publish

from celery_clutch import (
    Clutch,
    ClutchResult,
    ClutchTask,
    State,
    hookimpl,
    parallel,
    series,
    signals,
)
from celery_clutch.compile.record import Held
from celery_clutch.errors import BuildError, ClutchExpired, ClutchTimeout, InvalidStep
from celery_clutch.extend import observers
from celery_clutch.extend.plugins import runtime
from celery_clutch.stores.base import TURNS, Attempted, Barrier, Claim, Completion, Turn, Verdict
from celery_clutch.sweep import sweep
from celery_clutch.testing import embedded

from .conftest import App


class Shop:
    """An embedded app and its tasks."""

    def __init__(self) -> None:
        self.app = App("services", task_cls=ClutchTask, set_as_current=False)

        @self.app.task(name="value", bind=True)
        def value(self: ClutchTask, x: Any = None) -> Any:
            return x

        @self.app.task(name="total", bind=True)
        def total(self: ClutchTask, more: int = 0) -> int:
            (first,) = self.previous_results
            return (sum(first) if isinstance(first, list) else first) + more

        @self.app.task(name="plain", base=Task)
        def plain(x: Any) -> Any:
            return x

        @self.app.task(name="broken", bind=True, max_retries=1)
        def broken(self: ClutchTask) -> None:
            raise self.retry(exc=ValueError("broken"), countdown=0)

        @self.app.task(name="nests", bind=True)
        def nests(self: ClutchTask) -> str:
            Clutch(value.s(1), parent=self).engage()
            return "outer"

        @self.app.task(name="list")
        def listed(*args: Any) -> Any:
            return list(args)

        self.value, self.total, self.plain = value, total, plain
        self.broken, self.nests, self.listed = broken, nests, listed


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    with embedded(made.app):
        yield made


def narrow(shop: Shop) -> Clutch:
    branches = [shop.value.s(i) for i in range(23)]
    branches[3] = series(shop.value.s(1), parallel(shop.total.s(1), shop.plain.s(5)))
    return Clutch(parallel(branches, max_concurrency=3), shop.value.s("end"))


# --- launch ---------------------------------------------------------------------------------


def test_a_clutch_as_json(shop: Shop) -> None:
    clutch = narrow(shop)
    clutch.name, clutch.tags, clutch.data, clutch.expires = "n", ["t"], {"a": 1}, 60
    clutch.queue, clutch.on_death = "q", shop.value.s("dead")
    text = clutch.to_json()
    for same in (Clutch.from_json(text, app=shop.app), Clutch.from_json(json.loads(text))):
        assert same.to_json() == text
        assert same.plan.steps == clutch.plan.steps
    single = Clutch.from_json({"clutch": {"task": "value", "args": [1]}}, app=shop.app)
    assert single.engage().get(timeout=30) == [1]


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "{}",
        "[]",
        '{"clutch": {}}',
        '{"clutch": {"task": 1}}',
        '{"clutch": {"task": "a", "series": []}}',
        '{"clutch": {"task": "a", "colour": 1}}',
        '{"clutch": {"series": [1]}}',
        '{"clutch": {"parallel": [{"task": "a"}], "limit": 0}}',
        '{"clutch": {"task": "a"}, "colour": 1}',
    ],
)
def test_what_is_no_clutch_is_refused(shop: Shop, bad: str) -> None:
    with pytest.raises(InvalidStep, match="not the JSON of a clutch"):
        Clutch.from_json(bad, app=shop.app)


def test_launch(shop: Shop) -> None:
    launch = shop.app.tasks["celery_clutch.launch"]
    text = narrow(shop).to_json()
    sent = launch.delay(text)
    run = ClutchResult(sent.get(timeout=30), shop.app)
    assert run.get(timeout=30) == ["end"]
    assert run.results("0")[3] == [2, 5]
    assert launch.apply((text,), task_id=run.id).get() == run.id, "a message that comes again"


@pytest.mark.parametrize("steps", [0, 1])
def test_launch_as_a_step_waits(shop: Shop, steps: int) -> None:
    clutch = narrow(shop) if steps else Clutch(app=shop.app)
    launch = shop.app.tasks["celery_clutch.launch"]
    sent = chain(launch.si(clutch.to_json()), shop.listed.s("more")).apply_async()
    assert sent.get(timeout=30) == [["end"] if steps else [], "more"]


@pytest.mark.parametrize("ended", [State.CANCELLED, State.FAILED])
def test_a_launch_that_comes_again_resumes_nothing(shop: Shop, ended: State) -> None:
    job = shop.broken.s() if ended is State.FAILED else shop.value.s(1).set(countdown=60)
    launch = shop.app.tasks["celery_clutch.launch"]
    text = Clutch(job).to_json()
    run = ClutchResult(launch.delay(text).get(timeout=30), shop.app)
    if ended is State.CANCELLED:
        assert run.cancel()
    assert runtime(shop.app).store.wait(run.id, 30) is ended
    assert launch.apply((text,), task_id=run.id).get() == run.id
    assert run.state is ended
    assert run.status().generation == 0


# --- sweep ----------------------------------------------------------------------------------


@pytest.fixture
def idle(app: Celery) -> Any:
    """An app without a worker: every message is as good as lost."""

    @app.task(name="value")
    def value(x: Any = None) -> Any: ...

    app.Job = value
    return app


def begin(app: Celery, run: ClutchResult, at: str, owner: str = "me", *, lapsed: str = "") -> None:
    """Do what a worker does when it gets a job."""
    store = runtime(app).store
    store.renew([owner], 1000)
    receipts = [key for key in run.record().due if key in ("page 0", f"job 0 {at}")]
    store.begin(
        Claim(run.id, at, 0, owner=owner, limit=5, page="0", receipts=receipts, lapsed=lapsed)
    )


def finish(app: Celery, run: ClutchResult, at: str, **more: Any) -> None:
    """Do what a worker does for a job, and lose what follows."""
    begin(app, run, at)
    runtime(app).store.complete(Completion(run.id, at, 0, b"1", info=b"{}", **more))


def sent(app: Celery, run: ClutchResult) -> list[str]:
    """Sweep, and say which jobs of the run were sent."""
    found: list[str] = []

    def note(headers: Any = None, **_: Any) -> None:
        job = headers.get("clutch") or {}
        if job.get("run") == run.id:
            found.append(job["at"])

    before_task_publish.connect(note, weak=False)
    try:
        swept = sweep(app, grace=0)
    finally:
        before_task_publish.disconnect(note)
    assert (run.id in swept) is bool(found)
    return sorted(found)


def test_a_lost_message_is_sent_again_and_waits_longer(idle: Any) -> None:
    run = series(parallel(idle.Job.s(), idle.Job.s()), idle.Job.s()).engage()
    assert sweep(idle, grace=60) == []
    assert sent(idle, run) == ["0.0", "0.1"], "nothing of it has begun"
    finish(idle, run, "0.0")
    finish(idle, run, "0.1", barriers=(Barrier("0", 1, "page 1"),))
    assert sweep(idle, grace=60) == []
    assert idle.tasks["celery_clutch.sweep"].apply(kwargs={"grace": 0}).get() == [run.id]
    assert run.status().generation == 0, "in the same generation"
    assert run.record().due["page 1"].tries == 1
    assert sweep(idle, grace=30) == [], "each time it waits longer"


def test_what_is_under_way_is_left_alone(idle: Any) -> None:
    run = parallel(idle.Job.s(), idle.Job.s()).engage()
    begin(idle, run, "0.0")
    begin(idle, run, "0.1")
    assert sent(idle, run) == []
    assert sweep(idle, grace=0, silent_for=60) == []
    assert sweep(idle, grace=0, silent_for=0) == [run.id]


def test_a_job_whose_owner_has_died(idle: Any) -> None:
    run = parallel(idle.Job.s(), idle.Job.s()).engage()
    begin(idle, run, "0.0", "victim")
    begin(idle, run, "0.1")
    store = runtime(idle).store
    store.renew(["victim"], 60)
    assert sweep(idle, grace=0) == [], "its lease has not run out"
    store.renew(["victim"], 0.01)
    while store.owners()["victim"] > 0:
        time.sleep(0.001)
    assert sent(idle, run) == ["0.0"]
    assert run.status().generation == 0
    assert "victim" not in store.owners(), "forgotten, with what it had sent again"
    begin(idle, run, "0.0", "heir", lapsed="victim")
    assert sent(idle, run) == [], "healed once"


def test_a_retry_whose_owner_nobody_knows(idle: Any) -> None:
    """It has begun, so it is no longer due; its process died before anybody said that it lives."""
    run = series(idle.Job.s(), idle.Job.s()).engage()
    begin(idle, run, "0")
    store = runtime(idle).store
    failure = orjson.dumps({"attempt": 1, "final": False})
    store.fail(Attempted(run.id, "0", 0, failure, 1, False, retry=("job 0 0", time.time())))
    begun = Claim(
        run.id, "0", 0, owner="unknown", limit=5, turn=TURNS, page="0", receipts=["job 0 0"]
    )
    assert store.begin(begun).verdict is Verdict.RUN
    retries: list[int] = []

    def note(headers: Any = None, **_: Any) -> None:
        retries.append(headers["retries"])

    before_task_publish.connect(note, weak=False)
    try:
        assert sent(idle, run) == ["0"]
    finally:
        before_task_publish.disconnect(note)
    assert retries == [1], "a message of the first attempt would be taken for a copy"


def test_a_message_that_has_arrived_and_was_lost(idle: Any) -> None:
    run = parallel(idle.Job.s(), idle.Job.s(), idle.Job.s()).engage()
    finish(idle, run, "0.0")
    begin(idle, run, "0.1")
    assert sent(idle, run) == ["0.2"], "the look through a quiet run"


def test_what_has_a_time_is_left_alone_until_then(idle: Any) -> None:
    run = series(idle.Job.s(), idle.Job.s()).engage(countdown=3600)
    assert sent(idle, run) == []
    other = series(idle.Job.s(), idle.Job.s()).engage()
    begin(idle, other, "0")
    failed = Attempted(other.id, "0", 0, b"{}", 1, False, retry=("job 0 0", time.time() + 3600))
    runtime(idle).store.fail(failed)
    assert sent(idle, other) == []


def test_a_nested_run_that_is_gone_is_no_success(idle: Any) -> None:
    run = series(idle.Job.s(), idle.Job.s()).engage()
    store = runtime(idle).store
    for attempt in (1, 2):
        begin(idle, run, "0")
        failure = orjson.dumps({"attempt": attempt, "final": False})
        store.fail(Attempted(run.id, "0", 0, failure, attempt, False))
    held = Held(b"1", ("gone",), info=b'{"attempt": 3}')
    assert store.checkpoint(run.id, "0", held.dumps(), 0)
    sweep(idle, grace=0)
    assert run.state is State.FAILED, "whatever failed before the attempt that nested it"


def test_a_page_that_is_gone_fails_the_run(idle: Any) -> None:
    run = series(idle.Job.s(), parallel(idle.Job.s(), idle.Job.s())).engage()
    finish(idle, run, "0", barriers=(Barrier("0", 1, "page nowhere"),))
    sweep(idle, grace=0)
    assert run.state is State.FAILED
    (failure,) = run.failures()
    assert "page nowhere" in failure.message


def test_a_task_of_somebody_else_may_be_under_way(idle: Any) -> None:
    @idle.task(name="theirs", base=Task)
    def theirs() -> None: ...

    run = series(parallel(theirs.si(), idle.Job.s()), idle.Job.s()).engage()
    finish(idle, run, "0.1")
    assert sent(idle, run) == [], "nobody can tell whether it has begun"


def test_a_narrow_parallel_goes_on(idle: Any) -> None:
    branches = [idle.Job.s() for _ in range(4)]
    run = series(parallel(branches, max_concurrency=2), idle.Job.s()).engage()
    turn = Turn("0", "0.0", 2, 4)
    finish(idle, run, "0.0", barriers=(Barrier("0.0", 1, turn=turn),))
    begin(idle, run, "0.1")
    assert sent(idle, run) == ["0.2"]


def test_a_run_past_its_deadline_is_failed(idle: Any) -> None:
    run = Clutch(idle.Job.s(), idle.Job.s(), expires=0.001).engage()
    while run.state is State.RUNNING:
        sweep(idle, grace=0)
    with pytest.raises(ClutchExpired):
        run.get(timeout=1)
    assert idle.tasks["celery_clutch.prune"].apply().get() == 0


def test_a_run_past_its_deadline_that_waits_at_a_map_is_not_failed_in_the_name_of_no_job(
    idle: Any,
) -> None:
    run = Clutch(idle.Job.s(), expires=0.001).map(idle.Job).engage()
    begin(idle, run, "0")
    runtime(idle).store.complete(Completion(run.id, "0", 0, b"[1, 2]", info=b"{}"))
    sweep(idle, grace=0)
    assert run.failures() == [] and run.state is State.RUNNING


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_limits_that_make_no_sense(idle: Any, bad: Any) -> None:
    with pytest.raises(BuildError, match="max_concurrency"):
        parallel(idle.Job.s(), max_concurrency=bad)


@pytest.mark.parametrize("bad", [0, -1, "soon", float("inf"), True])
def test_deadlines_that_make_no_sense(idle: Any, bad: Any) -> None:
    with pytest.raises(BuildError, match="expires"):
        Clutch(idle.Job.s(), expires=bad).engage()


# --- observers and watching ---------------------------------------------------------------------


class Plugin:
    def __init__(self) -> None:
        self.told: list[str] = []

    @hookimpl
    def clutch_context(self, engaged: Any) -> dict[str, str]:
        return {"from": engaged.run}

    @hookimpl
    def clutch_job_failed(self, event: Any) -> None:
        self.told.append(f"failed {event.failure.attempt} {event.context['from'] == event.run}")
        raise RuntimeError("a broken observer")

    @hookimpl
    def clutch_finished(self) -> None:
        self.told.append("finished")


def test_observers(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    plugin, seen = Plugin(), []
    runtime(shop.app).plugins.register(plugin, "mine")

    @signals.clutch_step_settled.connect
    def settled(sender: Any, event: Any, **_: Any) -> None:
        seen.append((event.step, event.failed))

    try:
        run = series(shop.nests.s(), shop.broken.s()).engage()
        assert [status.state for status in run.watch(timeout=60)][-1] is State.FAILED
    finally:
        signals.clutch_step_settled.disconnect(settled)
    assert plugin.told.count("failed 1 True") == plugin.told.count("failed 2 True") == 1
    assert ("0", False) in seen
    assert "clutch_job_failed of the plugin mine failed" in caplog.text


def test_nothing_is_made_where_nobody_listens(shop: Shop) -> None:
    observers.emit(runtime(shop.app), signals.clutch_finished, lambda: pytest.fail("made"))


def test_awatch_and_a_watch_that_is_too_long(shop: Shop) -> None:
    run = narrow(shop).engage()

    async def follow() -> list[int]:
        return [status.done async for status in run.awatch(timeout=60)]

    assert asyncio.run(follow())[-1] == 26
    waiting = series(shop.value.s().set(countdown=30)).engage()
    with pytest.raises(ClutchTimeout):
        list(waiting.watch(timeout=0.2))
    waiting.cancel()
