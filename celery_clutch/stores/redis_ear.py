"""A connection that listens to a channel of a run, and is kept for the next one."""

from __future__ import annotations

import time
from typing import Any

_CONFIRMED = 1.0  # seconds for which a server may take to confirm a subscription


class Ear:
    """Listens to one channel at a time.

    What a server says of subscriptions is read with the next message that matters: to stop
    listening is to send a command, and not to wait for its answer.
    """

    def __init__(self, client: Any) -> None:
        self._channel = client.pubsub()
        self._name = ""

    def listen(self, name: str) -> None:
        """From here on nothing is missed that is published to *name*."""
        self._name = name
        self._channel.subscribe(name)
        self._read("subscribe", _CONFIRMED)

    def hear(self, timeout: float) -> str | None:
        """What was published; None if nothing was in *timeout* seconds."""
        data = self._read("message", timeout)
        return None if data is None else data.decode()

    def hush(self) -> None:
        """Listen no more."""
        self._channel.unsubscribe(self._name)

    def close(self) -> None:
        self._channel.close()

    def _read(self, kind: str, timeout: float) -> Any:
        """The next message of this kind about the channel."""
        deadline = time.monotonic() + timeout
        left = timeout
        while True:
            message = self._channel.get_message(timeout=left)
            if message and message["type"] == kind and message["channel"] == self._name.encode():
                return message["data"]
            left = max(deadline - time.monotonic(), 0)
            if message is None and not left:
                return None
