"""Runs the migrations on the connection that `celery_clutch_sqlalchemy.migrate` hands over."""

from __future__ import annotations

from alembic import context

from celery_clutch_sqlalchemy.migrate import OPTIONS

context.configure(connection=context.config.attributes["connection"], **OPTIONS)
context.run_migrations()
