"""The Redis store, on a real server and on fakeredis."""

from __future__ import annotations

import fakeredis
import pytest

from celery_clutch.stores.base import ResultStore, StoreOptions
from celery_clutch.stores.redis import RedisStore
from celery_clutch.testing import StoreContract


class TestRedisStore(StoreContract):
    """On a real server."""

    examples = 60

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str) -> None:
        self.url = redis_url

    def make_store(self, options: StoreOptions) -> ResultStore:
        return RedisStore(self.url, options)

    def make_unreachable(self, options: StoreOptions) -> ResultStore:
        return RedisStore("redis://localhost:1/0", options)


class TestRedisStoreOnFakeredis(StoreContract):
    """In this process, for machines with no server."""

    processes = False
    examples = 15

    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.server = fakeredis.FakeServer()

    def make_store(self, options: StoreOptions) -> ResultStore:
        client = fakeredis.FakeRedis(server=self.server)
        return RedisStore("redis://", options, client=client)

    def make_unreachable(self, options: StoreOptions) -> ResultStore:
        self.server.connected = False
        return self.make_store(options)
