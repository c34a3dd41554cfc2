"""What a server does in one round trip, and the index by which expired runs are found."""

from __future__ import annotations

from importlib import resources

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the index and the routines."""
    op.create_index("clutch_run_expiry", "clutch_run", ["prefix", "expires_at"], if_not_exists=True)
    family = {"mariadb": "mysql"}.get(op.get_bind().dialect.name, op.get_bind().dialect.name)
    if family != "sqlite":  # which has no routines, and no need of them
        script = resources.files("celery_clutch_sqlalchemy.migrations") / f"sql/0002_{family}.sql"
        for statement in script.read_text("utf-8").split("--;\n"):
            op.get_bind().exec_driver_sql(statement)
