"""What stands in the place of a value that there is not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ..errors import CorruptRecord
from . import codec

MARK = b"!"
"""What the stored form of a `Failed` begins with, so that no JSON is taken for one."""


@dataclass(frozen=True, slots=True)
class Failed:
    """In the place of a branch's value: the branch has died, and the run has gone on. It is false.

    Attributes:
        address: of the job that died.
        exception: qualified name of the exception's type.
        message: ``str()`` of the exception, its first 1,000 characters.
    """

    address: str
    exception: str
    message: str

    def __bool__(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, too."""
        return {"address": self.address, "exception": self.exception, "message": self.message}

    def __json__(self) -> dict[str, Any]:
        """As Celery sends it, where it is an argument of a task."""
        return self.to_dict()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Failed:
        """What `to_dict` wrote."""
        return cls(data["address"], data["exception"], data["message"])

    def dumps(self) -> bytes:
        """As a store keeps it."""
        return MARK + orjson.dumps(self.to_dict())


@dataclass(frozen=True, slots=True)
class Skipped:
    """In the place of the value of a branch or step that was not to run: it was not chosen, or
    enough others had succeeded before it had. It is false.

    Attributes:
        address: of the branch or step.
    """

    address: str

    def __bool__(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, too."""
        return {"address": self.address}

    def __json__(self) -> dict[str, Any]:
        """As Celery sends it, where it is an argument of a task."""
        return self.to_dict()


def as_json(value: Any) -> Any:
    """*value*, a result or a list of results, with a `Failed` or `Skipped` as JSON has it."""
    if isinstance(value, (Failed, Skipped)):
        return value.to_dict()
    return [as_json(each) for each in value] if isinstance(value, list) else value


def decode(data: bytes) -> Any:
    """A value from a store: that of a job, or a `Failed`.

    Raises:
        CorruptRecord: it is neither.
    """
    if not data.startswith(MARK):
        return codec.decode_result(data)
    try:
        return Failed.from_dict(orjson.loads(data[len(MARK) :]))
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"a stored result cannot be read: {data[:80]!r} ({exc!r})") from None
