"""The data that the jobs of a run share. Pure; knows neither Celery nor the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from . import codec


class Data(MutableMapping[str, Any]):
    """A mutable mapping of JSON values, read on first use.

    What a job changes, inside nested values too, is saved with its result; see `changes`. Keys are
    strings of 1 to 255 characters, without control characters; setting another is a `NonJSONData`.

    Args:
        load: gives the stored data: JSON by key.
        limit: the largest value, in bytes of JSON.
    """

    def __init__(self, load: Callable[[], Mapping[str, bytes]], limit: int) -> None:
        self._load = load
        self._limit = limit
        self._before: Mapping[str, bytes] | None = None
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        codec.check_key(key)
        self._read()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def changes(self) -> dict[str, bytes | None]:
        """What differs from what was stored: JSON by key, None for a key that was deleted.

        Raises:
            NonJSONData: a value that was changed cannot be represented by JSON.
            ResultTooLarge: a value that was changed is larger than the limit.
        """
        if self._before is None:
            return {}
        return difference(self._before, codec.encode_data(self._values, self._limit))

    def encoded(self) -> dict[str, bytes]:
        """All of it, as `changes` encodes it."""
        return codec.encode_data(self._read(), self._limit)

    def _read(self) -> dict[str, Any]:
        if self._before is None:
            before = self._load()
            self._values = {key: codec.decode_result(value) for key, value in before.items()}
            self._before = before
        return self._values


def difference(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """What turns *before* into *after*: the values to set, None for the keys to delete."""
    changed: dict[str, bytes | None] = {
        key: value for key, value in after.items() if before.get(key) != value
    }
    return {**changed, **{key: None for key in before if key not in after}}
