"""A sweep that django-celery-beat schedules is known to ``celery clutch doctor``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("django_celery_beat")

PROGRAM = """
import sys

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command

settings.configure(
    SECRET_KEY="a secret of the tests",
    INSTALLED_APPS=["django_celery_beat"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}},
)
django.setup()

from celery_clutch.operate import doctor
from django_celery_beat.models import IntervalSchedule, PeriodicTask

app = Celery("beat", broker="memory://", task_cls="celery_clutch:ClutchTask")
app.conf.clutch_store = "memory://"


def told():
    return {found.what for found in doctor.examine(app, 0.1) if "sweep" in found.what}


unscheduled = "this app does not schedule the sweep, without which nothing that is lost is sent again"
assert told() == {unscheduled}, "there are no tables"
call_command("migrate", verbosity=0)
assert told() == {unscheduled}
minute = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.MINUTES)
task = PeriodicTask.objects.create(interval=minute, name="lost", task="celery_clutch.sweep")
assert told() == {"the sweep is scheduled"}
task.enabled = False
task.save()
assert told() == {unscheduled}
"""


def test_a_sweep_in_the_database(tmp_path: Path) -> None:
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": ""}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "beat.sqlite3")],
        env=environ,
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
