"""The store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from celery_clutch_django.plugin import open_store

from celery_clutch import ResultStore
from celery_clutch.stores.base import StoreOptions
from celery_clutch.testing import StoreContract


class DjangoContract(StoreContract):
    alias = ""
    nowhere = ""
    examples = 15

    def make_store(self, options: StoreOptions) -> ResultStore:
        return open_store(f"django://{self.alias}", options)

    def make_unreachable(self, options: StoreOptions) -> ResultStore:
        return open_store(f"django://{self.nowhere}", options)

    @pytest.fixture(autouse=True)
    def _threads(self) -> Iterator[None]:
        """Threads that have ended leave connections behind, until they are collected."""
        yield
        gc.collect()


@pytest.mark.usefixtures("_sqlite")
class TestSQLite(DjangoContract):
    alias = "default"
    nowhere = "nowhere"


@pytest.mark.usefixtures("_postgres")
class TestPostgreSQL(DjangoContract):
    alias = "postgres"
    nowhere = "postgres_nowhere"
