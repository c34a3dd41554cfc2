"""What celery-clutch is told of this distribution: the store ``django://<database alias>``."""

from __future__ import annotations

import os
from collections.abc import Callable

from celery_clutch import ResultStore, hookimpl
from celery_clutch.errors import ConfigurationError
from celery_clutch.stores.base import StoreOptions


@hookimpl
def clutch_stores() -> dict[str, Callable[[str, StoreOptions], ResultStore]]:
    return {"django": open_store}


def open_store(url: str, options: StoreOptions = StoreOptions()) -> ResultStore:
    """The store in the database that *url* names: ``django://default``.

    Raises:
        ConfigurationError: Django is not set up, or has no such database, or not this app.
    """
    import django
    from django.apps import apps
    from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured
    from django.db import connections

    alias = url.partition("://")[2].partition("?")[0].strip("/") or "default"
    try:
        # Celery sets Django up for its workers only (5.3 to 5.7), not for its other commands.
        if "DJANGO_SETTINGS_MODULE" in os.environ and not (apps.models_ready or apps.loading):
            django.setup()
        apps.check_models_ready()
        known = list(connections)
    except (AppRegistryNotReady, ImproperlyConfigured) as exc:
        raise ConfigurationError(
            f"{url} needs Django, which is not set up here: set DJANGO_SETTINGS_MODULE before the "
            f"Celery app is made, or call django.setup() ({exc})"
        ) from exc
    if not apps.is_installed("celery_clutch_django"):
        raise ConfigurationError(f'{url}: add "celery_clutch_django" to INSTALLED_APPS')
    if alias not in known:
        raise ConfigurationError(
            f"{url}: DATABASES has no {alias!r}; known are {', '.join(sorted(known))}"
        )
    from .store import DjangoStore

    return DjangoStore(url, options, alias=alias)
