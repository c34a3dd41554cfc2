"""Sends the shapes of one peer, in the peer's own environment, and says how long each took.

    python driver.py peer_canvas

Reads the name of a shape a line; answers with the seconds, or with ``-`` where the peer has no such shape. A module
of a peer has ``SHAPES``: names to functions that send the shape once and return. The last task of a shape tells its key
with ``tell``.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from uuid import uuid4

import redis

URL = os.environ.get("CLUTCH_BENCH_REDIS", "redis://localhost:6379/13")
WIDE, LONG, TIMES = (int(n) for n in os.environ.get("PEERS_SIZES", "1000,100,50").split(","))
PATIENCE = 180
"""Seconds after which a shape counts as lost."""

ROUNDS = {"small": TIMES}
"""Shapes that are sent more than once, one after another."""

server = redis.Redis.from_url(URL, socket_timeout=None)


def tell(key: str) -> None:
    """Say that the shape with this *key* has ended."""
    server.rpush(key, 1)


def measure(send: Callable[[str], object], rounds: int) -> float:
    """Send a shape, wait for its last task, and so on."""
    start = time.perf_counter()
    for _ in range(rounds):
        key = f"peers:{uuid4().hex}"
        send(key)
        if server.blpop([key], timeout=PATIENCE) is None:
            raise SystemExit(f"no end after {PATIENCE} seconds")
    return time.perf_counter() - start


def main() -> None:
    shapes = importlib.import_module(sys.argv[1]).SHAPES
    for line in sys.stdin:
        name = line.strip()
        if name == "ready":
            print(measure(shapes["series"], 1), flush=True)
        elif name in shapes:
            print(measure(shapes[name], ROUNDS.get(name, 1)), flush=True)
        else:
            print("-", flush=True)


if __name__ == "__main__":
    main()
