"""A web page of runs: an ASGI application that mounts anywhere, and ``celery clutch web``."""

from .app import dashboard
from .security import Role

__all__ = ["Role", "dashboard"]
