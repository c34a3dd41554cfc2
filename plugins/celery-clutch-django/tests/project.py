"""Settings and Celery app of the worker that test_worker.py starts; the databases are given to it."""

from __future__ import annotations

import json
import os

from celery import Celery
from django.db import connections

from celery_clutch import ClutchTask

SECRET_KEY = "a secret of the tests"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "celery_clutch_django"]
DATABASES = json.loads(os.environ.get("CLUTCH_TEST_DATABASES", "{}"))

app = Celery(
    "project",
    broker=os.environ.get("CLUTCH_TEST_BROKER"),
    backend=os.environ.get("CLUTCH_TEST_BROKER"),
    task_cls="celery_clutch:ClutchTask",
    set_as_current=False,
)
app.conf.update(
    clutch_store=os.environ.get("CLUTCH_TEST_STORE"),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 30},
)


@app.task(bind=True)
def number(self: ClutchTask, value: int) -> int:
    self.data["seen"] = [*self.data.get("seen", []), value]
    return value


@app.task(bind=True, max_retries=3, default_retry_delay=0.1)
def shaky(self: ClutchTask, value: int) -> int:
    if self.request.retries < 2:
        raise self.retry(exc=OSError(f"attempt {self.request.retries}"))
    return value


@app.task(bind=True)
def total(self: ClutchTask) -> int:
    return sum(self.previous_results)


@app.task
def cut(alias: str) -> None:
    """Cut the connection over which the store is to put away the result of this very job."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    other = connections.create_connection(alias)
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [backend])
    other.close()


@app.task
def who() -> int:
    return os.getpid()
