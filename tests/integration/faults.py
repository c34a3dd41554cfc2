"""Kill a worker's child at the n-th store call or message of a run; for workers.

Points are counted for each run: one before and one after each store call, one before and one after each
message. ``it:faults:kill`` (a hash) says at which point of a run the process that comes there is killed,
``it:faults:points`` how many there were.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from celery import signals

CALLS = (
    *("begin", "complete", "fail", "checkpoint", "report", "transition"),
    *("create", "published", "remind", "skip"),
)


def install(store: Any, notebook: Callable[[], Any]) -> None:
    """Count the points of this process's children, and kill them where the test says so."""
    main = os.getpid()

    def point(run: str) -> None:
        if not run or os.getpid() == main:
            return
        number = notebook().hincrby("it:faults:points", run, 1)
        if str(number) == notebook().hget("it:faults:kill", run):
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def around(*args: Any, **kwargs: Any) -> Any:
            run = getattr(args[0], "run", args[0])
            point(run)
            answer = call(*args, **kwargs)
            point(run)
            return answer

        return around

    def published(headers: Any = None, **_: Any) -> None:
        point((headers.get("clutch") or {}).get("run", ""))

    for name in CALLS:
        setattr(store, name, wrapped(getattr(store, name)))
    signals.before_task_publish.connect(published, weak=False)
    signals.after_task_publish.connect(published, weak=False)


def double() -> None:
    """Let every message of a run come twice (Redis transport)."""
    from kombu.transport.redis import Channel

    usual = Channel._put

    def twice(self: Any, queue: str, message: Any, **kwargs: Any) -> None:
        usual(self, queue, message, **kwargs)
        if "clutch" in (message.get("headers") or {}):
            usual(self, queue, message, **kwargs)

    Channel._put = twice
