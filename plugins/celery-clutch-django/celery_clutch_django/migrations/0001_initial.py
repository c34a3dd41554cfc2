from __future__ import annotations

from typing import Any

from django.db import migrations, models


def belongs_to(model: str, related_name: str) -> Any:
    return models.ForeignKey(
        f"celery_clutch_django.{model}",
        models.CASCADE,
        related_name=related_name,
        db_index=False,
    )


def unique(name: str, *fields: str) -> Any:
    return models.UniqueConstraint(fields=fields, name=f"clutch_django_{name}")


class Migration(migrations.Migration):
    initial = True
    dependencies: list[Any] = []
    operations = [
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("prefix", models.CharField(max_length=100)),
                ("run", models.CharField(max_length=200, verbose_name="id")),
                ("name", models.CharField(max_length=200, null=True)),
                (
                    "state",
                    models.CharField(
                        max_length=9,
                        choices=[
                            ("RUNNING", "RUNNING"),
                            ("SUCCEEDED", "SUCCEEDED"),
                            ("FAILED", "FAILED"),
                            ("CANCELLED", "CANCELLED"),
                        ],
                    ),
                ),
                ("generation", models.IntegerField(default=0)),
                ("remaining", models.IntegerField()),
                ("jobs", models.IntegerField()),
                ("done", models.IntegerField(default=0)),
                ("failing", models.IntegerField(default=0)),
                ("dead", models.IntegerField(default=0)),
                ("created_at", models.FloatField()),
                ("updated_at", models.FloatField()),
                ("ended_at", models.FloatField(null=True)),
                ("expires_at", models.FloatField()),
                ("ender", models.TextField(null=True)),
                ("meta", models.BinaryField()),
            ],
            options={
                "default_permissions": ("view", "delete"),
                "permissions": [
                    ("cancel_run", "Can cancel run"),
                    ("resume_run", "Can resume run"),
                ],
                "constraints": [unique("run", "prefix", "run")],
            },
        ),
        migrations.CreateModel(
            name="Tag",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "tags")),
                ("position", models.IntegerField()),
                ("tag", models.CharField(max_length=200, db_index=True)),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("tag", "run", "position")],
            },
        ),
        migrations.CreateModel(
            name="Page",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "pages")),
                ("key", models.CharField(max_length=500)),
                ("page", models.BinaryField()),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("page", "run", "key")],
            },
        ),
        migrations.CreateModel(
            name="Datum",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "data")),
                ("key", models.CharField(max_length=500)),
                ("value", models.BinaryField()),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("datum", "run", "key")],
            },
        ),
        migrations.CreateModel(
            name="Result",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "results")),
                ("slot", models.CharField(max_length=500)),
                ("value", models.BinaryField()),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("result", "run", "slot")],
            },
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "places")),
                ("address", models.CharField(max_length=500)),
                ("starts", models.IntegerField(default=0)),
                ("started_at", models.FloatField(null=True)),
                ("attempt", models.IntegerField(null=True)),
                ("final", models.BooleanField(default=False)),
                ("failure", models.BinaryField(null=True)),
                ("finished", models.BooleanField(default=False)),
                ("held", models.BinaryField(null=True)),
                ("info", models.BinaryField(null=True)),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("job", "run", "address")],
            },
        ),
        migrations.CreateModel(
            name="Tally",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("run", belongs_to("run", "tallies")),
                ("kind", models.CharField(max_length=1)),
                ("name", models.CharField(max_length=500)),
                ("count", models.IntegerField(default=0)),
                ("failed", models.BooleanField(default=False)),
                ("reporter", models.TextField(null=True)),
                ("closer", models.TextField(null=True)),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("tally", "run", "kind", "name")],
            },
        ),
        migrations.CreateModel(
            name="Member",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("tally", belongs_to("tally", "members")),
                ("name", models.CharField(max_length=500)),
                ("number", models.IntegerField(null=True)),
                ("previous", models.IntegerField(null=True)),
            ],
            options={
                "default_permissions": (),
                "constraints": [unique("member", "tally", "name")],
            },
        ),
    ]
