"""Leases: which process has a job, and whether it lives.

`ResultStore.begin` gives a job to an *owner*, a process that runs tasks. A worker says in one call
each interval that all of its processes live; nothing is done for each job. A process that is no
longer renewed has died, and its jobs are free.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import weakref
from typing import Any

from celery import Celery, bootsteps, signals

from ..compile import compat
from ..errors import ConfigurationError
from ..extend.plugins import Runtime, runtime

logger = logging.getLogger(__name__)

HOST = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())
"""The name of this machine."""
# Made before the pool is forked, so that a worker knows the names of its children.
_BOOT = f"{HOST}.{os.urandom(4).hex()}"

RENEWALS = 3
"""How often a lease is renewed before it would run out."""


def owner(pid: int | None = None) -> str:
    """The name of this process, or of a child of it, as an owner of leases; `place` reads it."""
    return f"{_BOOT}.{pid or os.getpid()}"


def ensure(by: Runtime) -> str:
    """Say once that this process lives, before it owns its first job; its name."""
    pid = os.getpid()
    if by.leased_by != pid:
        by.store.patiently(by.store.renew, [owner()], by.settings.lease)
        by.leased_by = pid
    return owner()


def is_alive(by: Runtime, name: str) -> bool:
    """Whether the process *name* lives, as far as is known."""
    if name == owner():
        return True
    return by.store.patiently(by.store.owners).get(name, -1.0) > 0


def renew(app: Celery, worker: Any) -> tuple[str, ...]:
    """Say that the processes of *worker* live; one call of the store. Their names."""
    by = runtime(app)
    pids = compat.child_pids(worker) or [os.getpid()]
    owners = tuple(owner(pid) for pid in pids)
    by.store.renew(owners, by.settings.lease)
    return owners


class Renewal(bootsteps.StartStopStep):
    """Renews the leases of a worker for as long as that lives, a warm shutdown included.

    In a thread of its own, because a solo pool, and a worker that waits for its children to finish,
    leave no time to others.

    Attributes:
        owners: the processes that the store was last told of.
        renewed: when, by the monotonic clock; None for never.
        trouble: what has kept it from being told since, or "".
    """

    requires = ("celery.worker.components:Pool",)

    owners: tuple[str, ...] = ()
    renewed: float | None = None
    trouble = ""

    def start(self, worker: Any) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(
            target=_renew_until_the_end,
            args=(worker.app, weakref.ref(worker), self),
            name="celery-clutch-leases",
            daemon=True,
        )
        self.thread.start()
        worker.clutch_renewal = self

    def end(self) -> None:
        """Stop renewing; for workers that end before their process does."""
        self.over.set()
        self.thread.join()

    def stop(self, worker: Any) -> None:
        """The thread sees the end of the worker itself: jobs still run now."""


def _renew_until_the_end(app: Celery, reference: Any, renewal: Renewal) -> None:
    while not renewal.over.is_set():
        worker = reference()
        if worker is None or worker.blueprint.state == bootsteps.TERMINATE:
            return
        try:
            renewal.owners = renew(app, worker)
            renewal.renewed, renewal.trouble = time.monotonic(), ""
            lease = runtime(app).settings.lease
        except ConfigurationError as exc:
            renewal.trouble = str(exc)
            return  # an app without clutches; engage says what is missing
        except Exception as exc:
            renewal.trouble = f"{type(exc).__name__}: {exc}"
            logger.warning("the leases of this worker could not be renewed", exc_info=True)
            lease = 3.0
        del worker
        renewal.over.wait(lease / RENEWALS)


@signals.worker_init.connect(weak=False)
def _on_worker_init(sender: Any = None, **_: Any) -> None:
    sender.app.steps["worker"].add(Renewal)
