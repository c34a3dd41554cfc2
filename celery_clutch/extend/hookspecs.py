"""The hooks that plugins implement (pluggy). Mark implementations with `hookimpl`.

A plugin is a module or object named by an entry point of the group ``celery_clutch``::

    [project.entry-points.celery_clutch]
    mystore = "celery_clutch_mystore.plugin"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ..model.events import Engaged, Finished, JobFailed, JobFinished, JobStarted, StepSettled
    from ..stores.base import ResultStore, StoreOptions

PROJECT = "celery_clutch"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def clutch_stores() -> Mapping[str, Callable[[str, StoreOptions], ResultStore]]:  # type: ignore[empty-body]
    """Name the stores this plugin brings: a factory by URL scheme.

    Fires once in each process for each app, the first time the app needs its store. The factory of
    the scheme of ``clutch_store`` is then called with the whole URL and the `StoreOptions`; it
    should import its client library only there, and raise `MissingExtra` when it is not installed.
    A scheme that another plugin has is a `PluginError`.
    """


@hookspec
def clutch_context(engaged: Engaged) -> Mapping[str, str] | None:
    """Name what is to travel with a run, short strings by string: every event then has it.

    Fires in the process that engages, before the run is stored. What it returns is in the header of
    every message of the run.
    """


@hookspec
def clutch_engaged(event: Engaged) -> None:
    """A run was engaged. Fires in the process that did it, after its first messages were sent; for
    a run nested in a job, in the worker, when that job has returned."""


@hookspec
def clutch_job_started(event: JobStarted) -> None:
    """An attempt of a job is about to run. Fires in the worker, once the store has agreed; again
    for the same attempt if the process has died and another has the job."""


@hookspec
def clutch_job_finished(event: JobFinished) -> None:
    """A job has its result. Fires in the worker, once the result is stored, and once for each job:
    not for a message that came twice. Not at all if the worker is killed just then."""


@hookspec
def clutch_job_failed(event: JobFailed) -> None:
    """An attempt of a job has failed. Fires once the failure is stored, in the worker, or in its
    main process where that is who tells (a hard time limit, a revoked message). A process that is
    killed is no failure of its job."""


@hookspec
def clutch_step_settled(event: StepSettled) -> None:
    """All members of a step have completed or failed for the first time. Fires once for each step
    and generation, in the worker of the last, if the process that engaged has an observer too."""


@hookspec
def clutch_finished(event: Finished) -> None:
    """A run has ended. Fires in the worker that ended it, or where ``cancel()`` was called."""
