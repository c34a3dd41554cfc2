"""Branches of maps: pages of a template, with what is known of them while the run runs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..model.plan import EACH, tolerated
from ..model.shape import substitute
from ..stores.base import Barrier, Settles, Tolerance, Turn
from .pages import Choice, Expand, Item, Mapped, Narrow, Start, Template

Widths = Mapping[str, int]
"""How many branches maps have, by address."""


def indices(template: str, address: str) -> list[str] | None:
    """What stands for `EACH` of a *template*'s address in that of something in an instance; None
    if it is in none."""
    pattern, parts = template.split("."), address.split(".")
    if len(parts) < len(pattern):
        return None
    found: list[str] = []
    for expected, part in zip(pattern, parts, strict=False):
        if expected == EACH:
            found.append(part)
        elif expected != part:
            return None
    return found


def maps(template: str, branch: Sequence[str]) -> list[str]:
    """The addresses of the maps that an instance is in, the outermost first."""
    found: list[str] = []
    numbers = iter(branch)
    parts: list[str] = []
    for part in template.split("."):
        if part == EACH:
            found.append(".".join(parts))
            part = next(numbers)
        parts.append(part)
    return found


def instance(
    starts: Sequence[Start], branch: Sequence[str], widths: Widths, element: Callable[[], Any]
) -> tuple[Start, ...]:
    """The *starts* of a page of a template, without what stands first there, for one branch.

    Args:
        starts: of the page.
        branch: the numbers of the branch, in its map and in those around.
        widths: of these maps.
        element: gives the element of the list that the branch is for.
    """
    maker = _Maker(branch, widths, element)
    return tuple(maker.start(start) for start in starts if not isinstance(start, Template))


class _Maker:
    def __init__(self, branch: Sequence[str], widths: Widths, element: Callable[[], Any]) -> None:
        self.branch = branch
        self.widths = widths
        self.element = element

    def start(self, start: Start) -> Start:
        if isinstance(start, tuple):
            return tuple(map(self.item, start))
        if isinstance(start, Expand):
            return replace(start, page=self.text(start.page))
        if isinstance(start, Narrow):
            below = tuple(map(self.start, start.starts))
            return replace(start, at=self.text(start.at), starts=below)
        if isinstance(start, Mapped):
            return replace(
                start,
                at=self.text(start.at),
                template=self.text(start.template),
                source=self.text(start.source),
                barriers=self.barriers(start.barriers),
            )
        return start

    def item(self, item: Item) -> Item:
        job = item.job
        if item.takes:
            job = replace(job, args=(self.element(), *job.args))
        choices = item.choices
        if choices:
            options = tuple(map(self.choice, choices.options))
            choices = replace(choices, options=options)
        return replace(
            item,
            at=self.text(item.at),
            job=job,
            previous=self.text(item.previous),
            settles=self.settled(item.settles),
            barriers=self.barriers(item.barriers),
            narrow=tuple(map(self.turn, item.narrow)),
            tolerances=tuple(map(self.tolerance, item.tolerances)),
            choices=choices,
            takes=False,
        )

    def text(self, of: Any) -> Any:
        """*of*, an address or a shape, with the numbers of the branch."""
        for number in self.branch:
            of = substitute(of, number)
        return of

    def barriers(self, barriers: Sequence[Barrier]) -> tuple[Barrier, ...]:
        return tuple(map(self.barrier, barriers))

    def barrier(self, barrier: Barrier) -> Barrier:
        name = self.text(barrier.name)
        width = barrier.width
        if width < 0:
            width = -width * self.widths[name.removesuffix("#")]
        return replace(
            barrier,
            name=name,
            width=width,
            then=self.text(barrier.then),
            gate=self.text(barrier.gate),
            settles=barrier.settles and self.member(barrier.settles),
            turn=barrier.turn and self.turn(barrier.turn),
        )

    def member(self, settles: Settles) -> Settles:
        step = self.text(settles.step)
        member, width = self.text(settles.member), self.width(step, settles.width)
        return replace(settles, step=step, member=member, width=width)

    def turn(self, turn: Turn) -> Turn:
        address = self.text(turn.address)
        member, width = self.text(turn.member), self.width(address, turn.width)
        return replace(turn, address=address, member=member, width=width)

    def tolerance(self, tolerance: Tolerance) -> Tolerance:
        step, limit = self.text(tolerance.step), tolerance.limit
        width = self.widths.get(step.removesuffix("#"))
        if width is not None:
            limit = tolerated(limit, tolerance.need, width)
        member, barriers = self.text(tolerance.member), self.barriers(tolerance.barriers)
        return replace(tolerance, step=step, member=member, limit=limit, barriers=barriers)

    def choice(self, choice: Choice) -> Choice:
        return replace(choice, barriers=self.barriers(choice.barriers))

    def settled(self, settles: str) -> str:
        """The steps that a failure settles; see `pages`."""
        found: list[str] = []
        for each in settles.split():
            step, star, width = self.text(each).partition("*")
            if star:
                width = str(self.width(step, int(width)))
            found.append(f"{step}{star}{width}")
        return " ".join(found)

    def width(self, address: str, width: int) -> int:
        """A width; that of a map is known only now."""
        return width if width > 0 else self.widths[address]
