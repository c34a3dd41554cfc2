"""Keeps the runs of celery-clutch in PostgreSQL, MariaDB or SQLite, through SQLAlchemy.

Found by its entry point. ``clutch_store`` is ``postgresql://…``, ``mariadb://…``, ``mysql://…`` or
``sqlite:///path/to/file``; the README says more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from celery_clutch import hookimpl
from celery_clutch.errors import MissingExtra
from celery_clutch.stores.base import ResultStore, StoreOptions

__all__ = ["clutch_stores"]

_SERVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql"}


@hookimpl
def clutch_stores() -> Mapping[str, Callable[[str, StoreOptions], ResultStore]]:
    """A store for each database, with and without the name of its driver."""
    named = [f"{server}+{driver}" for server, driver in _SERVERS.items()]
    return dict.fromkeys((*_SERVERS, *named), _server) | {"sqlite": _sqlite}


def _server(url: str, options: StoreOptions) -> ResultStore:
    server = url.partition("://")[0].partition("+")[0]
    driver = _SERVERS[server]
    try:
        importlib.import_module(driver)
    except ImportError as exc:
        raise MissingExtra(
            f"the {server}:// store needs {driver}: "
            f"pip install 'celery-clutch-sqlalchemy[{_EXTRAS[driver]}]'"
        ) from exc
    if driver == "psycopg":
        from .postgresql import PostgreSQLStore

        return PostgreSQLStore(url, options)
    from .mariadb import MariaDBStore

    return MariaDBStore(url, options)


def _sqlite(url: str, options: StoreOptions) -> ResultStore:
    from .sqlite import SQLiteStore

    return SQLiteStore(url, options)
