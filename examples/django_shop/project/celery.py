"""The Celery app. ``celery -A project worker`` finds it."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("shop", task_cls="celery_clutch:ClutchTask")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
