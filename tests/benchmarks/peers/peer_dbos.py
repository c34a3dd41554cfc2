"""DBOS: a workflow runs its steps in its own process; what is parallel goes through a queue.

Run as a program it is a worker; with ``migrate`` it only makes the tables and queues.
"""

from __future__ import annotations

import os
import sys
import threading

from dbos import DBOS, DBOSClient
from driver import LONG, WIDE, tell

DATABASE = os.environ["PEERS_DATABASE"]
INTERVAL = 0.05  # seconds between two looks at a queue, or at a result; the default is 1


@DBOS.step()
def job(number: int) -> None:
    """A no-op."""


@DBOS.step()
def end(key: str) -> None:
    tell(key)


def all_of(width: int) -> None:
    handles = [DBOS.enqueue_workflow("jobs", job, i) for i in range(width)]
    for handle in handles:
        handle.get_result(polling_interval_sec=INTERVAL)


@DBOS.workflow()
def run_fan(key: str) -> None:
    all_of(WIDE)
    end(key)


@DBOS.workflow()
def run_series(key: str) -> None:
    for index in range(LONG):
        job(index)
    end(key)


@DBOS.workflow()
def run_small(key: str) -> None:
    job(0)
    all_of(3)
    end(key)


client: DBOSClient | None = None


def start(name: str, key: str) -> None:
    global client
    if client is None:
        client = DBOSClient(system_database_url=DATABASE)
    client.enqueue({"queue_name": "workflows", "workflow_name": name}, key)


SHAPES = {
    "fan": lambda key: start("run_fan", key),
    "series": lambda key: start("run_series", key),
    "small": lambda key: start("run_small", key),
}


def work() -> None:
    DBOS(
        config={
            "name": "peers",
            "system_database_url": DATABASE,
            "executor_id": str(os.getpid()),
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    for queue in ("workflows", "jobs"):
        DBOS.register_queue(queue, polling_interval_sec=INTERVAL)
    if sys.argv[1:] == ["migrate"]:
        DBOS.destroy()
    else:
        threading.Event().wait()


if __name__ == "__main__":
    work()
