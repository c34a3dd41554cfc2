"""The Celery app that the admin and the commands work with."""

from __future__ import annotations

from typing import Any

from celery import Celery, current_app
from django.conf import settings
from django.utils.module_loading import import_string

from celery_clutch.errors import ConfigurationError


def celery_app() -> Celery:
    """What the setting ``CLUTCH_CELERY_APP`` names ("shop.celery.app"); without it Celery's own.

    Raises:
        ConfigurationError: the setting names no Celery app.
    """
    path = getattr(settings, "CLUTCH_CELERY_APP", None)
    if not path:
        app: Celery = current_app._get_current_object()
        return app
    try:
        found: Any = import_string(str(path).replace(":", "."))
    except ImportError as exc:
        raise ConfigurationError(f"CLUTCH_CELERY_APP is {path!r}: {exc}") from exc
    if not isinstance(found, Celery):
        raise ConfigurationError(f"CLUTCH_CELERY_APP is {path!r}, which is no Celery app")
    return found
