"""A web page of runs: an ASGI application that mounts anywhere, and ``celery clutch web``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import dashboard

__all__ = ["dashboard"]


def __getattr__(name: str) -> Any:
    # Workers import this package to count, and have no use for a web server.
    if name == "dashboard":
        from .app import dashboard

        return dashboard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
