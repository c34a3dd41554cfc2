"""The tables.

Each belongs to a row of ``clutch_run`` and goes away with it. Names are compared byte by byte on
every database: PostgreSQL collates them as "C", MariaDB and MySQL keep them as bytes.
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
    zero, false = sa.text("0"), sa.false()

    how: dict[str, Any] = {"mysql_engine": "InnoDB", "if_not_exists": True}

    def own(title: str, *columns: sa.Column[Any], **more: Any) -> None:
        run = sa.ForeignKey("clutch_run.id", ondelete="CASCADE")
        run_id = sa.Column("run_id", number, run, primary_key=True)
        op.create_table(title, run_id, *columns, **how, **more)

    op.create_table(
        "clutch_run",
        sa.Column("id", number, sa.Identity(), primary_key=True),
        sa.Column("prefix", name(400), nullable=False),
        sa.Column("run", name(800), nullable=False),
        sa.Column("name", text),
        sa.Column("tags", text, nullable=False),
        sa.Column("meta", blob, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("generation", integer, nullable=False),
        sa.Column("jobs", integer, nullable=False),
        sa.Column("remaining", integer, nullable=False),
        sa.Column("done", integer, nullable=False, server_default=zero),
        sa.Column("failing", integer, nullable=False, server_default=zero),
        sa.Column("dead", integer, nullable=False, server_default=zero),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        sa.Column("ender", name(255)),
        sa.Column("expires_at", moment, nullable=False),
        sqlite_autoincrement=True,
        **how,
    )
    op.create_index(
        "clutch_run_name", "clutch_run", ["prefix", "run"], unique=True, if_not_exists=True
    )
    own(
        "clutch_page",
        sa.Column("name", name(700), primary_key=True),
        sa.Column("value", blob, nullable=False),
    )
    own(
        "clutch_data",
        sa.Column("name", name(700), primary_key=True),
        sa.Column("value", blob, nullable=False),
    )
    own(
        "clutch_result",
        sa.Column("slot", name(700), primary_key=True),
        sa.Column("value", blob, nullable=False),
    )
    own(
        "clutch_job",
        sa.Column("address", name(700), primary_key=True),
        sa.Column("starts", integer, nullable=False, server_default=zero),
        sa.Column("started_at", moment),
        sa.Column("info", blob),
        sa.Column("held", blob),
        sa.Column("attempt", integer),
        sa.Column("final", sa.Boolean(), nullable=False, server_default=false),
        sa.Column("failure", blob),
        sa.Column("finished", sa.Boolean(), nullable=False, server_default=false),
    )
    # Steps that wait for members to settle, and barriers that wait for slots.
    own(
        "clutch_tally",
        sa.Column("kind", name(10), primary_key=True),
        sa.Column("name", name(700), primary_key=True),
        sa.Column("settled", integer, nullable=False),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("reporter", name(700)),
        sa.Column("closer", name(700)),
    )
    own(
        "clutch_member",
        sa.Column("kind", name(10), primary_key=True),
        sa.Column("name", name(700), primary_key=True),
        sa.Column("member", name(700), primary_key=True),
    )
    own(
        "clutch_lane",
        sa.Column("name", name(700), primary_key=True),
        sa.Column("lane", name(700), primary_key=True),
        sa.Column("previous", integer, nullable=False),
        sa.Column("number", integer, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # These rows are written again and again: there is room for their next version in the same
        # page. What is long in the row of a run never changes, and is kept elsewhere.
        op.execute("ALTER TABLE clutch_run SET (fillfactor = 50, toast_tuple_target = 512)")
        op.execute("ALTER TABLE clutch_tally SET (fillfactor = 50)")
        op.execute("ALTER TABLE clutch_job SET (fillfactor = 70)")
