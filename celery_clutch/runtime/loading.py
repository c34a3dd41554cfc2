"""Pages as they are in a run: with the branches of maps, as many as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from ..compile import pages, values
from ..compile.instance import indices, instance, maps
from ..compile.pages import Expand, Mapped, Narrow, Passed, Start, Template
from ..errors import MissingResult, NotAList
from ..model import absent, codec, plan, shape
from ..model.shape import Shape
from ..stores.base import Missing, ResultStore

READ = 100
"""How many results are read at a time, where a map is made of them."""

Decide = Callable[[Mapped, int], None]
"""Records how many branches a map has, once."""


@dataclass(slots=True)
class _List:
    """The list of a map.

    Attributes:
        width: how many elements it has.
        members: where they are, if the step before is a parallel.
        known: those that have been read, by index.
    """

    width: int
    members: list[Shape] | None
    known: dict[int, Any] = field(default_factory=dict)


class Loader:
    """Loads the pages of a run.

    Args:
        store: of the run.
        run: its id.
        window: how many messages of a map are sent at a time, about.
        decide: see `Decide`.
    """

    def __init__(self, store: ResultStore, run: str, window: int, decide: Decide) -> None:
        self.store = store
        self.run = run
        self.at_once = max(window // pages.WIDTH, 1)
        self.decide = decide
        self.decisions = values.Decisions(store, run)
        self._lists: dict[str, _List] = {}

    def load(self, key: str, data: bytes | None = None) -> tuple[Start, ...]:
        """What is started with the page *key*, which is *data* if that is known.

        Raises:
            MissingResult: the run or the page is gone.
            NotAList: what a map is made of is no list.
            CorruptRecord: what is stored is no page.
        """
        return tuple(self._unfolded(self._starts(key, data)))

    def _starts(self, key: str, data: bytes | None) -> Iterable[Start]:
        if data is not None:
            return pages.loads(data)
        head, colon, number = key.rpartition(":")
        if colon:
            return self._of_template(head, number)
        try:
            return self._stored(key)
        except MissingResult:
            head, slash, branch = key.rpartition("/")
            starts = self._of_branch(head, branch) if slash else None
            if starts is None:
                raise
            return starts

    def _stored(self, key: str) -> tuple[Start, ...]:
        found = self.store.patiently(self.store.page, self.run, key)
        if found is Missing:
            raise MissingResult(f"page {key} of run {self.run} is not in the store")
        return pages.loads(found)

    # --- branches of maps -----------------------------------------------------------------------

    def _of_template(self, head: str, number: str) -> Iterable[Start]:
        """A page of the branch of a map at the address *head*; with ``+`` in its *number*, so many
        branches of the map there as a page starts, from that one on."""
        number, plus, first = number.partition("+")
        page = self._stored(f":{number}")
        if not plus:
            return self._instance(page, head)
        return self._group(page, head, number, int(first))

    def _of_branch(self, head: str, branch: str) -> Iterable[Start] | None:
        """A branch of the narrow parallel or map at *head*."""
        grown = _added_branch(head)
        key = f"{pages.NARROWS} {grown}" if grown else pages.NARROWS
        found = self.store.patiently(self.store.page, self.run, key)
        narrows = {} if found is Missing else orjson.loads(found)
        for address, template in narrows.items():
            same_depth = address.count(".") == head.count(".")
            if not same_depth or indices(address, head) is None:
                continue
            if template:
                return self._starts(f"{head}.{branch}:{template.rpartition(':')[2]}", None)
            return self._instance(self._stored(f"{address}/{branch}"), f"{head}.{branch}")
        return None

    def _instance(self, page: tuple[Start, ...], address: str) -> tuple[Start, ...]:
        """A page of a template, for the branch that *address* is in."""
        template = page[0]
        if not isinstance(template, Template):
            raise MissingResult(f"run {self.run} has no branch {address}")
        branch = indices(template.at, address)
        if branch is None:
            raise MissingResult(f"run {self.run} has no branch {address}")
        around = maps(template.at, branch)
        widths = {each: int(self.decisions(each)) for each in around}
        source = template.source
        for number in branch[:-1]:
            source = shape.substitute(source, number)
        element = partial(self._element, around[-1], source, int(branch[-1]))
        return instance(page, branch, widths, element)

    def _group(
        self, page: tuple[Start, ...], address: str, number: str, first: int
    ) -> Iterator[Start]:
        """As many branches as a page starts, and what leads to those that are a window behind."""
        width, size = int(self.decisions(address)), _group_size(page)
        for index in range(first, min(first + size, width)):
            yield from self._instance(page, f"{address}.{index}")
        behind = first + size * self.at_once
        if behind < width:
            yield Expand(f"{address}:{number}+{behind}", _queue(page))

    # --- maps -------------------------------------------------------------------------------------

    def _unfolded(self, starts: Iterable[Start]) -> Iterator[Start]:
        """*starts*, with what maps are by now."""
        for start in starts:
            if isinstance(start, Mapped):
                yield from self._map(start)
            elif isinstance(start, Narrow):
                yield replace(start, starts=tuple(self._unfolded(start.starts)))
            elif not isinstance(start, Template):
                yield start

    def _map(self, start: Mapped) -> Iterator[Start]:
        width = self._width(start)
        if not width:
            yield Passed(start.at, start.barriers)
            return
        number = start.template.rpartition(":")[2]
        page = self._stored(f":{number}")
        size = _group_size(page)
        if start.limit:
            yield self._narrow(start, page, width)
        elif width <= size:
            for index in range(width):
                yield from self._unfolded(self._instance(page, f"{start.at}.{index}"))
        else:
            for first in range(0, min(width, size * self.at_once), size):
                yield Expand(f"{start.at}:{number}+{first}", _queue(page))

    def _narrow(self, start: Mapped, page: tuple[Start, ...], width: int) -> Narrow:
        """What starts a map that runs some of its branches at a time."""
        starts: list[Start] = []
        first = min(start.limit, width)
        for index in range(first):
            if first <= _group_size(page):
                starts += self._unfolded(self._instance(page, f"{start.at}.{index}"))
            else:
                starts.append(Expand(f"{start.at}/{index}", _queue(page)))
        return Narrow(start.at, start.limit, width, tuple(starts))

    def _width(self, start: Mapped) -> int:
        """How many branches the map has: what was decided first."""
        (known,) = self.store.patiently(self.store.values, self.run, [start.at])
        if known is Missing:
            width = self._list(start.at, start.source).width
            if start.need > width:
                elements = "1 element" if width == 1 else f"{width} elements"
                raise NotAList(
                    f"the map at {start.at} has need={start.need}, which wants a list of at least "
                    f"{start.need} elements, and its list has {elements}",
                    start.at,
                )
            self.decide(start, width)
        return int(self.decisions(start.at))

    def _list(self, address: str, source: Shape) -> _List:
        known = self._lists.get(address)
        if known is None:
            known = self._lists[address] = self._read_list(address, source)
        return known

    def _read_list(self, address: str, source: Shape) -> _List:
        of = self.decisions.resolve(source)
        if shape.is_parallel(of):
            members = list(shape.members(of))
            return _List(len(members), members)
        (value,) = values.read(self.store, self.run, [of], existed=True)
        if not isinstance(value, list):
            kind = type(value).__name__
            raise NotAList(
                f"the map at {address} is made of a list, and the step before has returned {kind}",
                address,
            )
        return _List(len(value), None, dict(enumerate(value)))

    def _element(self, address: str, source: Shape, index: int) -> Any:
        found = self._list(address, source)
        if index not in found.known and found.members is not None:
            some = found.members[index : index + READ]
            read = values.read(self.store, self.run, some, existed=True)
            found.known = dict(enumerate(read, index))
        element = absent.as_json(found.known[index])
        if codec.is_taken_for_another(element):
            raise NotAList(
                f"element {index} of the map at {address} cannot be an argument: it has an object "
                'of "__type__" and "__value__", which Celery takes for a value of another type',
                f"{address}.{index}",  # the map has its width, which is a result
            )
        return element


def _added_branch(address: str) -> str:
    """The address of the innermost branch around *address* that was added while the run ran, or
    ""."""
    added = (each for each in plan.upwards(address) if "+" in each.rpartition(".")[2])
    return next(added, "")


def _group_size(page: tuple[Start, ...]) -> int:
    """How many branches a page starts, whose template is *page*."""
    messages = sum(map(pages.weight, page))
    return max((pages.WIDTH - 1) // max(messages, 1), 1)


def _queue(page: tuple[Start, ...]) -> str:
    """The queue that a branch starts in."""
    return pages.queue(page[-1])
