"""A Redis that is the broker and the store: messages that the store sends."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson
import pytest
import redis
from celery import Celery
from kombu import Exchange, Queue

from celery_clutch import Clutch, ClutchTask
from celery_clutch.compile import direct
from celery_clutch.extend.plugins import forget_runtime, runtime
from celery_clutch.model.status import State
from celery_clutch.stores.base import Completion, StoreOptions
from celery_clutch.stores.redis import RedisStore


def step(value: int) -> int:
    return value


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

    def publish(producer: Any, declared: set[Any] | None = None) -> None:
        app.tasks["step"].apply_async((1,), task_id="id", producer=producer, **options)

    with app.producer_pool.acquire() as producer:
        publish(producer)
    assert direct.send(app, publish)
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
    assert not direct.send(app, lambda producer, declared: pytest.fail("it was published"))


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

    def publish(producer: Any, declared: set[Any]) -> None:
        app.tasks["step"].apply_async((1,), producer=producer)

    assert not direct.send(app, publish)


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


def test_to_engage_takes_a_script_and_a_message(
    make_app: Callable[..., Celery], redis_url: str, queue: str
) -> None:
    app = make_app()
    client = redis.Redis.from_url(redis_url)
    clutch = Clutch(app.signature("step", (1,)), app=app)
    runs = [clutch.engage()]
    sent: list[str] = []
    with client.monitor() as monitor:
        runs.append(clutch.engage())
        client.echo(queue)
        for each in monitor.listen():
            if each["command"] == f"ECHO {queue}":
                break
            if each["client_type"] != "lua" and (runs[1].id in each["command"]):
                sent.append(each["command"].split()[0])
    assert sent == ["EVALSHA", "LPUSH"]
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
