"""What workers say of themselves when they are asked. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

JOBS = 1000
"""How many jobs a worker tells of."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that has answered.

    Attributes:
        name: its node name.
        queues: those that it consumes.
        tasks: the names of those that it knows.
        jobs: those that it has messages of and that have not ended, each as its run, a blank, and
            its address; at most `JOBS`.
        versions: of ``celery-clutch``, ``celery``, ``kombu`` and ``python``; empty where
            celery-clutch is not installed.
        time: its clock, in seconds since the epoch; 0 where celery-clutch is not installed.
        store: its result store, without credentials, with the prefix of its keys; "" if it has
            none.
        owners: its processes, as owners of leases.
        renewed: how many seconds ago it last told its store of them; None for never.
        trouble: what has kept it from telling, the last time.
        same_store: whether its processes are known to the store of whoever asks, that is whether
            both have the same one; None if it could not tell its own yet.
    """

    name: str
    queues: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    jobs: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)
    time: float = 0.0
    store: str = ""
    owners: tuple[str, ...] = ()
    renewed: float | None = None
    trouble: str = ""
    same_store: bool | None = None

    @property
    def has_clutches(self) -> bool:
        """Whether celery-clutch is there."""
        return bool(self.versions)


@dataclass(frozen=True, slots=True)
class Workers:
    """Those that have answered, by name.

    Attributes:
        all: each of them.
        timeout: seconds that they had.
        asked, heard: when they were asked, and when the last answer was there, by the clock of
            whoever asks.
        lengths: how many messages lie in each queue that was looked at; None where the broker does
            not say.
    """

    all: tuple[Worker, ...]
    timeout: float
    asked: float = 0.0
    heard: float = 0.0
    lengths: Mapping[str, int | None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.all)

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def queues(self) -> frozenset[str]:
        """Every queue that one of them consumes."""
        return frozenset().union(*(worker.queues for worker in self.all))

    def know(self, task: str, queue: str) -> bool:
        """Whether one that consumes *queue* knows *task*."""
        return any(task in worker.tasks for worker in self.all if queue in worker.queues)


def place(owner: str) -> tuple[str, str]:
    """The host of an owner of leases (``host.boot.process``), and the number of its process."""
    host, _, process = owner.rpartition(".")
    return host.rpartition(".")[0], process
