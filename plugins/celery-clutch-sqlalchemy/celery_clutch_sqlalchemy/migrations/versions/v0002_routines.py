"""What PostgreSQL does in one round trip."""

from __future__ import annotations

from importlib import resources

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the functions and procedures."""
    if op.get_bind().dialect.name == "postgresql":
        script = resources.files("celery_clutch_sqlalchemy.migrations") / "sql/0002.sql"
        for statement in script.read_text("utf-8").split("--;\n"):
            op.get_bind().exec_driver_sql(statement)
