"""Pages to canvas: what each signature carries. Nothing is sent but where it says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, group
from celery.canvas import Signature
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, ClutchTask, parallel, series
from celery_clutch.compile import canvas, compat, pages
from celery_clutch.compile.canvas import Compiler, prepare
from celery_clutch.compile.header import NAME, Header
from celery_clutch.compile.pages import CloseItem, Expand, JobItem
from celery_clutch.errors import ChordUnsupported
from celery_clutch.extend.plugins import runtime
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Scope, Series

from .conftest import make_app
from .reference import flat
from .strategies import plans

NATIVE = "redis://localhost:1/0"  # never connected to


def tasks_of(app: Celery) -> Any:
    class Tasks:
        @app.task(name="t")
        def t(*args: Any, **kwargs: Any) -> None: ...

        @app.task(name="plain", base=Task)
        def plain(*args: Any) -> None: ...

    return Tasks


def is_chord(sig: Any) -> bool:
    return sig.task == "celery.chord"


def singles(sig: Any) -> Iterator[Any]:
    """Every plain signature in *sig*, in definition order."""
    if isinstance(sig, (compat.Chain, group)):
        for each in sig.tasks:
            yield from singles(each)
    elif is_chord(sig):
        for each in sig.tasks:
            yield from singles(each)
        yield from singles(sig.body)
    else:
        yield sig


def ends_plain(sig: Any) -> bool:
    """Whether *sig* ends in one plain task, as Celery needs of an element of a header."""
    if isinstance(sig, compat.Chain):
        return ends_plain(sig.tasks[-1])
    if is_chord(sig):
        return ends_plain(sig.body)
    return not isinstance(sig, group)


def chords(sig: Any) -> Iterator[Any]:
    if isinstance(sig, (compat.Chain, group)):
        for each in sig.tasks:
            yield from chords(each)
    elif is_chord(sig):
        yield sig
        for each in [*sig.tasks, sig.body]:
            yield from chords(each)


def compiled(
    app: Celery, clutch: Clutch | Series, *, page: str = pages.ROOT, counted: bool = False
) -> Any:
    root = clutch.plan if isinstance(clutch, Clutch) else clutch
    items = pages.paginate(root, closed=counted).pages[page]
    return Compiler(app, Header("r", 3, "", "")).page(items, counted=counted)


def header_of(sig: Any) -> Header:
    return Header.from_dict(sig.options["headers"][NAME])


# --- shape --------------------------------------------------------------------------------


@given(plans(scope=st.just(Scope(on_failure={"task": "h"})), max_leaves=20), st.booleans())
def test_every_item_is_one_signature_with_its_header(root: Series, counted: bool) -> None:
    app = make_app()
    for items in pages.paginate(root, closed=counted).pages.values():
        wanted = [item for item in flat(items) if isinstance(item, (JobItem, CloseItem))]
        if any(isinstance(item, JobItem) and item.job.prepend for item in wanted):
            continue  # compiled with a result that is not there
        sig = Compiler(app, Header("r", 3, "", "")).page(items, counted=counted)
        if sig is None:
            assert items == ()
            continue
        found = [
            header_of(each)
            for each in singles(sig)
            if each.task not in (canvas.COLLECT, canvas.EXPAND) and "headers" in each.options
        ]
        headers = [Header.of_item(Header("r", 3, "", ""), item) for item in wanted]
        assert Counter(found) == Counter(header for header in headers if header.slot)
        expands = [item.page for item in flat(items) if isinstance(item, Expand)]
        assert [each.args for each in singles(sig) if each.task == canvas.EXPAND] == [
            (page,) for page in expands
        ]


@given(plans(scope=st.just(Scope()), max_leaves=20), st.booleans())
def test_headers_end_in_one_plain_task(root: Series, counted: bool) -> None:
    app = make_app()
    for key, items in pages.paginate(root, closed=counted).pages.items():
        if any(isinstance(item, JobItem) and item.job.prepend for item in flat(items)):
            continue  # compiled with a result that is not there
        sig = Compiler(app, Header("r", 0, "", "")).page(items, counted=counted)
        if sig is None:
            continue
        assert ends_plain(sig) or not (counted and key == pages.ROOT)
        for each in chords(sig):
            assert all(map(ends_plain, each.tasks))


def test_a_page_compiles_to_the_canvas_a_user_would_write(app: Celery) -> None:
    t = tasks_of(app).t
    one = compiled(app, Clutch(t))
    assert one.task == "t"
    chain = compiled(app, series(t, t, t))
    assert isinstance(chain, compat.Chain)
    assert len(chain.tasks) == 3
    side = compiled(app, parallel(t, t))
    assert isinstance(side, group)
    assert len(side.tasks) == 2
    barrier = compiled(app, series(parallel(t, t), t))
    assert is_chord(barrier)
    assert len(barrier.tasks) == 2
    assert barrier.body.task == "t"
    led = compiled(app, series(t, parallel(t, t), t))
    assert isinstance(led, compat.Chain)
    assert is_chord(led.tasks[1])


def test_nothing_left_is_no_canvas(app: Celery) -> None:
    assert Compiler(app, Header("r", 0, "", "")).page(()) is None


# --- what a job carries -------------------------------------------------------------------


def test_a_job_carries_its_arguments_and_options(app: Celery) -> None:
    t = tasks_of(app).t
    options = {
        "queue": "q",
        "countdown": 5,
        "priority": 3,
        "expires": 60,
        "time_limit": 9,
        "soft_time_limit": 8,
        "shadow": "other",
    }
    sig = compiled(app, Clutch(t.s(1, x=2).set(headers={"mine": 1}, **options)))
    assert (sig.task, tuple(sig.args), dict(sig.kwargs)) == ("t", (1,), {"x": 2})
    assert {key: sig.options[key] for key in options} == options
    assert sig.options["headers"]["mine"] == 1
    assert header_of(sig) == Header("r", 3, "0", "0")
    assert sig.immutable


def test_links_of_the_user_stay_and_ours_comes_last(app: Celery) -> None:
    t = tasks_of(app).t
    user = t.s(7)
    user.link(t.s(8))
    user.link_error(t.s(9))
    (sig,) = singles(compiled(app, Clutch(user)))
    assert [each["args"] for each in sig.options["link"]] == [(8,)]
    own, ours = sig.options["link_error"]
    assert tuple(own["args"]) == (9,)
    assert ours["task"] == canvas.ON_ERROR


@pytest.mark.parametrize("given_", ["one", "list", "tuple"])
def test_link_error_may_be_one_or_many(app: Celery, given_: str) -> None:
    t = tasks_of(app).t
    callback = t.s(9)
    link: Any = {"one": callback, "list": [callback], "tuple": (callback,)}[given_]
    (sig,) = singles(compiled(app, Clutch(t.s().set(link_error=link))))
    assert [each["task"] for each in sig.options["link_error"]] == ["t", canvas.ON_ERROR]


def test_every_job_has_the_queue_of_the_clutch(app: Celery) -> None:
    tasks = tasks_of(app)
    clutch = Clutch(tasks.t, queue="critical")
    with clutch.parallel():
        clutch << tasks.t.s().set(queue="own", routing_key="own", exchange="own")
        clutch << tasks.plain.s()
        with clutch.parallel():
            clutch << tasks.t << tasks.t
    clutch << tasks.t
    for sig in singles(compiled(app, clutch)):
        assert sig.options["queue"] == "critical"
        assert not {"routing_key", "exchange"} & set(sig.options)


def test_without_a_queue_jobs_keep_their_own(app: Celery) -> None:
    t = tasks_of(app).t
    first, second = singles(compiled(app, series(t.s().set(queue="own"), t)))
    assert first.options["queue"] == "own"
    assert "queue" not in second.options


def test_a_mutable_job_has_a_place_for_the_previous_result(app: Celery) -> None:
    t = tasks_of(app).t
    sig = compiled(app, Clutch.from_canvas(t.s(0) | t.s(1) | t.si(2)))
    assert [tuple(each.args) for each in sig.tasks] == [(0,), (None, 1), (2,)]
    assert [header_of(each).prepend for each in sig.tasks] == [False, True, False]


# --- plain tasks --------------------------------------------------------------------------


def test_behind_a_plain_task_stands_one_that_collects(app: Celery) -> None:
    plain = tasks_of(app).plain
    clutch = Clutch(plain.s(1).set(ignore_result=False), queue="q")
    first, second = singles(compiled(app, clutch))
    assert (first.task, tuple(first.args)) == ("plain", (1,))
    assert first.options["ignore_result"] is False
    assert second.task == canvas.COLLECT
    assert not second.immutable
    assert header_of(first) == Header("r", 3, "0", "0")
    assert header_of(second) == Header("r", 3, "0", "0", task="plain")
    assert second.options["queue"] == "q"
    # Where our errback is not run inline, it is told of the job by an argument.
    assert first.options["link_error"][-1]["kwargs"]["job"] == first.options["headers"][NAME]


def test_whether_a_plain_task_keeps_its_result_is_its_own_affair(app: Celery) -> None:
    plain = tasks_of(app).plain
    first, _ = singles(compiled(app, Clutch(plain)))
    assert "ignore_result" not in first.options


@pytest.mark.parametrize(("step", "expected"), [("one", "value"), ("many", ["a", None])])
def test_a_plain_task_gets_the_previous_result_in_its_message(
    app: Celery, step: str, expected: Any
) -> None:
    store = runtime(app).store
    store.create("r", b"{}", {}, 9)
    for slot, value in {"0": "value", "0.0": "a", "0.1": None}.items():
        data = json.dumps(value).encode()
        store.complete("r", slot, slot, data, generation=0, token="x")
    previous = "0" if step == "one" else "0*2"
    item = JobItem("1", "1", previous, "", Job("plain", (5,), plain=True, prepend=True))
    plain, _ = Compiler(app, Header("r", 0, "", "")).job(item, False)
    assert tuple(plain.args) == (expected, 5)
    assert not header_of(plain).prepend


# --- results in Celery's own backend ------------------------------------------------------


def test_where_the_backend_counts_no_job_keeps_a_result() -> None:
    app = make_app(backend=NATIVE)
    t = tasks_of(app).t
    clutch = Clutch(t, parallel(t, series(t, parallel(t, t))), t)
    for sig in singles(compiled(app, clutch, counted=True)):
        assert sig.options["ignore_result"] is True


def test_elsewhere_what_a_chord_counts_keeps_its_result(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = Clutch(t, parallel(t, series(t, t), series(t, parallel(t, t))), t)
    found = compiled(app, clutch)
    kept = [each for each in singles(found) if each.options["ignore_result"] is False]

    def last(sig: Any) -> Any:
        while isinstance(sig, compat.Chain) or is_chord(sig):
            sig = sig.body if is_chord(sig) else sig.tasks[-1]
        return sig

    counted = [last(branch) for each in chords(found) for branch in each.tasks]
    assert sorted(map(id, kept)) == sorted(map(id, counted))


@pytest.mark.parametrize("counted", [False, True])
def test_the_end_of_a_page_keeps_its_result_when_it_is_counted(app: Celery, counted: bool) -> None:
    t = tasks_of(app).t
    first, second = singles(compiled(app, series(t, t), counted=counted))
    assert first.options["ignore_result"] is True
    assert second.options["ignore_result"] is not counted


def test_a_user_who_wants_results_ignored_gets_it_only_where_nobody_counts(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = series(parallel(t.s().set(ignore_result=True), t), t)
    assert compiled(app, clutch).tasks[0].options["ignore_result"] is False


# --- internal tasks -----------------------------------------------------------------------


def test_expand(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = series([t] * 30)
    clutch.queue = "q"
    *_, last = singles(compiled(app, clutch))
    assert (last.task, last.args) == (canvas.EXPAND, ("1",))
    assert last.immutable
    assert last.options["queue"] == "q"
    assert last.options["link_error"][-1]["task"] == canvas.ON_ERROR
    assert header_of(last).run == "r"
    assert header_of(last).generation == 3


def test_closes(app: Celery) -> None:
    t = tasks_of(app).t
    gathers = compiled(app, parallel(series(t, parallel(t, t)), t)).tasks[0]
    *_, gather = singles(gathers)
    assert gather.task == canvas.CLOSE
    assert header_of(gather) == Header("r", 3, "0.0.1", "0.0", "0.0.1*2", close=True, settles="0*2")
    told = compiled(app, series(Clutch(t, on_success=t.s()), t)).tasks[1]
    assert (told.task, told.args) == (canvas.CLOSE, ("0",))
    assert header_of(told).slot == "0!"
    *_, barrier = singles(compiled(app, parallel(t, t), counted=True))
    assert barrier.task == canvas.CLOSE
    assert "headers" not in barrier.options


def test_our_errback_is_read_as_what_celery_writes(app: Celery) -> None:
    own = Signature.from_dict(canvas.on_error({"run": "r"}), app=app)
    celerys = Signature(canvas.ON_ERROR, (), {"job": {"run": "r"}}, app=app)
    for name in ("task", "args", "kwargs", "options", "subtask_type", "immutable"):
        assert (getattr(own, name) or None) == (getattr(celerys, name) or None), name


# --- afresh each time ---------------------------------------------------------------------


def test_each_compilation_is_fresh(app: Celery) -> None:
    t = tasks_of(app).t
    user = t.s({"deep": [1]}).set(headers={"mine": 1})
    user.link(t.s(8))
    user.link_error(t.s(9))
    items = pages.paginate(series(user, parallel(user, user), user).plan).pages[pages.ROOT]
    compiler = Compiler(app, Header("r", 0, "", ""))
    before = json.dumps(compiler.page(items))
    touched = compiler.page(items)
    for sig in singles(touched):
        sig.set(task_id="taken", queue="elsewhere")
        sig.options["headers"]["mine"] = 2
        sig.options["headers"][NAME]["run"] = "other"
        sig.options["link_error"].append("more")
    assert json.dumps(compiler.page(items)) == before
    assert "task_id" not in user.options
    assert user.options["headers"] == {"mine": 1}


def test_a_link_added_to_what_was_compiled_reaches_nothing_else(app: Celery) -> None:
    t = tasks_of(app).t
    user = t.s()
    user.link(t.s(8))
    items = pages.paginate(Clutch(user).plan).pages[pages.ROOT]
    compiler = Compiler(app, Header("r", 0, "", ""))
    (sig,) = singles(compiler.page(items))
    sig.link(t.s(9))  # as Celery does in replace()
    (again,) = singles(compiler.page(items))
    assert len(again.options["link"]) == 1
    assert len(user.options["link"]) == 1


# --- prepare ------------------------------------------------------------------------------


def test_prepare_stores_and_sends_nothing(app: Celery) -> None:
    t = tasks_of(app).t
    prepared = prepare(app, series(t, parallel([t] * 300), t).plan, name="n", tags=("x",))
    assert runtime(app).store.scan()[0] == []
    assert set(prepared.encoded) == {*prepared.cut.pages, canvas.PLAN}
    for key, items in prepared.cut.pages.items():
        assert pages.loads(prepared.encoded[key]) == items
    whole = plan.loads(pages.decompress(prepared.encoded[canvas.PLAN]))
    assert whole == series(t, parallel([t] * 300), t).plan
    assert (prepared.meta.jobs, prepared.meta.name, prepared.meta.tags) == (302, "n", ("x",))


@pytest.mark.parametrize("backend", [None, "rpc://", "disabled://"])
def test_a_barrier_needs_chords_and_nothing_else_does(backend: str | None) -> None:
    app = make_app(backend=backend)
    t = tasks_of(app).t
    for fine in (series(t, t), parallel(t, t), series(t, parallel(t, series(t, t)))):
        prepare(app, fine.plan)
    for barrier in (series(parallel(t, t), t), parallel(series(t, parallel(t, t)), t)):
        with pytest.raises(ChordUnsupported) as caught:
            prepare(app, barrier.plan)
        assert "result_backend" in str(caught.value)


# --- sending ------------------------------------------------------------------------------


def sent(app: Celery) -> list[Any]:
    """The messages in the app's queue."""
    found = []
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        while queue.qsize():
            message = queue.get_nowait()
            message.ack()
            found.append(message)
        queue.close()
    return found


def run_of(message: Any) -> str:
    return message.headers[NAME]["run"]


@pytest.mark.parametrize(
    ("make", "tasks"),
    [
        (lambda t: Clutch(t), ["t"]),
        (lambda t: series(t, t, t), ["t"]),
        (lambda t: parallel(t, t, t), ["t"] * 3),
        (lambda t: series([t] * 500), ["t"]),
        (lambda t: parallel(series(t, t), parallel(t, t)), ["t"] * 3),
        (lambda t: parallel([t] * 100), ["t"] * 100),
        (lambda t: parallel([t] * 101), [canvas.EXPAND]),
        (lambda t: parallel([t] * 10_000), [canvas.EXPAND]),
        (lambda t: Clutch(), []),
    ],
)
def test_engage_sends_a_small_first_page_or_one_expand(app: Celery, make: Any, tasks: Any) -> None:
    clutch = make(tasks_of(app).t)
    run = Clutch(clutch, app=app).engage()
    messages = sent(app)
    assert [message.headers["task"] for message in messages] == tasks
    assert {run_of(message) for message in messages} <= {run.id}
    assert run.status().total == len(clutch)


def test_options_of_engage_are_for_the_start_alone(app: Celery) -> None:
    t = tasks_of(app).t
    first = t.s().set(headers={"mine": 1, "both": 1}, countdown=99)
    options = {"countdown": 30, "priority": 4, "headers": {"yours": 2, "both": 2}}
    series(first, t).engage(**options)
    (message,) = sent(app)
    assert message.headers["eta"] is not None
    assert message.properties["priority"] == 4
    assert {key: message.headers[key] for key in ("mine", "yours", "both")} == {
        "mine": 1,
        "yours": 2,
        "both": 1,
    }
    assert message.headers[NAME]["at"] == "0"
    (following,) = message.payload[2]["chain"]
    assert not {"countdown", "priority"} & set(following["options"])
    assert set(following["options"]["headers"]) == {NAME}


def test_options_of_engage_reach_every_first_message(app: Celery) -> None:
    t = tasks_of(app).t
    parallel(t, series(t, t), parallel(t)).engage(countdown=30)
    assert [message.headers["eta"] is None for message in sent(app)] == [False] * 3


def test_engaging_again_sends_other_ids(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = series(t, t)
    clutch.engage()
    clutch.engage()
    one, two = sent(app)
    assert one.headers["id"] != two.headers["id"]
    assert run_of(one) != run_of(two)
    assert one.payload[2]["chain"][0]["options"].get("task_id") != two.payload[2]["chain"][0][
        "options"
    ].get("task_id", "")


def test_when_nothing_can_be_sent_nothing_is_stored() -> None:
    app = make_app(broker_connection_timeout=1, task_publish_retry=False)
    app.conf.broker_url = "amqp://guest:guest@localhost:1//"
    t = tasks_of(app).t
    with pytest.raises(Exception, match=r"(?i)refused"):
        Clutch(t, id="mine").engage()
    assert runtime(app).store.scan()[0] == []


def test_messages_are_json(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = Clutch(t.s(1), on_failure=t.s(), queue=app.conf.task_default_queue)
    clutch << parallel(t.s(b"raw"), t.s(None))
    clutch.engage()
    (message,) = sent(app)
    assert message.content_type == "application/json"
    assert json.loads(message.body)[0] == [1]


def test_a_task_that_is_not_registered_is_sent_by_name(app: Celery) -> None:
    Clutch(app.signature("elsewhere", args=(1,))).engage()
    (message,) = sent(app)
    assert message.headers["task"] == "elsewhere"
    following = [each["task"] for each in message.payload[2]["chain"]]
    assert following == [canvas.COLLECT]


def test_arguments_that_do_not_fit_are_sent_all_the_same(app: Celery) -> None:
    # The job fails, where that can be recorded; its sender, maybe a worker, does not.
    @app.task(name="strict", base=ClutchTask)
    def strict(a: int) -> None: ...

    Clutch(strict.s(1, 2, 3)).engage()
    (message,) = sent(app)
    assert message.payload[0] == [1, 2, 3]
