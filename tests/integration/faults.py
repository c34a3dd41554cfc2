"""Kill a process at the n-th store call or message of a run.

Points are counted for each run: one before and one after each store call, one before and one after each
message. In a worker's children ``it:faults:kill`` (a hash) says at which point of a run the process that
comes there is killed, ``it:faults:points`` how many there were. Run as a program this is a client that is
killed at every point of what it does; see `clients`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from celery import Celery, signals

from celery_clutch import Clutch, ClutchResult, parallel
from celery_clutch.extend.plugins import runtime

CALLS = (
    *("begin", "complete", "fail", "checkpoint", "report", "transition"),
    *("create", "published", "remind", "skip"),
)
READS = ("read", "peek", "page", "values", "finished", "counts", "delete", "tried")


def install(store: Any, notebook: Callable[[], Any]) -> None:
    """Count the points of this process's children, and kill them where the test says so."""
    main = os.getpid()

    def point(run: str) -> None:
        if not run or os.getpid() == main:
            return
        number = notebook().hincrby("it:faults:points", run, 1)
        if str(number) == notebook().hget("it:faults:kill", run):
            os.kill(os.getpid(), signal.SIGKILL)

    watch(store, CALLS, point)


def watch(store: Any, calls: tuple[str, ...], point: Callable[[str], None]) -> None:
    """Call *point* with the id of the run before and after each of these calls, and each message."""

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

    for name in calls:
        setattr(store, name, wrapped(getattr(store, name)))
    signals.before_task_publish.connect(published, weak=False)
    signals.after_task_publish.connect(published, weak=False)


def clients(what: str, given: list[str]) -> list[tuple[str, bool]]:
    """Do *what* again and again, each time in a process that is killed one point later.

    Args:
        what: "one" (message, which the store sends in the step that creates the run), "engage",
            "wide" or "resume".
        given: the ids of runs, one for each time; "" leaves the id to ``engage``.

    Returns:
        For each time the id of the run, and whether the process was killed. The last one was not.
    """
    from . import app as tasks  # once, and before there are connections

    found: list[tuple[str, bool]] = []
    for number, run in enumerate(given, 1):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _client(tasks.app, what, run, number, writing)
        os.close(writing)
        with os.fdopen(reading) as said:
            run = said.read()
        _, status = os.waitpid(pid, 0)
        if status not in (0, signal.SIGKILL):
            raise RuntimeError(f"client {number} has failed")
        found.append((run, bool(status)))
        if not status:
            return found
    raise RuntimeError(f"there are more points than {len(given)}")


def _client(app: Celery, what: str, run: str, number: int, said: int) -> None:
    """Do it, and die at point *number*."""
    count = 0

    def point(run: str) -> None:
        nonlocal count
        if not run:
            return
        count += 1
        if count == 1:
            os.write(said, run.encode())
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        app.set_current()
        watch(runtime(app).store, CALLS + READS, point)
        if what == "resume":
            ClutchResult(run, app).resume()
        else:
            width = {"one": 1, "engage": 3, "wide": 120}[what]
            value, total = app.signature("it.value", (1,)), app.signature("it.total")
            branches = parallel(value.clone() for _ in range(width))
            Clutch(branches, total, app=app, id=run or None).engage()
        status = 0
    finally:
        os._exit(status)


def double() -> None:
    """Let every message of a run come twice (Redis transport)."""
    from kombu.transport.redis import Channel

    from celery_clutch.compile import direct

    for channel in (Channel, direct.transport().Channel):
        channel._put = _twice(channel._put)


def _twice(put: Callable[..., None]) -> Callable[..., None]:
    def twice(self: Any, queue: str, message: Any, **kwargs: Any) -> None:
        put(self, queue, message, **kwargs)
        if "clutch" in (message.get("headers") or {}):
            put(self, queue, message, **kwargs)

    return twice


if __name__ == "__main__":
    print(json.dumps(clients(sys.argv[1], json.loads(sys.argv[2]))))
