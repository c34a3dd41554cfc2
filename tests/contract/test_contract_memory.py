from __future__ import annotations

from celery_clutch.stores.base import ResultStore, StoreOptions
from celery_clutch.stores.memory import MemoryStore
from celery_clutch.testing import StoreContract


class TestMemoryStore(StoreContract):
    shared = False

    def make_store(self, options: StoreOptions) -> ResultStore:
        return MemoryStore("memory://", options)
