"""Celery tasks composed into clutches: series and parallels that neither hang nor lose work."""

from __future__ import annotations

from typing import Any

from . import launch as _launch
from . import sweep as _sweep
from . import tasks as _tasks
from .builder import Clutch, parallel, series
from .errors import ClutchError
from .hookspecs import hookimpl
from .result import ClutchResult
from .sequence import Sequence
from .status import Failure, Progress, State, Status
from .stores.base import ResultStore
from .task import ClutchTask, previous_results

__all__ = [
    "Clutch",
    "ClutchError",
    "ClutchResult",
    "ClutchTask",
    "Failure",
    "Progress",
    "ResultStore",
    "Sequence",
    "State",
    "Status",
    "hookimpl",
    "parallel",
    "previous_results",
    "series",
]

del _launch, _sweep, _tasks  # imported to register the internal tasks


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("celery-clutch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
