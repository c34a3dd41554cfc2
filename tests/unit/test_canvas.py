"""Pages to messages: what each signature carries. Nothing is sent but where it says so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery, Task, chord, group
from celery.app.task import Context
from celery.canvas import Signature
from celery.exceptions import Ignore
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, ClutchTask, parallel, series
from celery_clutch.compile import canvas, cut, pages, publish
from celery_clutch.compile.canvas import Compiler, prepare
from celery_clutch.compile.header import NAME, Header, job_due
from celery_clutch.compile.pages import Item
from celery_clutch.extend.plugins import runtime
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Scope, Series
from celery_clutch.stores.base import Barrier, Completion

from .conftest import make_app
from .reference import starts_of
from .strategies import plans

ORIGIN = Header("r", 3)


def tasks_of(app: Celery) -> Any:
    class Tasks:
        @app.task(name="t")
        def t(*args: Any, **kwargs: Any) -> None: ...

        @app.task(name="plain", base=Task)
        def plain(*args: Any) -> None: ...

    return Tasks


def chains_of(starts: Any) -> list[pages.Chain]:
    return [start for start in starts_of(starts) if isinstance(start, tuple)]


def compiled(app: Celery, clutch: Clutch, *, page: str = pages.ROOT) -> list[Signature]:
    """The tasks of every chain of a page, as they are sent."""
    found = cut.paginate(clutch.plan).pages[page]
    compiler = Compiler(app, ORIGIN)
    return [task for chain in chains_of(found) for task in carried(compiler, page, chain)]


def carried(
    compiler: Compiler, page: str, chain: pages.Chain, *, due: bool = False
) -> list[Signature]:
    """The tasks of a chain, each as it is sent when the one before it has ended."""
    first, *behind = compiler.chain(page, chain, due=due)
    found = [first]
    while behind:
        message = json.loads(json.dumps(behind[::-1]))
        task, *behind = canvas.carried(compiler.app, header_of(found[-1]), message)
        found.append(task)
    return found


def header_of(sig: Any) -> Header:
    return Header.from_dict(sig.options["headers"][NAME])


# --- chains -------------------------------------------------------------------------------


@given(plans(scope=st.just(Scope(on_failure={"task": "h"})), max_leaves=20, narrow=True))
def test_every_job_is_one_task_with_its_header(root: Series) -> None:
    compiler = Compiler(make_app(), ORIGIN)
    for key, starts in cut.paginate(root).pages.items():
        for chain in chains_of(starts):
            if any(item.job.prepend and item.previous for item in chain):
                continue  # compiled with a result that is not there
            tasks = carried(compiler, key, chain)
            jobs = [task for task in tasks if task.task != canvas.COLLECT]
            assert [task.task for task in jobs] == [item.job.task for item in chain]
            following = [*(item.at for item in chain[1:]), ""]
            for index, (task, item) in enumerate(zip(jobs, chain, strict=True)):
                receipts = (job_due(key, item.at),) if index else ()
                own = {"next": following[index], "receipts": receipts}
                assert header_of(task) == Header.of_item(ORIGIN, key, item, **own)


def test_what_is_behind_a_job_is_due_until_its_message_begins(app: Celery) -> None:
    t = tasks_of(app).t
    chain = chains_of(cut.paginate(series(t, t, t).plan).pages[pages.ROOT])[0]
    compiler = Compiler(app, ORIGIN)
    for due in (False, True):
        headers = [header_of(task) for task in carried(compiler, "0", chain, due=due)]
        assert [header.next for header in headers] == ["1", "2", ""]
        assert [header.receipts for header in headers] == [
            ("job 0 0",) if due else (),
            ("job 0 1",),
            ("job 0 2",),
        ]
    assert [header_of(task).at for task in carried(compiler, "0", chain[1:])] == ["1", "2"]


def test_the_end_of_a_branch_carries_what_it_counts_towards(app: Celery) -> None:
    t = tasks_of(app).t
    first, second, third = compiled(app, series(parallel(series(t, t), t), t))
    assert header_of(first).barriers == ()
    (barrier,) = header_of(second).barriers
    assert barrier == header_of(third).barriers[0] == Barrier("0", 2, "page 1")
    assert header_of(compiled(app, series(parallel(t, t), t), page="1")[0]).previous == "0*2"


def test_the_branches_of_a_narrow_parallel_know_it(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = Clutch(app=app)
    with clutch.parallel(max_concurrency=1):
        clutch << t << t
    (task,) = compiled(app, clutch)
    (turn,) = header_of(task).narrow
    assert (turn.address, turn.member, turn.limit, turn.width) == ("0", "0.0", 1, 2)
    assert header_of(task).barriers[0].turn == turn


def test_no_job_of_ours_keeps_a_result_in_celerys_backend(app: Celery) -> None:
    t = tasks_of(app).t
    clutch = series(t.s().set(ignore_result=False), parallel(t, series(t, t)), t)
    for page in ("0", "1", "2"):
        assert all(
            task.options["ignore_result"] is True for task in compiled(app, clutch, page=page)
        )


def test_what_a_run_has_in_common_is_in_every_header(app: Celery) -> None:
    origin = Header("r", 3, expires=2e9, context={"trace": "x"})
    compiler = Compiler(app, origin)
    jobs = Job("t"), Job("t"), Job("plain", plain=True)
    chain = tuple(Item(str(index), job) for index, job in enumerate(jobs))
    for task in carried(compiler, "0", chain):
        assert (header_of(task).expires, header_of(task).context) == (2e9, {"trace": "x"})
    (plain, _) = compiler.chain("0", (Item("0", Job("plain", plain=True)),))
    assert plain.options["expires"].startswith("2033-05-18T03:33:20")


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
    (sig,) = compiled(app, Clutch(t.s(1, x=2).set(headers={"mine": 1}, **options)))
    assert (sig.task, tuple(sig.args), dict(sig.kwargs)) == ("t", (1,), {"x": 2})
    assert {key: sig.options[key] for key in options} == options
    assert sig.options["headers"]["mine"] == 1
    assert header_of(sig) == Header("r", 3, "0", "0")
    assert sig.options["ignore_result"] is True
    assert sig.immutable


def test_links_of_the_user_stay_and_ours_comes_last(app: Celery) -> None:
    t = tasks_of(app).t
    user = t.s(7)
    user.link(t.s(8))
    user.link_error(t.s(9))
    (sig,) = compiled(app, Clutch(user))
    assert [each["args"] for each in sig.options["link"]] == [(8,)]
    own, ours = sig.options["link_error"]
    assert tuple(own["args"]) == (9,)
    assert ours["task"] == canvas.ON_ERROR


@pytest.mark.parametrize("given_", ["one", "list", "tuple"])
def test_link_error_may_be_one_or_many(app: Celery, given_: str) -> None:
    t = tasks_of(app).t
    callback = t.s(9)
    link: Any = {"one": callback, "list": [callback], "tuple": (callback,)}[given_]
    (sig,) = compiled(app, Clutch(t.s().set(link_error=link)))
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
    keys = cut.paginate(clutch.plan).pages
    found = [task for key in keys for task in compiled(app, clutch, page=key)]
    assert len(found) == 7
    for sig in found:
        assert sig.options["queue"] == "critical"
        assert not {"routing_key", "exchange"} & set(sig.options)


def test_without_a_queue_jobs_keep_their_own(app: Celery) -> None:
    t = tasks_of(app).t
    first, second = compiled(app, series(t.s().set(queue="own"), t))
    assert first.options["queue"] == "own"
    assert "queue" not in second.options


def test_a_mutable_job_has_a_place_for_the_previous_result(app: Celery) -> None:
    t = tasks_of(app).t
    found = compiled(app, Clutch.from_canvas(t.s(0) | t.s(1) | t.si(2)))
    assert [tuple(each.args) for each in found] == [(0,), (None, 1), (2,)]
    assert [header_of(each).prepend for each in found] == [False, True, False]


# --- plain tasks --------------------------------------------------------------------------


def test_behind_a_plain_task_stands_one_that_collects(app: Celery) -> None:
    plain = tasks_of(app).plain
    clutch = Clutch(plain.s(1).set(ignore_result=False), queue="q")
    first, second = compiled(app, clutch)
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
    first, _ = compiled(app, Clutch(plain))
    assert "ignore_result" not in first.options


@pytest.mark.parametrize(("step", "expected"), [("one", "value"), ("many", ["a", None])])
def test_a_plain_task_gets_the_previous_result_in_its_message(
    app: Celery, step: str, expected: Any
) -> None:
    store = runtime(app).store
    store.create("r", b"{}", {}, 9)
    for address, value in {"0": "value", "0.0": "a", "0.1": None}.items():
        data = json.dumps(value).encode()
        store.complete(Completion("r", address, 0, data))
    previous = "0" if step == "one" else "0*2"
    item = Item("1", Job("plain", (5,), plain=True, prepend=True), previous=previous)
    plain, _ = Compiler(app, Header("r", 0)).chain("1", (item,))
    assert tuple(plain.args) == (expected, 5)
    assert not header_of(plain).prepend


# --- internal tasks -----------------------------------------------------------------------


def test_advance(app: Celery) -> None:
    sig = Compiler(app, ORIGIN).advance("7", "q")
    assert (sig.task, sig.args) == (canvas.ADVANCE, ("7",))
    assert sig.immutable
    assert sig.options["queue"] == "q"
    assert "link_error" not in sig.options
    assert header_of(sig) == ORIGIN
    assert "queue" not in Compiler(app, ORIGIN).advance("7", None).options


def test_collect_carries_changes_of_the_shared_data(app: Celery) -> None:
    header = Header("r", 3, "0", "0")
    sig = Compiler(app, ORIGIN).collect(header, None, {"a": "1"})
    assert dict(sig.kwargs) == {"changes": {"a": "1"}}
    assert [each["task"] for each in sig.options["link_error"]] == [canvas.ON_ERROR]
    assert header_of(sig) == header


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
    clutch = series(user, parallel(user, user), user)
    before = json.dumps(compiled(app, clutch))
    for sig in compiled(app, clutch):
        sig.set(task_id="taken", queue="elsewhere")
        sig.options["headers"]["mine"] = 2
        sig.options["headers"][NAME]["run"] = "other"
        sig.options["link_error"].append("more")
    assert json.dumps(compiled(app, clutch)) == before
    assert "task_id" not in user.options
    assert user.options["headers"] == {"mine": 1}


def test_a_link_added_to_what_was_compiled_reaches_nothing_else(app: Celery) -> None:
    t = tasks_of(app).t
    user = t.s()
    user.link(t.s(8))
    clutch = Clutch(user)
    (sig,) = compiled(app, clutch)
    sig.link(t.s(9))  # as Celery does in replace()
    (again,) = compiled(app, clutch)
    assert len(again.options["link"]) == 1
    assert len(user.options["link"]) == 1


# --- copies and replacements --------------------------------------------------------------


def test_copied_tasks_are_copies(app: Celery) -> None:
    t = tasks_of(app).t
    one = t.s(1).set(queue="q")
    (copy,) = publish.copied(one)
    assert (copy, copy.options) == (one, {"queue": "q"})
    copy.set(queue="elsewhere")
    assert one.options["queue"] == "q"
    assert [tuple(each.args) for each in publish.copied(t.s(1) | t.s(2))] == [(1,), (2,)]


def test_what_is_more_than_a_chain_of_tasks_is_not_copied(app: Celery) -> None:
    t = tasks_of(app).t
    others = [
        group(t.s(), t.s(), app=app),
        chord([t.s(), t.s()], t.s(), app=app),
        t.s() | group(t.s(), t.s(), app=app),
        (t.s() | t.s()).set(queue="q"),
    ]
    for canvas_ in others:
        assert publish.copied(canvas_) == []


def test_the_id_of_a_message_is_the_same_for_every_copy() -> None:
    header = Header("r", 3, "1.2", "4")
    known = publish.task_id(header.to_dict(), "t")
    assert publish.task_id(Header("r", 3, "1.2", "4", late=2).to_dict(), "t") == known
    others = [
        publish.task_id(Header("other", 3, "1.2", "4").to_dict(), "t"),
        publish.task_id(Header("r", 4, "1.2", "4").to_dict(), "t"),
        publish.task_id(Header("r", 3, "1.3", "4").to_dict(), "t"),
        publish.task_id(header.to_dict(), "other"),
    ]
    assert len({known, *others}) == 5


def test_copies_of_a_chain_are_sent_with_the_same_ids(app: Celery) -> None:
    tasks = tasks_of(app)
    clutch = series(tasks.t, tasks.plain, tasks.t)
    for _ in range(2):
        publish.send(app, [compiled(app, clutch)])
    one, two = sent(app)
    assert one.headers["id"] == two.headers["id"]
    ids = [[task["options"]["task_id"] for task in each.payload[2]["chain"]] for each in (one, two)]
    assert ids[0] == ids[1]
    assert len({one.headers["id"], *ids[0]}) == 4  # the plain task, and what collects its value


def test_what_is_behind_a_job_is_short(app: Celery) -> None:
    t = tasks_of(app).t
    series(t.s(0), t.s(1), t.s(2)).engage()
    series(t.s(0), t.s(1).set(task_id="mine", queue="q", headers={"x": 1}), t.s(2, a=3)).engage()
    one, two = sent(app)
    options = {"task_id": None}
    assert one.payload[2]["chain"] == [
        {"task": "t", "args": [2], "options": options, NAME: {"at": "2", "prev": "1"}},
        {"task": "t", "args": [1], "options": options, NAME: {"at": "1", "prev": "0"}},
    ]
    task, last = behind(app, two)
    assert (task.options["task_id"], task.options["queue"]) == ("mine", "q")
    assert task.options["headers"].keys() == {"x", NAME}
    assert "ignore_result" not in task.options  # whoever has given it an id looks it up
    assert last["kwargs"] == {"a": 3}


def test_what_is_behind_a_task_that_is_not_ours_is_whole(app: Celery) -> None:
    # Celery makes another chain of it when the task replaces itself.
    tasks = tasks_of(app)
    series(tasks.t, tasks.t, tasks.plain, tasks.t).engage()
    (message,) = sent(app)
    found = message.payload[2]["chain"][::-1]
    assert [(each["task"], canvas.is_abbreviated(each)) for each in found] == [
        ("t", True),
        ("plain", False),
        (canvas.COLLECT, False),
        ("t", False),
    ]
    for task in found[1:]:
        assert app.signature(task).clone().options == task["options"]


def test_celery_can_fail_what_is_behind_a_job(app: Celery) -> None:
    t = tasks_of(app).t
    series(t.s(), t.s(), t.s().set(task_id="mine")).engage()
    (message,) = sent(app)
    request = Context(message.headers, chain=message.payload[2]["chain"])
    app.backend.mark_as_failure("id", ValueError("no"), request=request)
    assert app.AsyncResult("mine").state == "FAILURE"  # as with any chain


def test_what_has_no_header_has_an_id_of_its_own(app: Celery) -> None:
    t = tasks_of(app).t
    publish.send(app, [[t.s()], [t.s()]])
    one, two = sent(app)
    assert one.headers["id"] != two.headers["id"]


def test_replacing_puts_tasks_in_the_place_of_a_running_one(app: Celery) -> None:
    t = tasks_of(app).t
    t.push_request(id="mine")
    try:
        with pytest.raises(Ignore):
            publish.replace(t, [t.s(1), t.s(2)])
    finally:
        t.pop_request()
    (message,) = sent(app)
    assert message.payload[0] == [1]
    assert message.headers["id"] != "mine"
    (last,) = message.payload[2]["chain"]
    assert last["options"]["task_id"] == "mine"


def test_links_are_passed_to_the_last_of_what_replaces(app: Celery) -> None:
    t = tasks_of(app).t
    last = t.s()
    last.link(t.s(1))
    t.push_request(callbacks=[t.s(2)])
    try:
        publish.pass_links(t.request, last)
        assert t.request.callbacks is None
    finally:
        t.pop_request()
    assert [tuple(each["args"]) for each in last.options["link"]] == [(1,), (2,)]


def test_our_errbacks_are_dropped_before_replace_and_others_are_not(app: Celery) -> None:
    t = tasks_of(app).t
    user, plain = t.s(9), canvas.on_error({"run": "r"})
    t.push_request(errbacks=[user, canvas.on_error(), plain])
    try:
        canvas.drop_own_errbacks(t.request)
        assert t.request.errbacks == [user, plain]
    finally:
        t.pop_request()


# --- prepare ------------------------------------------------------------------------------


def test_prepare_stores_and_sends_nothing(app: Celery) -> None:
    t = tasks_of(app).t
    root = series(t, parallel([t] * 300), t).plan
    prepared = prepare(app, root, name="n", tags=("x",))
    assert runtime(app).store.scan()[0] == []
    found = cut.paginate(root).pages
    assert set(prepared.encoded) == {*found, canvas.PLAN}
    for key, items in found.items():
        assert pages.loads(prepared.encoded[key]) == items
    whole = plan.loads(pages.decompress(prepared.encoded[canvas.PLAN]))
    assert whole == root
    assert (prepared.meta.jobs, prepared.meta.name, prepared.meta.tags) == (302, "n", ("x",))


@pytest.mark.parametrize("backend", [None, "rpc://", "disabled://"])
def test_any_result_backend_will_do(backend: str | None) -> None:
    app = make_app(backend=backend)
    t = tasks_of(app).t
    series(parallel(t, t), t).engage()
    assert len(sent(app)) == 2


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


def behind(app: Celery, message: Any) -> list[Any]:
    """What is sent when the job of *message* has ended."""
    header = Header.from_dict(message.headers[NAME])
    return canvas.carried(app, header, message.payload[2]["chain"])


@pytest.mark.parametrize(
    ("make", "tasks"),
    [
        (lambda t: Clutch(t), ["t"]),
        (lambda t: series(t, t, t), ["t"]),
        (lambda t: parallel(t, t, t), ["t"] * 3),
        (lambda t: series([t] * 500), ["t"]),
        (lambda t: parallel(series(t, t), parallel(t, t)), ["t"] * 3),
        (lambda t: parallel([t] * 100), ["t"] * 100),
        (lambda t: parallel([t] * 101), [canvas.ADVANCE]),
        (lambda t: parallel([t] * 10_000), [canvas.ADVANCE]),
        (lambda t: Clutch(), []),
    ],
)
def test_engage_sends_a_small_first_page_or_one_advance(app: Celery, make: Any, tasks: Any) -> None:
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
    (following,) = behind(app, message)
    assert not {"countdown", "priority"} & set(following.options)
    assert set(following.options["headers"]) == {NAME}


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
    publish.send(app, [behind(app, one), behind(app, two)])
    three, four = sent(app)
    assert three.headers["id"] != four.headers["id"]


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
    # The sender may be a worker, whose own job must not fail for it. (``engage`` does look.)
    @app.task(name="strict", base=ClutchTask)
    def strict(a: int) -> None: ...

    strict.apply_async((1, 2, 3), headers={NAME: Header("r", 0, "0", "0").to_dict()})
    (message,) = sent(app)
    assert message.payload[0] == [1, 2, 3]
