"""What `memory://` is besides a store: one world for each object, in this process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from celery_clutch.extend.plugins import Plugins
from celery_clutch.extend.settings import Settings
from celery_clutch.model.status import State
from celery_clutch.stores.base import Completion, StoreOptions
from celery_clutch.stores.memory import MemoryStore


def test_each_store_is_a_world_of_its_own() -> None:
    plugins, settings = Plugins([]), Settings("memory://")
    one, two = plugins.open(settings), plugins.open(settings)
    one.create("r", b"", {}, 1)
    assert one.peek("r") == (State.RUNNING, 0)
    assert two.read("r") is None


def test_closing_forgets_nothing() -> None:
    store = MemoryStore()
    store.create("r", b"", {}, 1)
    store.close()
    assert store.peek("r") == (State.RUNNING, 0)


def test_what_was_given_is_not_kept_by_reference() -> None:
    store, pages, tags = MemoryStore(), {"0": b"page"}, ["tag"]
    store.create("r", b"", pages, 1, tags=tags)
    pages["0"] = b"other"
    tags.append("more")
    assert store.page("r", "0") == b"page"
    assert store.scan()[0][0].tags == ("tag",)


def test_waiting_for_a_run_that_expires() -> None:
    store = MemoryStore(options=StoreOptions(ttl=0.2))
    store.create("r", b"", {}, 1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(store.wait, "r", None).result(10) is None


def test_many_waiting_threads_wake_up_together() -> None:
    store, ready = MemoryStore(), threading.Barrier(11)
    store.create("r", b"", {}, 1)

    def wait() -> State | None:
        ready.wait(10)
        return store.wait("r", 30)

    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(wait) for _ in range(10)]
        ready.wait(10)
        store.complete(Completion("r", "0", 0, b""))
        assert {each.result(10) for each in waiting} == {State.SUCCEEDED}
