"""Django for the tests: settings, and databases of their own that are dropped at the end.

``CLUTCH_TEST_POSTGRES`` (default ``postgresql://postgres@localhost:5432/postgres``) says where a
PostgreSQL is, in which a database is made and dropped; ``CLUTCH_TEST_REDIS`` and ``CLUTCH_TEST_DB``
(6) where the broker of the real worker is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import Error, connections
from django.test.utils import override_settings

NAME = f"clutch_django_{os.getpid()}"
PLACE = urlsplit(
    os.environ.get("CLUTCH_TEST_POSTGRES", "postgresql://postgres@localhost:5432/postgres")
)
FOLDER = Path(tempfile.mkdtemp(prefix="clutch-django-"))


def postgresql(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "HOST": PLACE.hostname,
        "PORT": PLACE.port or 5432,
        "USER": unquote(PLACE.username or "postgres"),
        "PASSWORD": unquote(PLACE.password or ""),
        "CONN_MAX_AGE": None,
        "OPTIONS": {"connect_timeout": 5},
        **changes,
    }


def sqlite(path: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {"timeout": 30},
    }


def pytest_configure(config: pytest.Config) -> None:
    settings.configure(
        SECRET_KEY="a secret of the tests",
        ALLOWED_HOSTS=["*"],
        USE_TZ=True,
        STATIC_URL="/static/",
        ROOT_URLCONF="urls",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "django.contrib.staticfiles",
            "celery_clutch_django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        DATABASES={
            "default": sqlite(FOLDER / "default.db"),
            "empty": sqlite(FOLDER / "empty.db"),
            "nowhere": sqlite(FOLDER / "no" / "such" / "folder.db"),
            "postgres": postgresql(NAME),
            "postgres_empty": postgresql(f"{NAME}_empty"),
            "postgres_server": postgresql(PLACE.path.strip("/") or "postgres"),
            "postgres_nowhere": postgresql(NAME, HOST="127.0.0.1", PORT=1),
        },
    )
    django.setup()


@pytest.fixture(scope="session")
def missing() -> Callable[[str, object], NoReturn]:
    """Call it with the name of a service and why it cannot be used: skips, or fails in CI."""

    def say(service: str, reason: object) -> NoReturn:
        message = f"{service} is missing: {reason}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return say


@pytest.fixture(scope="session")
def _sqlite() -> Iterator[None]:
    with connections["default"].cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
    call_command("migrate", verbosity=0)
    yield
    connections.close_all()
    for path in FOLDER.glob("*"):
        path.unlink()
    FOLDER.rmdir()


@pytest.fixture(scope="session")
def _postgres(missing: Callable[[str, object], NoReturn]) -> Iterator[None]:
    problem: object = None
    try:
        connections["postgres_server"].ensure_connection()
    except Error as exc:
        problem = exc
    if problem:
        missing(f"PostgreSQL at {PLACE.hostname}", problem)
    names = NAME, f"{NAME}_empty"
    with connections["postgres_server"].cursor() as cursor:
        for name in names:
            cursor.execute(f'CREATE DATABASE "{name}"')
    call_command("migrate", database="postgres", verbosity=0)
    yield
    connections.close_all()
    with connections["postgres_server"].cursor() as cursor:
        for name in names:
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    connections.close_all()


@pytest.fixture(params=["default", "postgres"])
def alias(request: pytest.FixtureRequest) -> str:
    """A database with all tables: first SQLite, then PostgreSQL."""
    name = str(request.param)
    request.getfixturevalue("_sqlite" if name == "default" else "_postgres")
    return name


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a program in a Python of its own; what it prints."""

    def run(program: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def store(alias: str) -> Iterator[Any]:
    """The store of the app in shop.py; its runs are deleted after the test."""
    from shop import app

    from celery_clutch.extend.plugins import forget_runtime, runtime

    app.conf.clutch_store = f"django://{alias}"
    found = runtime(app).store
    with override_settings(CLUTCH_CELERY_APP="shop.app"):
        yield found
    while page := found.scan()[0]:
        for summary in page:
            found.delete(summary.run)
    forget_runtime(app)


@pytest.fixture
def atomic_requests(alias: str) -> Iterator[None]:
    """Each request is a transaction, of the database of the users and of that of the runs."""
    changed = [connections.settings[name] for name in {"default", alias}]
    for each in changed:
        each["ATOMIC_REQUESTS"] = True
    yield
    for each in changed:
        each["ATOMIC_REQUESTS"] = False
