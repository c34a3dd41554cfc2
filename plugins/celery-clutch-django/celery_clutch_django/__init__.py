"""celery-clutch in Django: a store in Django's databases, `engage_on_commit`, and the admin."""

from .commit import engage_on_commit

__all__ = ["engage_on_commit"]
