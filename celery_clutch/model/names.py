"""Names of steps: what they stand for, and from where their results may be read. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptRecord, InvalidName, NotPreceding, UnknownName
from . import codec
from .plan import EACH
from .shape import Shape, checked, substitute

LISTED = 10
"""How many names an error has at most."""

_ADDRESS = re.compile(r"([0-9]+|%)(\.([0-9]+|%)((-([0-9]+|%))*\+[0-9]+)*)*")
"""An address in a run or, with `EACH`, in a plan."""

_WORD = re.compile(r"[^\W\d][\w-]*")
_WORDS = ("else", "true", "false", "null")
"""Words that stand for something else than themselves where options are shown."""


@dataclass(frozen=True, slots=True)
class Named:
    """A step that has a name.

    In the branch of a map it has `EACH` in its address, and its value, seen from outside of the
    map, is a list of those of all branches.

    Attributes:
        address: of the step; "" is the whole plan.
        shape: where its value is, seen from outside of all maps.
        parallels: the addresses of the parallels and maps that it is in, the outermost first.
        options: those of the options of choices that it is in, the outermost first.
    """

    address: str
    shape: Shape = field(hash=False)
    parallels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def hidden_from(self, job: str) -> str:
        """Why the step does not certainly precede the job at address *job*; "" if it does."""
        own, other = _parts(self.address), _parts(job)
        common = _common(own, other)
        if common == len(own) == len(other):
            return "it is the job itself"
        if common == len(own):
            return "the job is one of its own"
        around = ".".join(own[:common])
        if around in self.parallels:
            place = ".".join(other[:common])
            return f"both are in the parallel {place}, in branches that run side by side"
        if order(own[common]) > order(other[common]):
            return "it comes later"
        for option in self.options:
            if option.count(".") >= common:
                choice = ".".join([*other[:common], *own[common : option.count(".")]])
                return f"it is in an option of the choice at {choice}, which need not be chosen"
        return ""

    def seen_from(self, job: str) -> Shape:
        """Where the value is that the job at address *job* sees: in the branch of a map, that of
        its own branch."""
        own, other = _parts(self.address), _parts(job)
        numbers = [
            number
            for part, number in zip(own[: _common(own, other)], other, strict=False)
            if part == EACH
        ]
        of = self.shape
        for _ in numbers:
            of = _inside_map(of)
        for number in numbers:
            of = substitute(of, number)
        return of


def _inside_map(of: Shape) -> Shape:
    """The shape of a branch of the outermost map in *of*."""
    assert isinstance(of, dict)
    inner: Shape = of["of"]
    return inner if "map" in of else _inside_map(inner)


Names = Mapping[str, Named]


class Results(Mapping[str, Any]):
    """The values of named steps, as a job sees them: read when they are asked for, and kept.

    The names in it are those of the steps that certainly precede the job.

    Args:
        load: gives the names of the run; called once.
        read: gives the value of a shape.
        job: the address of the job.
    """

    def __init__(
        self, load: Callable[[], Names], read: Callable[[Shape], Any], job: str = ""
    ) -> None:
        self._load = load
        self._read = read
        self._job = job
        self._known: Names | None = None
        self._values: dict[str, Any] = {}

    @property
    def _names(self) -> Names:
        if self._known is None:
            self._known = self._load()
        return self._known

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            step = self._names.get(name)
            if step is None:
                raise unknown(name, self._names)
            if why := step.hidden_from(self._job):
                raise NotPreceding(
                    f"job {self._job} cannot read the result of {name!r}, {_place(step.address)}: "
                    f"{why}, so that it need not be there yet"
                )
            self._values[name] = self._read(step.seen_from(self._job))
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        step = self._names.get(name) if isinstance(name, str) else None
        return step is not None and not step.hidden_from(self._job)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<the results of named steps that precede job {self._job}>"


def check(name: Any) -> str:
    """*name* if a step can have it.

    Raises:
        InvalidName: it is not 1 to 200 printable characters, or reads as an address.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        shown = repr(name)[:200]
        raise InvalidName(
            f"{shown} cannot be the name of a step: use 1 to 200 printable characters"
        )
    if _ADDRESS.fullmatch(name):
        raise InvalidName(
            f"{name!r} cannot be the name of a step: it reads as an address; use at least one "
            f"character besides digits and .{EACH}+-"
        )
    return name


def add(names: dict[str, Named], name: str, step: Named) -> None:
    """Note that *step* has a name.

    Raises:
        InvalidName: another step has it.
    """
    known = names.setdefault(name, step)
    if known is not step:
        one, other = sorted((known.address, step.address), key=order)
        raise InvalidName(
            f"two steps of the clutch are named {name!r}, {_place(one)} and {_place(other)}: a "
            "name is that of one step"
        )


def unknown(name: Any, known: Iterable[str], hint: str = "") -> UnknownName:
    """What is raised where no step has this name; it says which of the *known* are meant, maybe,
    and the *hint*."""
    listed = list(known)
    message = f"no step is named {repr(name)[:200]}{hint}"
    close = difflib.get_close_matches(name, listed, n=3) if isinstance(name, str) else []
    if close:
        return UnknownName(f"{message}; is it {' or '.join(map(repr, close))} that is meant?")
    if not listed:
        return UnknownName(f"{message}; no step of the run has a name")
    more = f" and {len(listed) - LISTED:,} more" if len(listed) > LISTED else ""
    return UnknownName(f"{message}; there are {', '.join(map(repr, listed[:LISTED]))}{more}")


def label(name: str, address: str, what: str) -> str:
    """A step for people: ``"1.2 shop.fetch"``, or ``"photo (1.2 shop.fetch)"``."""
    place = f"{address} {what}" if what else address
    return f"{name} ({place})" if name else place


def option(key: str | None) -> str:
    """The key of an option of a choice, for people: ``eu``, ``"1"``, ``1`` or ``else``."""
    if key is None:
        return "else"
    try:
        value = codec.decode_result(key.encode())
    except CorruptRecord:
        value = None
    plain = isinstance(value, str) and _WORD.fullmatch(value) and value not in _WORDS
    shown = value if plain else key
    return printable(cut(shown, 60))


def cut(text: str, most: int | None) -> str:
    """*text* in at most so many characters; None takes any."""
    if most is None or len(text) <= most:
        return text
    return f"{text[: most - 1]}…"


def printable(value: str) -> str:
    """*value* in one line, without what terminals take for commands."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in value
    )


def is_address(value: str) -> bool:
    """Whether *value* reads as an address, which no name does."""
    return _ADDRESS.fullmatch(value) is not None


def dumps(names: Names) -> bytes:
    """*names* as JSON, in the order of definition."""
    ordered = sorted(names.items(), key=lambda each: order(each[1].address))
    return codec.encode_plan(
        {name: [step.address, step.shape, step.parallels, step.options] for name, step in ordered}
    )


def loads(data: bytes) -> Names:
    """What `dumps` wrote.

    Raises:
        CorruptRecord: *data* is something else.
    """
    try:
        found = codec.decode_plan(data)
        return {
            name: Named(address, checked(of), tuple(parallels), tuple(options))
            for name, (address, of, parallels, options) in found.items()
        }
    except (AttributeError, RecursionError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"the names of steps cannot be read: {exc!r}") from None


def _place(address: str) -> str:
    return f"the step at {address}" if address else "the whole clutch"


def order(address: str) -> list[tuple[int, list[int], str]]:
    """What addresses are sorted by: as the plan has them; branches that were added are the last of
    their parallel, and what is no address comes behind."""
    return [_order_of(part) for part in _parts(address)]


def _order_of(part: str) -> tuple[int, list[int], str]:
    if part == EACH:
        return 0, [], ""
    numbers = re.split("[-+]", part)
    if not all(number.isdecimal() for number in numbers):
        return 2, [], part
    return int(len(numbers) > 1), [int(number) for number in numbers], ""


def _parts(address: str) -> list[str]:
    return address.split(".") if address else []


def _common(own: list[str], other: list[str]) -> int:
    """How many components two addresses have in common at their start; in *own*, that of a step,
    `EACH` stands for any branch that its map had from the start."""
    count = 0
    for mine, theirs in zip(own, other, strict=False):
        if mine != theirs and not (mine == EACH and theirs.isdecimal()):
            break
        count += 1
    return count
