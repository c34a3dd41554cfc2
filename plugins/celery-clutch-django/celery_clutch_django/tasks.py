"""Tasks for ``celery beat``."""

from __future__ import annotations

from celery import shared_task

from celery_clutch.extend.plugins import runtime

from .celery_app import celery_app

CHUNK = 100
"""Runs that are deleted in one transaction."""


@shared_task(name="celery_clutch_django.prune", ignore_result=True)
def prune(limit: int = 10_000) -> int:
    """Delete at most *limit* expired runs; how many."""
    store, pruned = runtime(celery_app()).store, 0
    while pruned < limit:
        some = min(CHUNK, limit - pruned)
        gone = store.prune(some)
        pruned += gone
        if gone < some:
            break
    return pruned
