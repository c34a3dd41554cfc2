"""The tables of the store. Written by it alone; everything here is for reading and for the admin.

Times are seconds since the epoch, as the store interface has them, so that neither ``USE_TZ`` nor
the database's time zone has a say in when a run expires.

Whoever changes a run locks its row of `Run` first, so the rows below need no locks of their own.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from celery_clutch import State

PLACE = 500
"""The longest address, slot or name of a step: 64 levels of five digits and a dot, with room."""


class Run(models.Model):
    """One run: what changes as a whole."""

    id = models.BigAutoField(primary_key=True)
    prefix = models.CharField(max_length=100)
    run = models.CharField("id", max_length=200)
    name = models.CharField(max_length=200, null=True)
    state = models.CharField(max_length=9, choices=[(each.value, each.value) for each in State])
    generation = models.IntegerField(default=0)
    remaining = models.IntegerField()
    jobs = models.IntegerField()
    done = models.IntegerField(default=0)
    failing = models.IntegerField(default=0)
    dead = models.IntegerField(default=0)
    created_at = models.FloatField()
    updated_at = models.FloatField()
    ended_at = models.FloatField(null=True)
    expires_at = models.FloatField()
    ender = models.TextField(null=True)  # the token of the call that ended it
    meta = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["prefix", "run"], name="clutch_django_run")]
        indexes = [
            models.Index(fields=["prefix", "created_at", "run"], name="clutch_django_newest"),
            models.Index(fields=["expires_at"], name="clutch_django_expires"),
        ]
        default_permissions = ("view", "delete")
        permissions = [("cancel_run", "Can cancel run"), ("resume_run", "Can resume run")]

    def __str__(self) -> str:
        return f"{self.name} ({self.run})" if self.name else str(self.run)


class Tag(models.Model):
    """A tag of a run."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="tags", db_index=False)
    position = models.IntegerField()
    tag = models.CharField(max_length=200, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "position"], name="clutch_django_tag")
        ]
        default_permissions = ()


class Page(models.Model):
    """A page of a run's plan."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="pages", db_index=False)
    key = models.CharField(max_length=PLACE)
    page = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="clutch_django_page")]
        default_permissions = ()


class Datum(models.Model):
    """A value of a run's shared data."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="data", db_index=False)
    key = models.CharField(max_length=PLACE)
    value = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="clutch_django_datum")]
        default_permissions = ()


class Result(models.Model):
    """The result in a slot."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="results", db_index=False)
    slot = models.CharField(max_length=PLACE)
    value = models.BinaryField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "slot"], name="clutch_django_result")]
        default_permissions = ()


class Job(models.Model):
    """What is known of the job at an address. Only `held` and `info` outlive a generation."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="places", db_index=False)
    address = models.CharField(max_length=PLACE)
    starts = models.IntegerField(default=0)
    started_at = models.FloatField(null=True)
    attempt = models.IntegerField(null=True)  # that failed last, if any
    final = models.BooleanField(default=False)
    failure = models.BinaryField(null=True)
    finished = models.BooleanField(default=False)  # it failed, and has a result all the same
    held = models.BinaryField(null=True)
    info = models.BinaryField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "address"], name="clutch_django_job")]
        default_permissions = ()


class Tally(models.Model):
    """A count of a generation: of members of a step that have settled, of slots that a barrier has,
    of numbers that were taken from a counter."""

    STEP, BARRIER, COUNTER = "s", "b", "c"

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="tallies", db_index=False)
    kind = models.CharField(max_length=1)
    name = models.CharField(max_length=PLACE)
    count = models.IntegerField(default=0)
    failed = models.BooleanField(default=False)  # a member of the step has failed loudly
    reporter = models.TextField(null=True)  # the token that was told to report the step
    closer = models.TextField(null=True)  # the token, or the address, that made it full

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "kind", "name"], name="clutch_django_tally")
        ]
        default_permissions = ()


class Member(models.Model):
    """One that was counted; of a counter a lane, with the number it took last, and before that."""

    id = models.BigAutoField(primary_key=True)
    tally = models.ForeignKey(Tally, models.CASCADE, related_name="members", db_index=False)
    name = models.CharField(max_length=PLACE)
    number = models.IntegerField(null=True)
    previous = models.IntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tally", "name"], name="clutch_django_member")
        ]
        default_permissions = ()


CHILDREN: list[tuple[Any, str]] = [
    (Member, "tally__run"),
    *((model, "run") for model in (Tally, Job, Result, Datum, Page, Tag)),
]
"""The tables that refer to a run, and how; those that refer to others first."""
