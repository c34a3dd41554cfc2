from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.db import migrations, models

from celery_clutch_django.models import Name


class Migration(migrations.Migration):
    initial = True
    dependencies: list[Any] = []
    operations = [
        migrations.CreateModel(
            name="Bucket",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("prefix", Name(max_length=100)),
                ("bucket", Name(max_length=255)),
                ("counts", models.BinaryField(default=b"{}")),
                ("expires_at", models.FloatField(default=0.0)),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("prefix", "bucket"), name="clutch_django_bucket"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Owner",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("prefix", Name(max_length=100)),
                ("owner", Name(max_length=400)),
                ("until", models.FloatField()),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("prefix", "owner"), name="clutch_django_owner")
                ],
            },
        ),
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("prefix", Name(max_length=100)),
                ("run", Name(max_length=200, verbose_name="id")),
                ("meta", models.BinaryField()),
                ("name", models.CharField(max_length=200, null=True)),
                ("tags", models.TextField(default="[]")),
                ("ends", models.CharField(default="", max_length=50)),
                ("jobs", models.IntegerField()),
                ("remaining", models.IntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("RUNNING", "RUNNING"),
                            ("SUCCEEDED", "SUCCEEDED"),
                            ("FAILED", "FAILED"),
                            ("CANCELLED", "CANCELLED"),
                        ],
                        max_length=9,
                    ),
                ),
                ("generation", models.IntegerField(default=0)),
                ("failing", models.IntegerField(default=0)),
                ("dead", models.IntegerField(default=0)),
                ("ender", models.TextField(default="")),
                ("created_at", models.FloatField()),
                ("updated_at", models.FloatField()),
                ("ended_at", models.FloatField(null=True)),
                ("expires_at", models.FloatField()),
            ],
            options={
                "permissions": [("cancel_run", "Can cancel run"), ("resume_run", "Can resume run")],
                "default_permissions": ("view", "delete"),
                "indexes": [
                    models.Index(
                        fields=["prefix", "created_at", "run"], name="clutch_django_newest"
                    ),
                    models.Index(fields=["expires_at"], name="clutch_django_expires"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("prefix", "run"), name="clutch_django_run")
                ],
            },
        ),
        migrations.CreateModel(
            name="Row",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=7)),
                ("key", Name(max_length=720)),
                ("value", models.BinaryField()),
                (
                    "run",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="rows",
                        to="celery_clutch_django.run",
                    ),
                ),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("run", "kind", "key"), name="clutch_django_row")
                ],
            },
        ),
    ]
