"""Start a clutch by a message: from beat, or from a program without celery-clutch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import shared_task

from ..compile import canvas, publish
from ..errors import AlreadyEngaged
from ..handle.result import ClutchResult
from ..runtime.internal import InternalTask
from ..runtime.task import reopen
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
    if not self.awaited:
        try:
            return built.engage().id
        except AlreadyEngaged:
            return built.id
    prepared = built.prepared(closed=True)
    try:
        prepared.create()
        started = prepared.canvas() if prepared.meta.jobs else None
    except AlreadyEngaged:  # the message has come again: send what is left
        reopened = reopen(self.app, prepared.run)
        started = canvas.root_canvas(*reopened, counted=True) if reopened else None
    if self.request.is_eager and started is not None:
        canvas.run_eagerly(prepared.compiler(), prepared.first)
        started = None
    if started is None:
        return _results(self.app, prepared.run)
    end = self.app.signature(RESULTS, (prepared.run,), immutable=True)
    if queue := prepared.meta.scope("").queue:
        end.set(queue=queue)
    return publish.replace(self, publish.followed(started, [end]))


@shared_task(name=RESULTS, base=InternalTask, bind=True)
def results(self: InternalTask, run: str) -> list[Any]:
    """The results of the last step of a run that has succeeded."""
    return _results(self.app, run)


def _results(app: Any, run: str) -> list[Any]:
    found: list[Any] = ClutchResult(run, app).results()
    return found
