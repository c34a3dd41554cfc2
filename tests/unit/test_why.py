"""The facts of why a run does not go on, from snapshots: pure."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import orjson
import pytest
from celery import Celery

from celery_clutch import Clutch, ClutchResult, Failure, Reason, State, parallel, series
from celery_clutch.compile.record import Held, Meta
from celery_clutch.errors import ClutchTimeout, RunNotFound
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle import snapshot, why
from celery_clutch.handle.why import Pending, Snapshot
from celery_clutch.model.plan import Job
from celery_clutch.model.workers import JOBS, Worker, Workers, place
from celery_clutch.stores.base import Attempted, Claim, Completion, Due, Lease, Record


def nothing() -> None:
    """What tasks do here."""


def take(x: Any) -> None:
    """What those do that get an element."""


NOW = 1_700_000_000.0  # 22:13:20 UTC
OWNER = "web.example.org.0a1b2c3d.4711"


def record(**changes: Any) -> Record:
    """A run that is RUNNING."""
    found = Record(
        run="r",
        meta=Meta(jobs=3, last="2").dumps(),
        state=State.RUNNING,
        generation=0,
        jobs=3,
        remaining=2,
        failing=0,
        dead=0,
        created_at=NOW - 600,
        updated_at=NOW - 90,
        ended_at=None,
    )
    return replace(found, **changes)


def failure(address: str, *, final: bool = False, attempt: int = 1) -> bytes:
    found = Failure(
        address=address,
        task="shop.scan",
        task_id="id",
        exception="ValueError",
        message="the scanner is busy\nand more",
        traceback="",
        attempt=attempt,
        final=final,
        at="",
    )
    return orjson.dumps(found.to_dict())


def pending(address: str, task: str = "shop.scan", *, plain: bool = False) -> Pending:
    return Pending(address, Job(task, plain=plain), None, NOW - 60)


def facts(found: Record | None = None, **known: Any) -> list[Reason]:
    return why.reasons(Snapshot(found or record(), NOW, **known))


def only(found: Record | None = None, **known: Any) -> Reason:
    (reason,) = facts(found, **known)
    return reason


def asked(*workers: Worker, **more: Any) -> Workers:
    return Workers(workers, 1.0, **more)


SERVING = Worker("w@h", frozenset({"q"}), frozenset({"shop.scan"}), versions={"celery": "5"})


def test_a_reason_is_its_sentence() -> None:
    reason = Reason("running", "job 0 runs", "r", "0", 0.0)
    assert str(reason) == "job 0 runs"
    assert reason.to_dict() == {
        "kind": "running",
        "sentence": "job 0 runs",
        "run": "r",
        "address": "0",
        "since": "1970-01-01T00:00:00+00:00",
        "fix": "",
    }
    assert Reason("quiet", "").to_dict()["since"] is None


def test_a_job_that_runs() -> None:
    reason = only(leases={"1": Lease(OWNER, started_at=NOW - 65)}, owners={OWNER: 55.0})
    assert reason == Reason(
        "running",
        "job 1 runs on web.example.org (process 4711), since 22:12:15 UTC (1 min 5 s)",
        "r",
        "1",
        NOW - 65,
    )


def test_a_process_that_is_silent() -> None:
    reason = only(leases={"1": Lease(OWNER, started_at=NOW)}, owners={OWNER: 10.0})
    assert reason.sentence.endswith(
        "; nothing was heard of that process for 50 s, and its lease runs out in 10 s"
    )


@pytest.mark.parametrize(
    ("owners", "end"), [({OWNER: -12.0}, ", since 22:13:08 UTC (12 s)"), ({}, "")]
)
def test_a_process_that_has_died(owners: dict[str, float], end: str) -> None:
    reason = only(leases={"1": Lease(OWNER)}, owners=owners, sweeps=True)
    assert reason.sentence == (
        f"the process 4711 on web.example.org that had job 1 has died: its lease ran out{end}"
    )
    assert reason.fix == "The next sweep sends it again."


def test_a_job_that_was_given_back() -> None:
    reason = only(leases={"1": Lease("-")})
    assert reason.sentence == "job 1 was given back by its worker; its message is to come again"


def test_a_job_that_was_given_back_in_a_cancelled_run_is_not_expected() -> None:
    cancelled = record(state=State.CANCELLED, ended_at=NOW)
    found = facts(cancelled, leases={"1": Lease("-")})
    assert [reason.kind for reason in found] == ["ended"]


def test_a_retry() -> None:
    found = record(
        failures={"1": failure("1")}, failing=1, due={"job 0 1": Due(NOW + 86400 + 300, 0, "1")}
    )
    reason = only(found)
    assert (reason.kind, reason.since) == ("retry", NOW + 86700)
    assert reason.sentence == (
        "job 1 has failed in attempt 1, and is retried at 2023-11-15 22:18:20 UTC (in 1 d): "
        "ValueError: the scanner is busy"
    )


def test_a_retry_that_is_overdue() -> None:
    found = record(failures={"1": failure("1")}, failing=1, due={"job 0 1": Due(NOW - 10)})
    assert only(found).sentence == (
        "attempt 2 of job 1 is due (ValueError: the scanner is busy), since 22:13:10 UTC (10 s), "
        "and not known to be sent"
    )


def test_a_retry_of_celery_alone() -> None:
    found = record(failures={"1": failure("1")}, failing=1)
    assert only(found).sentence == (
        "job 1 shop.scan has failed in attempt 1, and Celery retries it: ValueError: the scanner "
        "is busy"
    )


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("job 0 1", "the message of job 1 is due"),
        ("page 0", "the first messages are due"),
        ("page 3", "the messages of what follows job 0 are due"),
        ("failure 1", "on_failure of step 1 is due"),
        ("success ", "on_success is due"),
        ("death 1", "on_death is due"),
        ("nested abc", "the start of the nested run abc is due"),
        ("end SUCCEEDED", "the word of the end of the run is due"),
    ],
)
def test_what_is_due(key: str, what: str) -> None:
    cause = "" if key == "page 0" else "0"
    reason = only(record(due={key: Due(NOW - 40, 2, cause)}), sweeps=True)
    assert reason.kind == "due"
    assert reason.sentence == (
        f"{what}, since 22:12:40 UTC (40 s), and not known to be sent; it was sent again 2 times"
    )
    assert reason.fix == "A sweep after 22:14:40 UTC sends it again."


def test_what_is_due_for_a_moment_is_told_with_the_jobs_it_is_for() -> None:
    due = {"page 0": Due(NOW - 1)}
    known = {"pending": [pending("0")], "queues": {"0": "q"}}
    assert [each.kind for each in facts(record(due=due), **known)] == ["waiting"]
    late = {"page 0": Due(NOW - 31)}
    assert [each.kind for each in facts(record(due=late), **known)] == ["waiting", "due"]


def test_that_a_run_was_looked_through_is_not_due() -> None:
    assert only(record(due={"look": Due(NOW - 40)})).kind == "quiet"


def test_nothing_is_known() -> None:
    assert only().sentence == (
        "nothing has happened in the run, since 22:11:50 UTC (1 min 30 s), and nothing is due"
    )


def test_jobs_that_have_not_begun() -> None:
    known = {"pending": [pending(f"1.{n}") for n in range(5)], "queues": {"1.0": "q"}}
    first, others = facts(**known)
    assert first.sentence == (
        "job 1.0 shop.scan has not begun, since 22:12:20 UTC (1 min): its message lies in the queue "
        '"q", or was lost'
    )
    assert others.sentence == (
        "jobs (4) 1.1, 1.2, 1.3, ... shop.scan have not begun, since 22:12:20 UTC (1 min)"
    )


def test_a_job_that_has_a_name() -> None:
    photo = Pending("1.0", Job("shop.scan", name="photo"), None, NOW - 60)
    assert only(pending=[photo]).sentence.startswith("job photo (1.0 shop.scan) has not begun, ")
    fetch = Pending("1.1", Job("shop.scan", name="other"), None, NOW - 60)
    assert only(pending=[photo, fetch]).sentence.startswith("jobs 1.0, 1.1 shop.scan have not ")


@pytest.mark.parametrize(
    ("length", "end"),
    [
        (None, 'its message lies in the queue "q", or was lost'),
        (1, 'its message lies in the queue "q", which has 1 message'),
        (2000, 'its message lies in the queue "q", which has 2,000 messages'),
        (0, 'no worker that answers has its message, and the queue "q" is empty: it was lost'),
    ],
)
def test_where_a_message_is(length: int | None, end: str) -> None:
    workers = asked(SERVING, lengths={"q": length})
    reason = only(pending=[pending("1")], queues={"1": "q"}, workers=workers)
    assert reason.sentence.endswith(end)


def test_a_message_that_may_be_on_its_way() -> None:
    young = Pending("1", Job("shop.scan"), None, NOW - 1)
    reason = only(pending=[young], queues={"1": "q"}, workers=asked(SERVING, lengths={"q": 0}))
    assert reason.sentence.endswith("is empty: it is on its way, or was lost")


def test_a_message_while_a_worker_has_more_than_it_tells_of() -> None:
    full = replace(SERVING, jobs=frozenset(f"other {n}" for n in range(JOBS)))
    workers = asked(full, lengths={"q": 0})
    reason = only(pending=[pending("1")], queues={"1": "q"}, workers=workers)
    end = 'the queue "q" is empty: a worker has its message, or it was lost'
    assert reason.sentence.endswith(end)


def test_a_message_that_a_worker_has() -> None:
    busy = replace(SERVING, jobs=frozenset({"r 1", "other 2"}))
    workers = asked(busy, lengths={"q": 0})
    jobs = [pending("1"), pending("2")]
    has, lost = facts(pending=jobs, queues={"1": "q", "2": "q"}, workers=workers)
    assert has.sentence.endswith(": the worker w@h has its message, and is busy with others")
    assert lost.address == "2"


def test_a_plain_task() -> None:
    reason = only(pending=[pending("1", plain=True)], queues={"1": "q"})
    assert reason.sentence.endswith("which nobody knows, because it is not a ClutchTask")


def test_a_queue_that_nobody_consumes() -> None:
    jobs = [pending("1.0"), pending("1.1")]
    workers = asked(SERVING, lengths={"p": 2})
    found = facts(pending=jobs, queues={"1.0": "p", "1.1": "p"}, workers=workers)
    assert [each.kind for each in found] == ["queue", "waiting"]
    assert found[0].sentence == (
        'no worker that answers consumes the queue "p", which jobs 1.0, 1.1 shop.scan wait in, since 22:12:20 UTC '
        "(1 min)"
    )
    assert found[0].fix == "celery -A proj worker -Q p"


def test_the_queue_of_the_messages_that_send_others() -> None:
    jobs = {"pending": [pending("1")], "queues": {"1": "q"}, "internal": ["celery"]}
    found = facts(workers=asked(SERVING), **jobs)
    assert found[0].sentence == (
        'no worker that answers consumes the queue "celery", which the messages go through that send the jobs of the '
        "run"
    )


def test_a_task_that_no_worker_knows() -> None:
    jobs = {"pending": [pending("1", "shop.new")], "queues": {"1": "q"}}
    found = facts(workers=asked(SERVING), **jobs)
    assert (
        found[0].sentence
        == 'no worker that consumes the queue "q" knows the task shop.new of job 1'
    )
    assert found[0].kind == "task"
    elsewhere = Worker("v@h", frozenset({"p"}), frozenset({"shop.new"}))
    assert facts(workers=asked(SERVING, elsewhere), **jobs)[0].kind == "task"
    both = replace(SERVING, tasks=frozenset({"shop.new"}))
    assert facts(workers=asked(both, elsewhere), **jobs)[0].kind == "waiting"


def test_a_worker_with_another_store() -> None:
    other = replace(SERVING, store="<Store b>", same_store=False)
    known = {"pending": [pending("1")], "queues": {"1": "q"}, "store": "<Store a>"}
    found = facts(workers=asked(other), **known)
    assert found[0].sentence == (
        "the worker w@h has another result store, <Store b>; this run is in <Store a>"
    )
    for worker in (
        replace(other, queues=frozenset({"theirs"})),  # of another app
        replace(other, same_store=True),
        replace(other, same_store=None),
    ):
        assert "store" not in {each.kind for each in facts(workers=asked(worker), **known)}


def test_no_worker() -> None:
    found = facts(workers=asked(), pending=[pending("1")], queues={"1": "q"})
    assert [each.kind for each in found] == ["no worker", "waiting"]


def test_a_run_past_its_deadline() -> None:
    late = record(meta=Meta(jobs=3, last="2", expires=NOW - 5).dumps())
    assert only(late).sentence == ("the deadline of the run has passed, since 22:13:15 UTC (5.0 s)")


def test_a_run_that_has_ended() -> None:
    ended = record(state=State.SUCCEEDED, remaining=0, ended_at=NOW - 7200)
    assert only(ended).sentence == (
        "the run succeeded at 20:13:20 UTC (2 h ago); nothing is left to do"
    )
    assert only(record(state=State.CANCELLED, ended_at=NOW)).fix == "resume() takes it up again."


def test_a_run_that_has_failed_and_whose_other_jobs_run() -> None:
    dead = {f"1.{n}": failure(f"1.{n}", final=True, attempt=3) for n in range(7)}
    failed = record(state=State.FAILED, ended_at=NOW - 1, dead=7, failures=dead)
    found = facts(failed, leases={"2": Lease(OWNER, started_at=NOW)}, owners={OWNER: 60.0})
    assert found[0].sentence == (
        "the run failed at 22:13:19 UTC (1.0 s ago): job 1.0 shop.scan is dead since its attempt 3: "
        "ValueError: the scanner is busy"
    )
    assert [each.kind for each in found] == ["ended"] * 6 + ["running"]
    assert found[5].sentence == "2 more jobs of the run are dead"


def test_a_job_that_waits_for_others() -> None:
    held = {
        "0": Held(b"1", runs=("a", "b")).dumps(),
        "1": Held(replaced=True).dumps(),
    }
    inner = Snapshot(record(run="a", jobs=5, remaining=4), NOW)
    found = facts(record(held=held), nested={"0": {"a": inner, "b": None}})
    assert [(each.run, each.kind) for each in found] == [
        ("r", "nested"),
        ("a", "quiet"),
        ("r", "nested"),
        ("r", "replaced"),
    ]
    assert found[0].sentence == (
        "job 0 waits for the nested run a, which is RUNNING with 1 of 5 jobs done"
    )
    assert found[2].sentence == "job 0 waits for the nested run b, which is gone"


def test_many_are_counted() -> None:
    leases = {f"1.{n}": Lease(OWNER, started_at=NOW - n) for n in range(40)}
    found = facts(leases=leases, owners={OWNER: 60.0})
    assert len(found) == 6
    assert found[0].address == "1.39", "the one that runs for longest"
    assert found[-1].sentence == "35 more jobs run"
    assert all(each.kind == "died" for each in facts(leases=leases))


def test_the_short_form() -> None:
    some = [Reason("quiet", name) for name in "abcd"]
    assert why.short(some[:1]) == "a"
    assert why.short(some[:2]) == "a; b"
    assert why.short(some) == "a; b (and 2 more reasons; see why())"


def test_the_place_of_an_owner() -> None:
    assert place(OWNER) == ("web.example.org", "4711")
    assert place("-") == ("", "-")


# --- the jobs whose turn it is ------------------------------------------------------------------


def frontier(app: Celery, clutch: Clutch, *done: str) -> list[tuple[str, str]]:
    """The jobs whose turn it is, and their queues, once those at *done* have results."""
    run = clutch.engage()
    store = runtime(app).store
    for address in done:
        store.complete(Completion(run.id, address, 0, b"1"))
    taken = snapshot.take(app, run.id)
    return [(each.address, taken.queues[each.address]) for each in taken.pending]


def test_whose_turn_it_is(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    app.conf.task_default_queue = "main"

    def clutch() -> Clutch:
        inner = series(job.s(), job.s().set(queue="side"))
        return Clutch(job.s(), parallel(job.s(), inner), job.s(), app=app)

    assert frontier(app, clutch()) == [("0", "main")]
    assert frontier(app, clutch(), "0") == [("1.0", "main"), ("1.1.0", "main")]
    assert frontier(app, clutch(), "0", "1.1.0") == [("1.0", "main"), ("1.1.1", "side")]
    assert frontier(app, clutch(), "0", "1.0", "1.1.0", "1.1.1") == [("2", "main")]


def test_the_queue_of_a_clutch_goes_before_that_of_a_job(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    inner = Clutch(job.s().set(queue="own"), queue="inner", app=app)
    clutch = Clutch(parallel(job.s().set(queue="own"), inner), app=app)
    assert frontier(app, clutch) == [("0.0", "own"), ("0.1.0", "inner")]


def test_a_narrow_parallel(app: Celery) -> None:
    job = app.task(name="job")(nothing)

    def clutch() -> Clutch:
        return Clutch(parallel((job.s() for _ in range(5)), max_concurrency=2), app=app)

    assert [at for at, _ in frontier(app, clutch())] == ["0.0", "0.1"]
    assert [at for at, _ in frontier(app, clutch(), "0.1")] == ["0.0", "0.2"]


def test_a_wide_run_is_looked_at_in_part(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    run = Clutch(parallel(job.s() for _ in range(3000)), app=app).engage()
    waiting = [each for each in run.why() if each.kind == "waiting"]
    assert "jobs (1,000 or more) 0.0, 0.1, 0.2, ... job have not begun" in waiting[0].sentence


# --- what is decided while a run runs -----------------------------------------------------------


def finished(app: Celery, run: ClutchResult, values: dict[str, Any], **more: Any) -> None:
    """Do what a worker does for these jobs and maps, and lose what follows."""
    store = runtime(app).store
    for address, value in values.items():
        data = orjson.dumps(value)
        store.complete(Completion(run.id, address, 0, data, token=address, info=b"{}", **more))
    store.published(run.id, list(run.record().due))


def waiting(run: ClutchResult) -> list[str]:
    return [each.sentence.partition(", since")[0] for each in run.why() if each.kind == "waiting"]


def test_a_map_whose_turn_it_is(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    resize = app.task(name="resize")(take)
    run = Clutch(job.s(), app=app).map(resize, name="sizes").add(job).engage()
    assert waiting(run) == ["job 0 job has not begun"]
    finished(app, run, {"0": [1, 2, 3]})
    assert waiting(run) == ["the map sizes (1) has not begun"]
    finished(app, run, {"1": 3}, jobs=2, counts=0)
    assert waiting(run) == ["jobs 1.0, 1.1, 1.2 resize have not begun"]
    finished(app, run, {"1.0": 1, "1.1": 1, "1.2": 1})
    assert waiting(run) == ["job 2 job has not begun"]


def test_a_choice_whose_turn_it_is(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    clutch = Clutch(app=app).choose(job.s(), {"a": job.s(), "b": series(job.s(), job.s())})
    run = clutch.named("route").add(job).engage()
    (reason,) = [each for each in run.why() if each.kind == "waiting"]
    assert reason.sentence.startswith("job 0.0 job has not begun")
    assert reason.sentence.endswith("; it decides what follows at route (0)")
    finished(app, run, {"0.0": "b"})
    assert waiting(run) == ["job 0.2.0 job has not begun"]
    runtime(app).store.begin(Claim(run.id, "0.2.0", 0, owner=OWNER, limit=5))
    assert waiting(run) == []
    finished(app, run, {"0.2.0": 1, "0.2.1": 1})
    assert waiting(run) == ["job 1 job has not begun"]


def test_a_parallel_that_goes_on_with_enough(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    steps = parallel([series(job.s(), job.s()) for _ in range(3)], need=1, max_concurrency=2)
    run = Clutch(steps, job.s(), app=app).engage()
    assert waiting(run) == ["jobs 0.0.0, 0.1.0 job have not begun"]
    finished(app, run, {"0.0.0": 1, "0.1.0": 1})
    assert waiting(run) == ["jobs 0.0.1, 0.1.1 job have not begun"]
    finished(app, run, {"0.0.1": 1})
    assert waiting(run) == ["jobs 0.1.1, 1 job have not begun"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("page 1.5:3", "the messages of branch 1.5 are due"),
        ("page 1:3+99", "the messages of the branches from 99 on of the map at 1 are due"),
        ("page 1/57", "the messages of branch 1.57 are due"),
        ("page 1/3-0+1", "the messages of branch 1.3-0+1 are due"),
        ("page 1-3-0+1_7", "the messages of what follows job 0 are due"),
    ],
)
def test_messages_of_branches_that_are_due(key: str, expected: str) -> None:
    reason = only(record(due={key: Due(NOW - 40, cause="0")}))
    assert reason.sentence.startswith(f"{expected}, since")


# --- the handle -----------------------------------------------------------------------------------


def test_a_run_that_is_not_there(app: Celery) -> None:
    start = time.monotonic()
    with pytest.raises(RunNotFound):
        ClutchResult("nosuch", app).why(ask=True, timeout=30)
    assert time.monotonic() - start < 10, "nobody was asked"


def test_a_timeout_says_why(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    run = Clutch(job.s(), app=app).engage()
    queue = app.conf.task_default_queue
    with pytest.raises(ClutchTimeout) as late:
        run.get(timeout=0.01)
    assert f'its message lies in the queue "{queue}", or was lost' in str(late.value)
    assert [each.kind for each in late.value.reasons] == ["waiting"]


def test_a_timeout_of_a_large_run_reads_no_plan(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    run = Clutch(parallel(job.s() for _ in range(1001)), app=app).engage()
    with pytest.raises(ClutchTimeout) as late:
        run.get(timeout=0.01)
    assert [each.kind for each in late.value.reasons] == ["quiet"]


def test_a_job_that_fails_in_a_run_without_its_task(app: Celery) -> None:
    job = app.task(name="job")(nothing)
    run = Clutch(job.s(), app=app).engage()
    failed = Attempted(run.id, "0", 0, failure("0"), 1, False, retry=("job 0 0", time.time() + 90))
    runtime(app).store.fail(failed)
    (reason,) = [each for each in run.why() if each.kind == "retry"]
    assert reason.sentence.startswith("job 0 job has failed in attempt 1, and is retried at")
