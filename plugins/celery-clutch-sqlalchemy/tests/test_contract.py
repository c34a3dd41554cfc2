"""The contract of stores, on each database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from celery_clutch.stores.base import ResultStore, StoreOptions
from celery_clutch.testing import StoreContract
from databases import open_store


class OnDatabase(StoreContract):
    """What the three have in common."""

    kind = ""
    unreachable = ""
    examples = 15

    @pytest.fixture(autouse=True)
    def _database(self, migrated: Callable[[str], str], tmp_path: Path) -> None:
        self.url = migrated(self.kind)
        self.directory = tmp_path

    def make_store(self, options: StoreOptions) -> ResultStore:
        return open_store(self.url, options)

    def make_unreachable(self, options: StoreOptions) -> ResultStore:
        return open_store(self.unreachable.format(self.directory), options)


class TestPostgreSQL(OnDatabase):
    """On a real server."""

    kind = "postgresql"
    unreachable = "postgresql://localhost:1/none"


class TestMariaDB(OnDatabase):
    """On a real server."""

    kind = "mariadb"
    unreachable = "mariadb://localhost:1/none"


class TestSQLite(OnDatabase):
    """In a file."""

    kind = "sqlite"
    unreachable = "sqlite:///{}/no/such/directory/file"
