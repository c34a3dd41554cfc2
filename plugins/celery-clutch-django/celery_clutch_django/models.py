"""The tables of the store. Written by it alone; everything here is for reading and for the admin.

Times are seconds since the epoch, as the store interface has them, so that neither ``USE_TZ`` nor
the database's time zone has a say in when a run expires.

Whoever changes a run locks its row of `Run` first, so the rows of `Row` need no locks of their own.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from celery_clutch import State

KEY = 720
"""The longest key of a row: an address of up to 500 characters, a blank, and the id of a run."""


class Name(models.CharField):
    """Text that is itself only if every character is.

    MySQL and MariaDB keep it as bytes: by their collations "a", "A" and "a " are often the same.
    """

    def db_type(self, connection: Any) -> str | None:
        if connection.vendor == "mysql":
            return f"varbinary({4 * (self.max_length or 0)})"
        kind: str | None = super().db_type(connection)
        return kind

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        if connection.vendor == "mysql" and isinstance(value, str):
            return value.encode()
        return value

    def from_db_value(self, value: Any, *_: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value


class Run(models.Model):
    """What there is of a run once, and what listings look for."""

    id = models.BigAutoField(primary_key=True)
    prefix = Name(max_length=100)
    run = Name("id", max_length=200)
    meta = models.BinaryField()
    name = models.CharField(max_length=200, null=True)
    tags = models.TextField(default="[]")  # JSON: a list of texts
    ends = models.CharField(max_length=50, default="")  # states, separated by blanks
    jobs = models.IntegerField()
    remaining = models.IntegerField()
    state = models.CharField(max_length=9, choices=[(each.value, each.value) for each in State])
    generation = models.IntegerField(default=0)
    failing = models.IntegerField(default=0)
    dead = models.IntegerField(default=0)
    ender = models.TextField(default="")  # the token of the execution that ended it
    created_at = models.FloatField()
    updated_at = models.FloatField()
    ended_at = models.FloatField(null=True)
    expires_at = models.FloatField()

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

    @property
    def done(self) -> Any:
        """Jobs that have a result."""
        return self.jobs - self.remaining


class Row(models.Model):
    """A row of a run; see `celery_clutch.stores.machine` for what kinds there are."""

    id = models.BigAutoField(primary_key=True)
    run = models.ForeignKey(Run, models.CASCADE, related_name="rows", db_index=False)
    kind = models.CharField(max_length=7)
    key = Name(max_length=KEY)
    value = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "kind", "key"], name="clutch_django_row")
        ]
        default_permissions = ()


class Owner(models.Model):
    """A process that has leases, and until when it is said to live."""

    id = models.BigAutoField(primary_key=True)
    prefix = Name(max_length=100)
    owner = Name(max_length=400)
    until = models.FloatField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["prefix", "owner"], name="clutch_django_owner")
        ]
        default_permissions = ()


class Bucket(models.Model):
    """Counts by name, kept for some time."""

    id = models.BigAutoField(primary_key=True)
    prefix = Name(max_length=100)
    bucket = Name(max_length=255)
    counts = models.BinaryField(default=b"{}")  # JSON: a dict of numbers
    expires_at = models.FloatField(default=0.0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["prefix", "bucket"], name="clutch_django_bucket")
        ]
        default_permissions = ()
