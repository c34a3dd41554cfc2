"""Messages like one that Celery and kombu have made.

The messages of a task differ in a handful of fields, and to make one takes Celery and kombu a tenth
of a millisecond, a fifth of what a job costs its worker. So where nobody else looks at messages, or
has changed how they are made, one is made as usual, and those of the same kind are copies of it
with other fields.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson
from celery import Celery
from celery.canvas import Signature
from celery.utils.nodenames import anon_nodename
from kombu.serialization import dumps
from kombu.utils.uuid import uuid

from . import compat
from .header import NAME

Kind = tuple[Any, Any]
"""The task and the queue of a message."""

_OPTIONS = {"headers", "link_error", "ignore_result", "task_id", "queue", "chain", "add_to_parent"}
"""Options that are in a message where `Envelope.filled` puts them, or not at all."""


def kind_of(app: Celery, signature: Signature, options: Mapping[str, Any]) -> Kind | None:
    """Which messages that of a job is like; None if it has something of its own."""
    task = app.tasks.get(signature.task)
    if not hasattr(task, "job_options") or not compat.sends_as_usual(task):
        return None
    if task.expires is not None or not options.keys() <= _OPTIONS:
        return None
    headers = options.get("headers") or {}
    if not options.get("ignore_result") or headers.keys() != {NAME}:
        return None
    return task, options.get("queue")


class Envelope:
    """What messages of a kind have in common.

    Attributes:
        queue: the key of their queue.
    """

    def __init__(self, app: Celery, queue: str, message: bytes) -> None:
        self.queue = queue
        self._app = app
        self._represent = compat.representing(app)
        self._message = orjson.loads(message)

    @classmethod
    def like(
        cls,
        app: Celery,
        made: Mapping[str, list[bytes]],
        signature: Signature,
        options: Mapping[str, Any],
    ) -> Envelope | None:
        """An envelope for messages like the one that was *made* of *signature* with *options*; None
        unless it would have made the same."""
        if not compat.makes_alike(app):
            return None
        try:
            ((queue, (message,)),) = made.items()
            found = cls(app, queue, message)
            if found._message["properties"]["delivery_info"]["exchange"]:
                return None  # kombu asks each time which queues are bound to it
            copy = orjson.loads(found.filled(signature, options) or b"")
            copy["properties"]["delivery_tag"] = found._message["properties"]["delivery_tag"]
        except (AttributeError, KeyError, TypeError, ValueError):
            return None  # messages have another form than we know
        return found if copy == found._message else None

    def filled(self, signature: Signature, options: Mapping[str, Any]) -> bytes | None:
        """The message of *signature* with *options*; None if something in it is no Unicode."""
        args, kwargs = signature.args or (), signature.kwargs or {}
        task_id, errbacks = options["task_id"], options.get("link_error")
        root, parent = compat.ancestors(self._app, task_id)
        argsrepr, kwargsrepr = self._represent(args, kwargs)
        embed = {"callbacks": None, "errbacks": errbacks, "chain": options.get("chain")}
        body = args, kwargs, {**embed, "chord": None}
        content_type, encoding, text = dumps(body, serializer="json")
        headers = {
            **self._message["headers"],
            "id": task_id,
            "root_id": root,
            "parent_id": parent,
            "argsrepr": argsrepr,
            "kwargsrepr": kwargsrepr,
            "origin": anon_nodename(),
            NAME: options["headers"][NAME],
        }
        properties = {
            **self._message["properties"],
            "correlation_id": task_id,
            "reply_to": self._app.thread_oid,
            "delivery_tag": uuid(),
        }
        message = {
            "body": b64encode(text.encode()).decode(),
            "content-type": content_type,
            "content-encoding": encoding,
            "headers": headers,
            "properties": properties,
        }
        try:
            return orjson.dumps({**self._message, **message})
        except orjson.JSONEncodeError:
            return None
