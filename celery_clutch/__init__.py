"""Celery tasks composed into clutches: series and parallels that neither hang nor lose work."""

from __future__ import annotations

from typing import Any

from . import sweep as _sweep
from .build import launch as _launch
from .build.clutch import Clutch, named, parallel, series
from .build.sequence import Sequence
from .errors import ClutchError
from .extend.hookspecs import hookimpl
from .handle.result import ClutchResult
from .model.absent import Failed, Skipped
from .model.reason import Reason
from .model.status import Failure, Progress, State, Status
from .model.stop import Stop
from .runtime import internal as _internal
from .runtime.task import ClutchTask, previous_results
from .stores.base import ResultStore

__all__ = [
    "Clutch",
    "ClutchError",
    "ClutchResult",
    "ClutchTask",
    "Failed",
    "Failure",
    "Progress",
    "Reason",
    "ResultStore",
    "Sequence",
    "Skipped",
    "State",
    "Status",
    "Stop",
    "hookimpl",
    "named",
    "parallel",
    "previous_results",
    "series",
]

del _internal, _launch, _sweep  # imported to register the internal tasks


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("celery-clutch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
