"""Start a clutch by a message: from beat, or from a program without celery-clutch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from celery import shared_task
from celery.exceptions import Ignore

from ..compile.canvas import Prepared
from ..errors import AlreadyEngaged
from ..handle.result import ClutchResult
from ..runtime.advance import go_on
from ..runtime.engage import engage
from ..runtime.internal import InternalTask
from .clutch import Clutch

LAUNCH = "celery_clutch.launch"
RESULTS = "celery_clutch.results"


@shared_task(name=LAUNCH, base=InternalTask, bind=True)
def launch(self: InternalTask, clutch: str | Mapping[str, Any], id: str | None = None) -> Any:
    """Engage what `Clutch.to_json` has written.

    Returns the run's id at once; as a step in somebody else's canvas it waits for the clutch, and
    returns the results of its last step.

    Args:
        clutch: the JSON, as a string or decoded.
        id: of the run; default: that of this task, so that a message that comes twice starts one
            run.
    """
    built = Clutch.from_json(clutch, app=self.app, id=id or self.request.id)
    prepared = built.prepared()
    waits = self.awaited and not self.request.is_eager
    if waits and prepared.meta.jobs:
        prepared.meta = replace(prepared.meta, awaited=_results_signature(self, prepared))
    try:
        engage(prepared, {}, named=True)
    except AlreadyEngaged:  # the message has come again: whatever is left goes on
        go_on(self.app, prepared.run)
    if waits and prepared.meta.jobs:
        # The task that returns the results takes the place of this one.
        self.request.chord = self.request.chain = None
        raise Ignore("waits for a clutch")
    return _results(self.app, prepared.run) if self.awaited else prepared.run


@shared_task(name=RESULTS, base=InternalTask, bind=True)
def results(self: InternalTask, run: str) -> list[Any]:
    """The results of the last step of a run that has ended.

    Raises what `ClutchResult.get` raises if that is no success.
    """
    return _results(self.app, run)


def _results_signature(task: InternalTask, prepared: Prepared) -> dict[str, Any]:
    """What returns the results in the place of *task*, in its canvas."""
    request = task.request
    signature = task.app.signature(RESULTS, (prepared.run,), immutable=True)
    options = {
        "task_id": request.id,
        "queue": prepared.meta.scope("").queue,
        "chain": request.chain,
        "chord": request.chord,
        "group_id": request.group,
        "group_index": request.group_index,
        "link": request.callbacks,
        "link_error": request.errbacks,
        "root_id": request.root_id,
    }
    signature.set(**{key: value for key, value in options.items() if value is not None})
    return dict(signature)


def _results(app: Any, run: str) -> list[Any]:
    found: list[Any] = ClutchResult(run, app).ended()
    return found
