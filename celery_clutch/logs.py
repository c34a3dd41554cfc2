"""The run and the address of a job in every line that the job logs.

::

    from celery.signals import after_setup_logger, after_setup_task_logger
    from celery_clutch import logs

    app.conf.worker_log_format = "%(asctime)s %(clutch_run)s/%(clutch_address)s %(message)s"

    @after_setup_logger.connect
    @after_setup_task_logger.connect
    def name_runs(logger, **kwargs):
        logs.extend(logger)

What happens to runs is logged at INFO as well: that they are engaged and end, and that jobs fail
or are dropped, by the logger ``celery_clutch.runs``.
"""

from __future__ import annotations

import logging

from .compile import compat
from .compile.header import NAME, is_ours

__all__ = ["ClutchFilter", "extend"]


class ClutchFilter(logging.Filter):
    """Gives each record ``clutch_run`` and ``clutch_address``: those of the job that logs it.

    It belongs on handlers: a filter on a logger does not see what the loggers below it log. It
    lets every record pass. In threads that a job starts itself there is no job.

    Args:
        empty: what both are outside a job.
    """

    def __init__(self, empty: str = "-") -> None:
        super().__init__()
        self.empty = empty

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes, unless the record has them."""
        if not hasattr(record, "clutch_run"):
            record.clutch_run, record.clutch_address = _job() or (self.empty, self.empty)
        return True


def extend(logger: logging.Logger | None = None) -> None:
    """Put a `ClutchFilter` on every handler of *logger* (default: the root) that has none."""
    for handler in (logger or logging.getLogger()).handlers:
        if not any(isinstance(each, ClutchFilter) for each in handler.filters):
            handler.addFilter(ClutchFilter())


def _job() -> tuple[str, str] | None:
    """The run and the address of the job that this thread runs."""
    task = compat.current_task()
    if task is None:
        return None
    request = task.request
    data = getattr(request, NAME, None)
    if data is None:  # eager requests have custom headers in `headers` only
        data = (getattr(request, "headers", None) or {}).get(NAME)
    return (data["run"], data["at"]) if is_ours(data) else None
