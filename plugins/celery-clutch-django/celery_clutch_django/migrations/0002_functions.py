from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from django.db import migrations, models

# MySQL and MariaDB compare without regard to case and to blanks at the end; ids and keys differ by
# them.
EXACT = [
    ("run", "run", 200),
    ("run", "prefix", 100),
    ("page", "`key`", 500),
    ("datum", "`key`", 500),
    ("result", "slot", 500),
    ("job", "address", 500),
    ("tally", "name", 500),
    ("member", "name", 500),
]


def sql() -> str:
    return (Path(__file__).parent / "sql" / "0002_functions.sql").read_text("utf-8")


def create(apps: Any, schema_editor: Any) -> None:
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(sql(), params=None)
    elif vendor == "mysql":
        mariadb = schema_editor.connection.mysql_is_mariadb
        collation = "utf8mb4_nopad_bin" if mariadb else "utf8mb4_0900_bin"
        for table, column, length in EXACT:
            schema_editor.execute(
                f"ALTER TABLE celery_clutch_django_{table} MODIFY {column} varchar({length}) "
                f"CHARACTER SET utf8mb4 COLLATE {collation} NOT NULL"
            )


def drop(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for name in re.findall(r"^CREATE FUNCTION (\w+)", sql(), re.M):
            schema_editor.execute(f"DROP FUNCTION IF EXISTS {name}")


class Migration(migrations.Migration):
    dependencies = [("celery_clutch_django", "0001_initial")]
    operations = [
        migrations.AddIndex(
            "run",
            models.Index(fields=["prefix", "created_at", "run"], name="clutch_django_newest"),
        ),
        migrations.AddIndex(
            "run", models.Index(fields=["expires_at"], name="clutch_django_expires")
        ),
        # Not atomic for MySQL, which refuses it; on PostgreSQL the migration as a whole is.
        migrations.RunPython(create, drop, atomic=False),
    ]
