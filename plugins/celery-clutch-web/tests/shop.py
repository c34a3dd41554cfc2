"""Tasks whose runs are looked at."""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery
from celery_clutch import Clutch, ClutchResult, ClutchTask, State


class Shop:
    """An app.

    Attributes:
        go_on: what lets ``wait`` end.
        full: ``store`` fails.
    """

    def __init__(self, name: str = "shop", **settings: Any) -> None:
        self.app = Celery(name, task_cls=ClutchTask, set_as_current=False)
        self.app.conf.update(settings)
        self.go_on = threading.Event()
        self.full = True

        @self.app.task(shared=False, name="shop.fetch")
        def fetch(photo: Any) -> Any:
            return photo

        @self.app.task(shared=False, name="shop.scan", bind=True)
        def scan(job: ClutchTask, countdown: float = 0) -> str:
            if job.request.retries == 0:
                raise job.retry(exc=ConnectionError("the scanner is busy"), countdown=countdown)
            job.data["scanned"] = [1]
            return "clean"

        @self.app.task(shared=False, name="shop.store")
        def store(what: str = "", *args: Any) -> str:
            if self.full:
                raise OSError(f"the shelf is full {what}".strip())
            return "stored"

        @self.app.task(shared=False, name="shop.wait")
        def wait() -> str:
            assert self.go_on.wait(60)
            return "waited"

        @self.app.task(shared=False, name="shop.publish", bind=True)
        def publish(job: ClutchTask) -> str:
            inner = Clutch(wait, parent=job, name="letters")
            inner.engage()
            return "published"

        self.fetch, self.scan, self.store = fetch, scan, store
        self.wait, self.publish = wait, publish

    def engage(self, *steps: Any, **options: Any) -> ClutchResult:
        """Start a clutch of these steps."""
        return Clutch(*steps, app=self.app, **options).engage()

    def failed(self, id: str = "bad", what: str = "", **options: Any) -> ClutchResult:
        """A run that has failed."""
        run = self.engage(self.fetch.s(1), self.store.s(what), id=id, **options)
        run.get(timeout=30, propagate=False)
        assert run.state is State.FAILED
        return run
