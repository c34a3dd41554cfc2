"""Creates and upgrades the tables, with Alembic."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from celery_clutch.errors import ConfigurationError
from sqlalchemy import Connection

OPTIONS: dict[str, Any] = {
    "version_table": "clutch_alembic_version",
    # Whoever calls holds a transaction, or at least a lock, around all of it.
    "transactional_ddl": False,
}


def newest() -> str:
    """The revision that this code works with."""
    (head,) = _scripts().get_heads()
    return head


def revision(connection: Connection) -> str | None:
    """The revision of the tables that are there; None when there are none."""
    return MigrationContext.configure(connection, opts=OPTIONS).get_current_revision()


def upgrade(connection: Connection, target: str = "") -> list[str]:
    """Bring the tables to *target*, by default the newest revision. What was done, in sentences.

    Nobody else may migrate meanwhile.

    Raises:
        ConfigurationError: the tables are newer than this code.
    """
    scripts, before = _scripts(), revision(connection)
    known = {script.revision for script in scripts.walk_revisions()}
    if before is not None and before not in known:
        raise ConfigurationError(
            f"the tables of clutches are of revision {before}, and this celery-clutch-sqlalchemy "
            f"knows them up to {newest()}: upgrade it"
        )
    config = Config()
    config.set_main_option("script_location", str(scripts.dir))
    config.attributes["connection"] = connection
    command.upgrade(config, target or newest())
    after = revision(connection)
    if after == before:
        return []
    verb = "created" if before is None else f"upgraded from revision {before}"
    return [f"The tables of clutches were {verb}, and are of revision {after} now."]


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "celery_clutch_sqlalchemy:migrations")
    return ScriptDirectory.from_config(config)
