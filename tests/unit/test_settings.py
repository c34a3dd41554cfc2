"""What is read from ``app.conf``: defaults, bad values, and where the store comes from."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_clutch.errors import ConfigurationError, NoStore
from celery_clutch.extend.settings import REDIS_SCHEMES, Settings


def settings(broker: Any = None, backend: Any = None, **conf: Any) -> Settings:
    app = Celery("settings", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(conf)
    return Settings.of(app.conf)


def test_defaults() -> None:
    assert settings(clutch_store="memory://") == Settings(
        store="memory://",
        ttl=22 * 24 * 3600,
        result_ttl=24 * 3600,
        key_prefix="clutch",
        max_result_bytes=1024 * 1024,
        max_starts=5,
        lease=60,
        grace=30,
        failed_ttl=22 * 24 * 3600,
    )


def test_everything_can_be_set() -> None:
    found = settings(
        clutch_store="redis://cache:6380/3",
        clutch_ttl=60,
        clutch_result_ttl=timedelta(minutes=2),
        clutch_key_prefix="shop",
        clutch_max_result_bytes=10,
        clutch_max_starts=1,
        clutch_lease=timedelta(seconds=9),
        clutch_grace=0.5,
        clutch_window=500,
        clutch_failed_ttl=timedelta(hours=1),
    )
    expected = Settings("redis://cache:6380/3", 60, 120, "shop", 10, 1, 9, 0.5, 500, 3600)
    assert found == expected


def test_failed_runs_are_kept_as_long_as_running_ones() -> None:
    assert settings(clutch_store="memory://", clutch_ttl=60).failed_ttl == 60


def test_settings_with_a_namespace() -> None:
    class Config:
        CELERY_CLUTCH_STORE = "memory://"
        CELERY_CLUTCH_TTL = 7

    app = Celery("settings", set_as_current=False)
    app.config_from_object(Config, namespace="CELERY")
    found = Settings.of(app.conf)
    assert (found.store, found.ttl) == ("memory://", 7)


@pytest.mark.parametrize(
    "name",
    [
        "clutch_ttl",
        "clutch_result_ttl",
        "clutch_failed_ttl",
        "clutch_max_result_bytes",
        "clutch_max_starts",
        "clutch_lease",
        "clutch_grace",
        "clutch_window",
    ],
)
@pytest.mark.parametrize("value", [0, -1, "60", True, [], timedelta(0), b"1"])
def test_numbers_must_be_above_zero(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        settings(clutch_store="memory://", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clutch_ttl", float("nan")),
        ("clutch_ttl", float("inf")),
        ("clutch_result_ttl", float("nan")),
        ("clutch_max_result_bytes", 0.5),
        ("clutch_max_starts", 0.5),
        ("clutch_lease", float("nan")),
        ("clutch_lease", float("inf")),
        ("clutch_window", 99),
        ("clutch_window", 10_001),
        ("clutch_grace", float("nan")),
        ("clutch_grace", float("inf")),
    ],
)
def test_numbers_must_make_sense(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        settings(clutch_store="memory://", **{name: value})


@pytest.mark.parametrize("value", ["localhost", "", 5, ["redis://"], b"redis://"])
def test_a_store_is_a_url(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="clutch_store must be a URL"):
        settings(clutch_store=value)


@pytest.mark.parametrize("url", ["redis:/:s3cret@cache/0", "redis//:s3cret@cache", ":s3cret@cache"])
def test_a_store_that_is_mistyped_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it has no ://") as refused:
        settings(clutch_store=url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("scheme", REDIS_SCHEMES)
def test_the_store_is_the_redis_of_the_backend(scheme: str) -> None:
    url = f"{scheme}://place/0"
    assert settings("redis://broker", url).store == url


def test_the_store_is_else_the_redis_of_the_broker() -> None:
    assert settings("redis://broker/1", "cache+memory://").store == "redis://broker/1"
    assert settings("redis://broker/1", None).store == "redis://broker/1"
    assert settings("redis://broker/1", "rpc://").store == "redis://broker/1"


def test_what_is_set_goes_first() -> None:
    found = settings("redis://broker", "redis://backend", clutch_store="mine://here")
    assert found.store == "mine://here"


def test_the_first_of_several_brokers() -> None:
    assert settings(["redis://a/0", "redis://b/0"]).store == "redis://a/0"


def test_the_first_of_several_brokers_in_one_string() -> None:
    assert settings("redis://a/0;redis://b/0").store == "redis://a/0"


@pytest.mark.parametrize(
    ("broker", "backend"),
    [
        ("amqp://guest@localhost//", None),
        ("amqp://guest@localhost//", "rpc://"),
        ("memory://", "cache+memory://"),
        (None, None),
        ("sqs://", "db+postgresql://redis:redis@redis/redis"),
    ],
)
def test_no_redis_is_an_error_that_says_what_to_set(broker: Any, backend: Any) -> None:
    with pytest.raises(NoStore, match=r"Set clutch_store, for example to redis://"):
        settings(broker, backend)


def test_eager_mode_needs_no_store() -> None:
    assert settings("amqp://", task_always_eager=True).store == "memory://"
    assert settings("redis://", task_always_eager=True).store == "memory://"
    found = settings("redis://", task_always_eager=True, clutch_store="redis://other")
    assert found.store == "redis://other"


@pytest.mark.parametrize("kind", ["broker", "backend"])
def test_the_master_that_celery_asks_sentinel_for(kind: str) -> None:
    names = {"broker": "broker_transport_options", "backend": "result_backend_transport_options"}
    options = {names[kind]: {"master_name": "shop"}}
    url = "sentinel://a:26379;sentinel://b:26379/2"
    assert settings(**{kind: url}, **options).store == f"{url}?master_name=shop"
    named = f"{url}?master_name=other"
    assert settings(**{kind: named}, **options).store == named
    other = f"{url}?db=3"
    assert settings(**{kind: other}, **options).store == f"{other}&master_name=shop"
    assert settings(**{kind: "redis://a"}, **options).store == "redis://a"


def test_the_master_of_the_broker_is_not_the_backends() -> None:
    options = {"broker_transport_options": {"master_name": "queues"}}
    store = settings("sentinel://a/0", "sentinel://b/0", **options).store
    assert store == "sentinel://b/0"
