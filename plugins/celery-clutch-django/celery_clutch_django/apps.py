from __future__ import annotations

from django.apps import AppConfig


class ClutchConfig(AppConfig):
    name = "celery_clutch_django"
    verbose_name = "Clutches"
    default_auto_field = "django.db.models.BigAutoField"
