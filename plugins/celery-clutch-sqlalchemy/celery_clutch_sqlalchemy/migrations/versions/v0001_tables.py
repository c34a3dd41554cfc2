"""The tables.

Names are compared byte by byte on every database: PostgreSQL collates them as "C", MariaDB keeps
them as bytes.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None


def name(size: int) -> sa.types.TypeEngine[str]:
    """Text of at most *size* bytes."""
    kind = sa.Text(collation="C").with_variant(mysql.VARBINARY(size), "mysql", "mariadb")
    return kind.with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    integer = sa.BigInteger()
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    blob = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
    text = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")
    moment: sa.Double[float] = sa.Double()

    how: dict[str, Any] = {"mysql_engine": "InnoDB", "if_not_exists": True}

    op.create_table(
        "clutch_runs",
        sa.Column("id", number, sa.Identity(), primary_key=True),
        sa.Column("prefix", name(400), nullable=False),
        sa.Column("run", name(800), nullable=False),
        sa.Column("meta", blob, nullable=False),
        sa.Column("name", text),
        sa.Column("tags", text, nullable=False),
        sa.Column("ends", text, nullable=False),
        sa.Column("jobs", integer, nullable=False),
        sa.Column("remaining", integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("generation", integer, nullable=False),
        sa.Column("failing", integer, nullable=False),
        sa.Column("dead", integer, nullable=False),
        sa.Column("ender", name(800), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("expires_at", moment, nullable=False),
        sqlite_autoincrement=True,
        **how,
    )
    # There is none by time of expiry: that changes with every job.
    for title, columns, unique in (
        ("clutch_runs_run", ["prefix", "run"], True),
        ("clutch_runs_created", ["prefix", "created_at", "run"], False),
    ):
        op.create_index(title, "clutch_runs", columns, unique=unique, if_not_exists=True)
    # PostgreSQL would look for the run with each row that is written, and all who write have locked
    # it; there a trigger deletes the rows of a run.
    run = [sa.ForeignKey("clutch_runs.id", ondelete="CASCADE")]
    if op.get_bind().dialect.name == "postgresql":
        run = []
    op.create_table(
        "clutch_rows",
        sa.Column("run_id", number, *run, primary_key=True),
        sa.Column("kind", name(16), primary_key=True),
        sa.Column("key", name(2000), primary_key=True),
        sa.Column("value", blob, nullable=False),
        **how,
    )
    op.create_table(
        "clutch_owners",
        sa.Column("prefix", name(400), primary_key=True),
        sa.Column("owner", name(800), primary_key=True),
        sa.Column("until", moment, nullable=False),
        **how,
    )
    op.create_table(
        "clutch_counts",
        sa.Column("prefix", name(400), primary_key=True),
        sa.Column("bucket", name(1020), primary_key=True),
        sa.Column("counts", blob, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        **how,
    )
    if op.get_bind().dialect.name == "postgresql":
        # The row of a run is written again and again: there is room for its next version in the
        # same page. What is long in it never changes, and is kept elsewhere.
        op.execute("ALTER TABLE clutch_runs SET (fillfactor = 50, toast_tuple_target = 512)")
