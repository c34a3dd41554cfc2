"""A task for beat. Workers learn of it by ``include=["celery_clutch_sqlalchemy.tasks"]``."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task
from celery_clutch.plugins import runtime


@shared_task(name="celery_clutch_sqlalchemy.prune", base=Task, bind=True)
def prune(self: Any, batch: int = 1000) -> int:
    """Delete the runs that have expired, *batch* in each transaction; how many there were."""
    store, total = runtime(self.app).store, 0
    while deleted := store.prune(batch):
        total += deleted
    return total
