"""A list that keeps little of what is long. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from ..errors import NonJSONArgument

T = TypeVar("T")

TOGETHER = 1000
"""How many elements are packed together."""

Pack = bytes | list[T]


class Packed(Sequence[T], Generic[T]):
    """Grows at its end. Elements that are far from it are kept as compressed JSON, and made again
    when they are asked for: a million jobs of a line each take a few megabytes.

    What JSON cannot carry is kept as it is, for whoever encodes it to say so.

    Args:
        dumps: an element as JSON; may raise `NonJSONArgument`.
        loads: the elements of a JSON list.
    """

    def __init__(self, dumps: Callable[[T], bytes], loads: Callable[[bytes], list[T]]) -> None:
        self._dumps = dumps
        self._loads = loads
        self._packs: list[Pack[T]] = []
        self._last: list[T] = []
        self._unpacked: tuple[int, list[T]] = (-1, [])

    def append(self, value: T) -> None:
        """Add an element."""
        if len(self._last) == TOGETHER:
            self._packs.append(self._pack(self._last))
            self._last = []
        self._last.append(value)

    def amend(self, change: Callable[[T], T]) -> T:
        """Put something else in the place of the last element; what it is."""
        self._last[-1] = change(self._last[-1])
        return self._last[-1]

    def parts(self) -> Iterator[bytes]:
        """The elements as JSON, many at a time, with commas between them.

        Raises:
            NonJSONArgument: one of them has no JSON form.
        """
        for pack in [*self._packs, self._last]:
            if isinstance(pack, bytes):
                yield zlib.decompress(pack)
            elif pack:
                yield b",".join(map(self._dumps, pack))

    def _pack(self, values: list[T]) -> Pack[T]:
        try:
            return zlib.compress(b",".join(map(self._dumps, values)), 1)
        except NonJSONArgument:
            return values

    def _unpack(self, number: int) -> list[T]:
        if number == len(self._packs):
            return self._last
        pack = self._packs[number]
        if not isinstance(pack, bytes):
            return pack
        known, values = self._unpacked  # another thread may have put something else there
        if known != number:
            values = self._loads(b"[%b]" % zlib.decompress(pack))
            self._unpacked = number, values
        return values

    def __len__(self) -> int:
        return len(self._packs) * TOGETHER + len(self._last)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._packs) + 1):
            yield from self._unpack(number)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]  # raises as a list does
        if isinstance(places, range):
            return [self[place] for place in places]
        number, place = divmod(places, TOGETHER)
        return self._unpack(number)[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        same = len(self) == len(other)
        return same and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(len(self))

    def __repr__(self) -> str:
        return f"<{len(self)} elements>"
