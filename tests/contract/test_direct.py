"""A Redis that is the broker and the store: messages that the store sends."""

from __future__ import annotations

import json
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import orjson
import pytest
import redis
from celery import Celery, Task
from celery._state import _task_stack
from celery.signals import after_task_publish, before_task_publish
from kombu import Exchange, Queue
from kombu.serialization import register, unregister

from celery_clutch import Clutch, ClutchResult, ClutchTask, parallel
from celery_clutch.compile import direct, publish
from celery_clutch.compile.canvas import Compiler
from celery_clutch.compile.header import Header
from celery_clutch.compile.pages import Item
from celery_clutch.errors import AlreadyEngaged
from celery_clutch.extend.plugins import forget_runtime, runtime
from celery_clutch.model.plan import Job
from celery_clutch.model.status import State
from celery_clutch.stores.base import Completion, StoreOptions
from celery_clutch.stores.redis import RedisStore


def step(value: int) -> int:
    return value


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have left receivers."""
    for signal in (before_task_publish, after_task_publish):
        monkeypatch.setattr(signal, "receivers", [])


@pytest.fixture
def queue() -> str:
    return f"direct-{uuid.uuid4()}"


@pytest.fixture
def make_app(redis_url: str, queue: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = Celery("direct", broker=redis_url, set_as_current=False, task_cls=ClutchTask)
        app.conf.update({"task_default_queue": queue, "clutch_ttl": 60, **conf})
        app.task(name="step")(step)
        made.append(app)
        return app

    yield make
    client = redis.Redis.from_url(redis_url)
    for app in made:
        forget_runtime(app)
        app.close()
    for key in client.scan_iter(f"*{queue}*"):
        client.delete(key)
    client.close()


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        ({}, {}),
        ({"broker_transport_options": {"global_keyprefix": "pre-"}}, {}),
        ({"broker_transport_options": {"priority_steps": list(range(10))}}, {"priority": 7}),
        ({}, {"countdown": 30}),
    ],
)
def test_the_store_sends_what_kombu_sends(
    make_app: Callable[..., Celery],
    redis_url: str,
    queue: str,
    conf: dict[str, Any],
    options: dict[str, Any],
) -> None:
    app = make_app(**conf)

    def publish(producer: Any) -> None:
        app.tasks["step"].apply_async((1,), task_id="id", producer=producer, **options)

    with app.producer_pool.acquire() as producer:
        publish(producer)
    message = app.signature("step", (1,)), dict[str, Any]()
    assert direct.send(app, [message], lambda _, producer, declared: publish(producer))
    client = redis.Redis.from_url(redis_url)
    (key,) = [key for key in client.keys(f"*{queue}*") if b"_kombu" not in key]
    by_store, by_kombu = map(orjson.loads, client.lrange(key, 0, -1))
    for message in (by_store, by_kombu):
        message["headers"].pop("eta")
        message["properties"].pop("delivery_tag")
        message["properties"].pop("reply_to")
    assert by_store == by_kombu


@pytest.mark.parametrize(
    "conf",
    [
        {"broker_url": "memory://"},
        {"broker_url": "redis://127.0.0.2:1/0"},
        {"task_always_eager": True},
        {"clutch_store": "memory://"},
    ],
)
def test_what_is_for_another_server_the_store_does_not_send(
    make_app: Callable[..., Celery], redis_url: str, conf: dict[str, Any]
) -> None:
    app = make_app(**{"clutch_store": redis_url, **conf})
    messages = [(app.signature("step", (1,)), {})]
    assert not direct.send(app, messages, lambda *_: pytest.fail("it was published"))


@pytest.mark.parametrize(
    "options",
    [
        {"exchange": Exchange("direct-all", "fanout")},
        {"queue_arguments": {"x-expires": 60_000}},
    ],
)
def test_what_is_for_more_than_a_queue_the_store_does_not_send(
    make_app: Callable[..., Celery], queue: str, options: dict[str, Any]
) -> None:
    app = make_app(task_queues=[Queue(queue, **options)])
    tried: list[str] = []

    def publish(message: direct.Message, producer: Any, declared: set[Any]) -> None:
        tried.append(message[0].task)
        app.tasks["step"].apply_async((1,), producer=producer)

    for _ in range(3):
        assert not direct.send(app, [(app.signature("step", (1,)), {})], publish)
    assert tried == ["step"], "who looks at messages sees those that are sent, but for the first"


def test_a_connection_that_was_closed_leaves_messages_to_kombu(
    make_app: Callable[..., Celery], redis_url: str, queue: str
) -> None:
    app = make_app()
    client = redis.Redis.from_url(redis_url, client_name="spared")
    clutch = Clutch(app.signature("step", (1,)), app=app)
    runs = [clutch.engage()]
    assert direct.of(runtime(app)).possible
    database = client.client_info()["db"]
    for each in client.client_list():
        if int(each["db"]) == database and each["name"] != "spared":
            client.client_kill_filter(_id=each["id"])
    runs.append(clutch.engage())
    assert client.llen(queue) == 2
    for run in runs:
        run.forget()


# --- messages that are alike ----------------------------------------------------------------


@contextmanager
def watched() -> Iterator[list[str]]:
    """The tasks of messages that are made as usual meanwhile, as somebody looks at them."""
    seen: list[str] = []

    def look(sender: str, **_: Any) -> None:
        seen.append(sender)

    before_task_publish.connect(look, weak=False)
    yield seen
    before_task_publish.disconnect(look)


def made(app: Celery, *jobs: Job) -> dict[str, Any]:
    """The message of a chain of jobs."""
    chain = tuple(Item(str(index), job) for index, job in enumerate(jobs))
    tasks = Compiler(app, Header("r", 2, context={"x": "y"})).chain("3", chain)
    found = publish.made(runtime(app), tasks)
    assert found is not None
    message: dict[str, Any] = json.loads(found[1])
    message["key"] = found[0]
    message["body"] = json.loads(b64decode(message["body"]))
    message["properties"].pop("delivery_tag")
    return message


JOBS = [
    (Job("step", (1,)),),
    (Job("step"),),
    (Job("step", ("\ud83d",)),),
    (Job("step", ("é\U0001f600", None, [1.5, {"a": "b" * 2000}]), {"value": 2, "more": []}),),
    (Job("step", (1,)), Job("step", (2,)), Job("step", (3,), prepend=True)),
    (Job("step", (1,)), Job("plain", (2,), plain=True), Job("step", (3,))),
    (Job("step", (1,), options={"queue": "direct-other"}),),
    (Job("step", (1,), options={"priority": 3}),),
    (Job("step", (1,), options={"headers": {"mine": 1}}),),
    (Job("step", (1,), options={"task_id": "mine"}),),
    (Job("step", (1,), options={"link_error": [{"task": "step", "args": [], "options": {}}]}),),
    (Job("step", (1,), options={"expires": "2033-05-18T03:33:20+00:00"}),),
    (Job("elsewhere", (1,)),),
    (Job("plain", (1,), plain=True),),
]


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "in a task"])
@pytest.mark.parametrize("conf", [{}, {"task_routes": {"st*": {"queue": "direct-routed"}}}])
@pytest.mark.parametrize("jobs", JOBS)
def test_what_is_like_others_is_what_celery_makes(
    make_app: Callable[..., Celery], jobs: tuple[Job, ...], conf: dict[str, Any], inside: bool
) -> None:
    app = make_app(**conf)
    made(app, Job("step", ("first",)))  # what others are made like
    for _ in range(2):
        with _running(app) if inside else nullcontext():
            found = made(app, *jobs)
            with watched() as seen:
                assert made(app, *jobs) == found
                assert seen == [jobs[0].task]


@contextmanager
def _running(app: Celery) -> Iterator[None]:
    """A worker is running a task."""
    task = app.tasks["step"]
    task.push_request(id="id", root_id="root", called_directly=False)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def test_messages_are_copied_where_nobody_looks(make_app: Callable[..., Celery]) -> None:
    app = make_app()
    made(app, Job("step", (1,)))
    (maker,) = direct.of(runtime(app))._idle
    assert all(maker._envelopes.values())
    publish_one = pytest.fail
    signature = Compiler(app, Header("r", 0)).chain("0", (Item("1", Job("step", (2,))),))[0]
    message = signature, {**signature.options, "task_id": "id"}
    ((found,),) = maker.made([message], publish_one).values()
    assert orjson.loads(found)["headers"]["clutch"]["at"] == "1"


def _with_router(app: Celery, seen: list[str]) -> None:
    def route(name: str, args: Any, *_: Any, **__: Any) -> None:
        seen.append(name)

    app.conf.task_routes = (route,)


def _with_own_send_task(app: Celery, seen: list[str]) -> None:
    usual = app.send_task

    def send_task(name: str, *args: Any, **options: Any) -> Any:
        seen.append(name)
        return usual(name, *args, **options)

    app.send_task = send_task  # type: ignore[method-assign]


def _with_own_amqp(app: Celery, seen: list[str]) -> None:
    usual = app.amqp.send_task_message

    def send_task_message(producer: Any, name: str, *args: Any, **options: Any) -> Any:
        seen.append(name)
        return usual(producer, name, *args, **options)

    app.amqp.__dict__["send_task_message"] = send_task_message


def _with_signal(app: Celery, seen: list[str]) -> None:
    after_task_publish.connect(lambda sender, **_: seen.append(sender), weak=False)


@pytest.mark.parametrize(
    ("look", "late"),
    [
        (_with_router, False),  # Celery, too, reads these when it sends its first message
        (_with_own_amqp, False),
        (_with_own_send_task, False),
        (_with_own_send_task, True),
        (_with_signal, False),
        (_with_signal, True),
    ],
)
def test_who_looks_at_messages_sees_all(
    make_app: Callable[..., Celery], look: Callable[[Celery, list[str]], None], late: bool
) -> None:
    app = make_app()
    seen: list[str] = []
    receivers = list(after_task_publish.receivers or ())
    try:
        if late:
            made(app, Job("step", (0,)))
        look(app, seen)
        for index in range(3):
            made(app, Job("step", (index,)))
        assert seen == ["step"] * 3
    finally:
        after_task_publish.receivers = receivers


@pytest.mark.parametrize("name", ["apply_async", "send_task"])
def test_who_has_wrapped_what_celery_sends_with_sees_all(
    make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As what traces Celery does."""
    app = make_app()
    seen: list[str] = []
    owner = Task if name == "apply_async" else Celery
    usual = getattr(owner, name)

    @wraps(usual)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(name)
        return usual(self, *args, **options)

    made(app, Job("step", (0,)))
    monkeypatch.setattr(owner, name, wrapped)
    for index in range(3):
        made(app, Job("step", (index,)))
    assert seen == [name] * 3


def _queue_is_another(app: Celery) -> None:
    app.conf.task_default_queue = f"{app.conf.task_default_queue}-other"


def _route_is_another(app: Celery) -> None:
    app.conf.update(task_routes={"step": {"queue": "direct-routed"}})


def _task_is_another(app: Celery) -> None:
    app.tasks.unregister("step")
    app.task(name="step", priority=3, shared=False)(step)  # else later apps have it, too


@pytest.mark.parametrize("change", [_queue_is_another, _route_is_another, _task_is_another])
def test_what_has_changed_is_in_the_next_message(
    make_app: Callable[..., Celery], change: Callable[[Celery], None]
) -> None:
    app = make_app()
    before = made(app, Job("step", (1,)))
    change(app)
    found = made(app, Job("step", (1,)))
    with watched():
        usual = made(app, Job("step", (1,)))
    assert found == usual != before


def test_a_queue_that_is_bound_to_the_exchange_later_gets_messages(
    make_app: Callable[..., Celery], queue: str
) -> None:
    exchange = Exchange(f"{queue}-all", "topic")
    app = make_app(task_queues=[Queue(queue, exchange, routing_key="a.*")])
    app.conf.task_default_routing_key = "a.b"
    maker = direct.of(runtime(app))
    signature = Compiler(app, Header("r", 0)).chain("0", (Item("1", Job("step", (2,))),))[0]

    def queues() -> set[str]:
        message = signature, {**signature.options, "task_id": "id"}
        return set(maker.made([message], partial(publish._publish_one, app)) or ())

    assert queues() == {queue}
    with app.connection_for_write() as connection:
        Queue(f"{queue}-more", exchange, routing_key="#")(connection).declare()
    assert queues() == {queue, f"{queue}-more"}


def test_a_serializer_of_the_user_s_own_makes_all_messages(
    make_app: Callable[..., Celery],
) -> None:
    def encode(value: Any) -> str:
        return json.dumps(value).replace("secret", "******")

    register("direct-own", encode, json.loads, "application/x-own")
    app = make_app(task_serializer="direct-own")
    for value in ("first", "secret"):
        found = made(app, Job("step", (value,)))
        assert found["content-type"] == "application/x-own"
    assert found["body"][0] == ["******"]
    unregister("direct-own")


@pytest.mark.parametrize(
    ("steps", "id", "commands"),
    [
        (1, None, ["EVALSHA"]),
        (3, None, ["EVALSHA", "LPUSH"]),
        # Who calls again is to know whether anything was sent.
        (1, "direct", ["EVALSHA", "LPUSH", "HGETALL", "EVALSHA"]),
    ],
)
def test_to_engage_takes_a_script_and_messages(
    make_app: Callable[..., Celery],
    redis_url: str,
    queue: str,
    steps: int,
    id: str | None,
    commands: list[str],
) -> None:
    app = make_app()
    client = redis.Redis.from_url(redis_url)
    branches = [app.signature("step", (number,)) for number in range(steps)]

    def engage(id: str | None) -> ClutchResult:
        return Clutch(parallel(*branches), app=app, id=id).engage()

    runs = [engage(None)]
    sent: list[str] = []
    with client.monitor() as monitor:
        runs.append(engage(id and f"{id}-{queue}"))
        client.echo(queue)
        for each in monitor.listen():
            if each["command"] == f"ECHO {queue}":
                break
            if each["client_type"] != "lua" and runs[1].id in each["command"]:
                sent.append(each["command"].split()[0])
    assert sent == commands
    assert client.llen(queue) == 2 * steps
    for run in runs:
        run.forget()


# --- in the step that records a result ----------------------------------------------------------


@pytest.fixture
def store(redis_url: str) -> Iterator[RedisStore]:
    store = RedisStore(redis_url, StoreOptions("keys-direct", ttl=60))
    yield store
    store.close()


def complete(store: RedisStore, run: str, queue: str, generation: int = 0) -> tuple[str, ...]:
    done = Completion(
        run, "0", generation, b"1", "t", next=("job 0 1", 1.0), message=(queue, b"message")
    )
    return store.complete(done).due


def test_a_run_and_its_only_message_are_one_step(
    store: RedisStore, redis_url: str, queue: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    run = f"r-{uuid.uuid4()}"
    store.create(run, b"", {}, 3, due={"page 0": 1.0}, message=(queue, b"message"))
    with pytest.raises(AlreadyEngaged):
        store.create(run, b"", {}, 3, message=(queue, b"another"))
    assert client.lrange(queue, 0, -1) == [b"message"]
    found = store.read(run)
    assert found and list(found.due) == ["page 0"], "until the message begins it may be lost"
    client.delete(queue)
    store.delete(run)


def test_a_result_and_the_message_for_what_is_next_are_one_step(
    store: RedisStore, redis_url: str, queue: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    left = partial(client.lrange, queue, 0, -1)
    run = f"r-{uuid.uuid4()}"
    store.create(run, b"", {}, 3)
    assert complete(store, run, queue) == ()
    assert left() == [b"message"]
    found = store.read(run)
    assert found and list(found.due) == ["job 0 1"], "until the message begins it may be lost"
    # A copy sends nothing.
    assert complete(store, run, queue) == ("job 0 1",)
    assert left() == [b"message"]
    client.delete(queue)
    store.delete(run)


@pytest.mark.parametrize("target", [State.CANCELLED, State.RUNNING])
def test_what_is_not_due_in_this_generation_is_not_sent(
    store: RedisStore, redis_url: str, queue: str, target: State
) -> None:
    run = f"r-{uuid.uuid4()}"
    store.create(run, b"", {}, 3)
    store.transition(run, [State.RUNNING], target, 0)
    due = ("job 0 1",) if target is State.RUNNING else ()
    assert complete(store, run, queue) == due
    assert not redis.Redis.from_url(redis_url).exists(queue)
    store.delete(run)
