"""What was looked at just now, for all who look."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lately(Generic[T]):
    """Calls *look* for a key at most every so many *seconds*, by one thread at a time."""

    def __init__(self, look: Callable[[str], T], seconds: float) -> None:
        self._look = look
        self._seconds = seconds
        self._found: dict[str, tuple[float, T]] = {}
        self._lock = threading.Lock()

    def __call__(self, key: str) -> T:
        with self._lock:
            found = self._found.get(key)
            if found is None or time.monotonic() > found[0] + self._seconds:
                # Whatever takes long is not asked for more often than it can be answered.
                value = self._look(key)
                self._found[key] = found = time.monotonic(), value
            return found[1]
