"""Messages by way of the store, where that is the broker, too: one Redis for both.

For each message kombu makes a client and borrows a connection (5.3 to 5.7), which takes a third of
the time that a job of a series costs. The store has a connection at hand, and can send a message in
the step that records a result. What a message looks like, and which queue it is for, is still
kombu's matter: a channel of its own makes it, and keeps it instead of sending it. Of messages that
are alike it makes the first (see `envelope`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from celery import Celery
from celery.canvas import Signature
from kombu.utils.json import dumps

from ..errors import StoreUnavailable
from ..extend.plugins import Runtime, runtime
from . import compat, envelope
from .envelope import Envelope

Message = tuple[Signature, dict[str, Any]]
"""The first task of a message, and the options to send it with."""

Publish = Callable[[Message, Any, set[Any]], None]
"""Publishes with a producer; the set has the routes whose queues that has declared."""


UNSENT: tuple[type[Exception], ...] = (StoreUnavailable, *compat.BROKER_ERRORS)


class NotDirect(Exception):
    """A message is for more than a queue that is always there."""


class Direct:
    """What makes the messages of an app, if its store can send them."""

    def __init__(self, own: Runtime) -> None:
        self.app = own.app
        eager = own.app.conf.task_always_eager
        self.possible = not eager and own.store.serves(_place(own.app))
        self._idle: list[_Maker] = []

    def made(self, messages: Sequence[Message], publish: Publish) -> dict[str, list[bytes]] | None:
        """The *messages* as *publish* publishes them, by the key of the queue; None if the store
        cannot send them."""
        if not self.possible:
            return None
        try:
            maker = self._idle.pop()
        except IndexError:  # there is none yet, or another thread has it
            maker = _Maker(self.app)
        try:
            return maker.made(messages, publish)
        except NotDirect:
            return None
        finally:
            self._idle.append(maker)


class _Maker:
    """Makes messages; for one thread at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        connection = app.connection_for_write(transport=transport())
        self._channel = connection.channel()
        self._producer = app.amqp.Producer(self._channel, auto_declare=False)
        self._declared: set[Any] = set()
        self._envelopes: dict[envelope.Kind, Envelope | None] = {}
        self._indirect: set[tuple[str, str]] = set()  # routes that lead to more than a queue
        self._changes: dict[str, Any] = {}  # of the settings that those were made with

    def made(self, messages: Sequence[Message], publish: Publish) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        watched = compat.is_watched(self._app)
        if self._changes != self._app.conf.changes:
            self._changes = dict(self._app.conf.changes)
            self._envelopes.clear()
            self._indirect.clear()
        for message in messages:
            # Whoever looks at messages is not shown one that is made in vain, but the first.
            route = message[0].task, str(message[1].get("queue"))
            if route in self._indirect:
                raise NotDirect(route)
            kind = None if watched else envelope.kind_of(self._app, *message)
            known = self._envelopes.get(kind) if kind else None
            copy = known.filled(*message) if known else None
            if known and copy:
                found.setdefault(known.queue, []).append(copy)
                continue
            made: dict[str, list[bytes]] = {}
            self._channel.made = made
            try:
                publish(message, self._producer, self._declared)
            except NotDirect:
                self._indirect.add(route)
                raise
            if kind and kind not in self._envelopes:
                self._envelopes[kind] = Envelope.like(self._app, made, *message)
            for queue, some in made.items():
                found.setdefault(queue, []).extend(some)
        return found


def of(own: Runtime) -> Direct:
    """What makes the messages of an app."""
    if own.direct is None:
        own.direct = Direct(own)
    direct: Direct = own.direct
    return direct


def send(app: Celery, messages: Sequence[Message], publish: Publish) -> bool:
    """Send *messages*, as *publish* publishes them, by way of the store; whether that was done.

    If it was not, all of it is to be sent as usual, and some of it may come twice.
    """
    own = runtime(app)
    try:
        found = of(own).made(messages, publish)
        if found is None:
            return False
        for queue, made in found.items():
            own.store.push(queue, made)
    except UNSENT:
        return False
    return True


@cache
def transport() -> Any:
    """kombu's transport for Redis, with a channel that keeps what it is to send."""
    from kombu.transport import redis

    class Channel(redis.Channel):
        made: dict[str, list[bytes]]

        def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
            if queue in getattr(self, "_expires", ()):  # not in kombu 5.3
                raise NotDirect(queue)
            priority = self._get_message_priority(message, reverse=False)
            key = f"{self.global_keyprefix}{self._q_for_pri(queue, priority)}"
            self.made.setdefault(key, []).append(dumps(message).encode())

        def _put_fanout(self, exchange: str, *_: Any, **__: Any) -> None:
            raise NotDirect(exchange)

    return type("Transport", (redis.Transport,), {"Channel": Channel})


def _place(app: Celery) -> dict[str, Any]:
    """Where the broker is, as `ResultStore.serves` takes it; empty if that is no single Redis."""
    connection = app.connection_for_write()
    database = str(connection.virtual_host or "0").strip("/") or "0"
    if connection.transport_cls != "redis" or connection.alt or not database.isdecimal():
        return {}
    return {
        "host": connection.hostname or "localhost",
        "port": connection.port or 6379,
        "db": int(database),
        "username": connection.userid or None,
        "password": connection.password or None,
    }
