"""What the Redis store makes of its URL, with no server; servers are in ``tests/contract``."""

from __future__ import annotations

import time

import pytest

from celery_clutch.errors import ConfigurationError, StoreUnavailable
from celery_clutch.extend.plugins import Plugins
from celery_clutch.extend.settings import REDIS_SCHEMES, Settings
from celery_clutch.stores.base import StoreOptions
from celery_clutch.stores.redis import RedisStore

SECRET = "hunter2"

GOOD = [
    "redis://",
    "redis://localhost",
    "redis://localhost:6380/3",
    f"redis://:{SECRET}@localhost:6380/3",
    f"redis://user:{SECRET}@localhost",
    "redis://localhost?db=4",
    "redis://[::1]:6379/0",
    "redis://localhost?socket_timeout=1&socket_connect_timeout=2&retry_on_timeout=true",
    "rediss://localhost?ssl_cert_reqs=none",
    "rediss://localhost?ssl_cert_reqs=CERT_NONE",
    "rediss://localhost?ssl_cert_reqs=CERT_OPTIONAL",
    "rediss://localhost/1?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/etc/ca.pem",
    "redis+socket:///run/redis.sock",
    "redis+socket:///run/redis.sock?virtual_host=2",
    "redis+socket:///run/redis.sock?virtual_host=/2",
    f"redis+socket:///run/redis.sock?password={SECRET}&db=1",
    "sentinel://localhost/shop",
    "sentinel://localhost:26379,other:26380/shop",
    f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:2/3?master_name=shop",
    f"redis+cluster://:{SECRET}@localhost:7000",
    "redis+cluster://localhost:7000/0",
]

BAD = [
    ("redis://localhost:port", "port"),
    ("redis://localhost:99999", "port"),
    (f"redis://:{SECRET}/x@localhost:6379/0", "%2F"),
    ("redis://localhost/shop", "'shop'"),
    ("redis://localhost/-1", "'-1'"),
    ("redis://localhost?db=x", "'x'"),
    ("redis://localhost?colour=red", "colour"),
    ("redis://localhost?socket_timeout=soon", "socket_timeout"),
    ("redis://[::1", "IPv6"),
    ("rediss://localhost?ssl_cert_reqs=CERT_PERHAPS", "CERT_PERHAPS"),
    ("redis+socket://", "path"),
    ("redis+socket:///run/redis.sock?virtual_host=x", "db"),
    ("sentinel://localhost:26379", "master_name"),
    (f"sentinel://:{SECRET}@localhost:26379/0", "master_name"),
    ("sentinel://localhost:x/shop", "port"),
    ("redis+cluster://localhost/1", "database 0 only"),
]


@pytest.mark.parametrize("url", GOOD)
def test_urls_that_make_sense_open_no_connection(url: str) -> None:
    store = RedisStore(url)
    assert SECRET not in repr(store)
    store.close()


@pytest.mark.parametrize(("url", "why"), BAD)
def test_urls_that_make_no_sense_are_refused_at_once(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Plugins([]).open(Settings(url))
    assert why in str(error.value)
    assert url.partition("://")[0] in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("scheme", REDIS_SCHEMES)
def test_a_server_that_is_not_there(scheme: str) -> None:
    place = {"redis+socket": "/nowhere/redis.sock", "sentinel": "localhost:1/shop"}
    store = RedisStore(f"{scheme}://{place.get(scheme, 'localhost:1')}", StoreOptions())
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.create("r", b"", {}, 1)
    with pytest.raises(StoreUnavailable):
        store.wait("r", 5)
    assert store.check() == [], "there is nothing to say of a server that is not there"
    assert time.monotonic() - started < 3, "at once: whoever calls decides about trying again"
    store.close()
