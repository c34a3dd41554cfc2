"""Find runs that have lost a message, and take them up again: what programs import of it."""

from __future__ import annotations

from .operate.sweep import prune, prune_all, sweep, sweep_task

__all__ = ["prune", "prune_all", "sweep", "sweep_task"]
