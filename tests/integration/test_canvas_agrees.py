"""A canvas does the same whether Celery sends it or a clutch adopts it: values and side effects.

What the installed Celery does is recorded, not written down here: every canvas is sent raw, and
adopted by `Clutch.from_canvas`, all of them at once.
"""

from __future__ import annotations

from typing import Any

import celery
import pytest
from celery import chord
from celery.exceptions import TimeoutError
from celery.result import GroupResult

from celery_clutch import Clutch
from celery_clutch.errors import ClutchFailed, ClutchTimeout

from . import app as tasks
from .canvases import CANVASES, Notes, errs
from .conftest import MakeLab
from .lab import Lab, new_tag, until

PENDING, FAILED, REFUSED = "pending for good", "failed", "refused"

Outcome = dict[str, Any]


CALLED = ['["error", "ChordError"]']
IN, OUT, INNER = '["in", "ChordError"]', '["out", "ChordError"]', '["inner link", 5]'

OURS: dict[str, Outcome] = {
    # In the order of definition. Celery 5.7 has the last of a group that is in a group first.
    "chain_with_nested_groups": {"value": [[[2, 3, 4]]], "notes": []},
    # A chord that fails in the header of another lets that wait for good in Celery.
    "chord_with_errback_of_body_around_chord": {"value": FAILED, "notes": CALLED},
    "chord_with_errback_of_body_around_chain_with_group": {"value": FAILED, "notes": CALLED},
    "chain_with_errback_around_chord_with_chord": {"value": FAILED, "notes": CALLED},
    # The width of a parallel is fixed when it is sent; the job fails, and says so.
    "chord_that_adds": {"value": FAILED, "notes": []},
}
"""Where a clutch differs, as README says: what it comes to, whatever Celery does."""

LATER: dict[str, Outcome] = {
    # An inner chord that has failed holds up the outer one.
    "chord_with_errback_in_chord": {"value": FAILED, "notes": [IN, OUT]},
    "chord_with_errback_around_chord": {"value": FAILED, "notes": CALLED},
    # Links of maps are lost, those of what replaces a task are run twice.
    "map_with_link": {"value": [[1, 2]], "notes": ['["value", [1, 2]]']},
    "replaced_by_chain_with_link": {"value": [[5]], "notes": ['["value", [5]]']},
    "replaced_by_noted_chain_": {"value": [5], "notes": [INNER]},
    "replaced_by_noted_chain_with_link": {"value": [5], "notes": [INNER, '["outer link", 5]']},
}
"""What Celery does since 5.7, or not long before, and a clutch with any version."""


class Sent:
    """A canvas under way, raw or adopted."""

    def __init__(self, name: str, lab: Lab, *, adopted: bool) -> None:
        self.notes = Notes(new_tag())
        self.adopted = adopted
        self.refused: Exception | None = None
        self.handle: Any = None
        try:
            canvas = CANVASES[name](self.notes)
            self.handle = (
                Clutch.from_canvas(canvas, app=lab.app).engage()
                if adopted
                else canvas.apply_async()
            )
        except Exception as exc:
            self.refused = exc

    def outcome(self) -> Outcome:
        """Its value, and what its tasks have noted, in any order."""
        value = self._adopted() if self.adopted else self._raw()
        found = tasks.notebook().lrange(f"it:notes:{self.notes.tag}", 0, -1)
        return {"value": value, "notes": sorted(found)}

    def _raw(self) -> Any:
        if self.refused:
            return REFUSED
        try:
            value = self.handle.get(timeout=1)
        except TimeoutError:
            return PENDING
        except Exception:
            return FAILED
        return value if isinstance(self.handle, GroupResult) else [value]

    def _adopted(self) -> Any:
        if self.refused:
            return REFUSED
        try:
            return self.handle.get(timeout=1)
        except ClutchTimeout:
            return PENDING
        except ClutchFailed:
            return FAILED


@pytest.fixture(scope="module")
def outcomes(make_lab: MakeLab) -> dict[str, tuple[Outcome, Outcome]]:
    """What each canvas has come to, raw and adopted."""
    with make_lab("canvases", imports=[f"{__package__}.canvas_tasks"]) as lab:
        lab.app.set_current()
        sent = {
            name: [Sent(name, lab, adopted=adopted) for adopted in (False, True)]
            for name in CANVASES
        }
        lab.settle()
        return {name: (raw.outcome(), adopted.outcome()) for name, (raw, adopted) in sent.items()}


@pytest.mark.parametrize("name", CANVASES)
def test_canvas_agrees(name: str, outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    raw, adopted = outcomes[name]
    if celery.VERSION < (5, 7):
        raw = LATER.get(name, raw)
        if raw["value"] in (PENDING, REFUSED):
            pytest.skip(f"Celery {celery.__version__}: {raw['value']}; adopted: {adopted['value']}")
    assert adopted == OURS.get(name, raw)


def test_what_is_adopted_ends(outcomes: dict[str, tuple[Outcome, Outcome]]) -> None:
    assert [name for name, (_, adopted) in outcomes.items() if adopted["value"] == PENDING] == []


def test_when_errbacks_of_a_chord_are_called(make_lab: MakeLab) -> None:
    """When all of the header has ended, and once, however many of its jobs have died."""
    with make_lab("errbacks", imports=[f"{__package__}.canvas_tasks"], concurrency=3) as lab:
        lab.app.set_current()
        flag, raw, adopted = new_tag(), Notes(new_tag()), Notes(new_tag())

        def noted(notes: Notes) -> list[bytes]:
            found: list[bytes] = tasks.notebook().lrange(f"it:notes:{notes.tag}", 0, -1)
            return found

        def composed(notes: Notes) -> Any:
            header = [tasks.fail.s(), tasks.fail.s(), tasks.hold.s(flag)]
            return errs(chord(header, tasks.total.s()), notes.error())

        sent = composed(raw).apply_async()
        run = Clutch.from_canvas(composed(adopted), app=lab.app).engage()
        for child in sent.parent.children[:2]:
            until(child.failed, "for the failures of the raw chord")
        until(lambda: run.status().dead == 2, "for the failures of the clutch")
        assert (noted(raw), noted(adopted)) == ([], [])
        lab.raise_flag(flag)
        until(lambda: noted(adopted), "for the errback of the clutch")
        until(lambda: noted(raw), "for the errback of the raw chord")
        lab.settle()
        assert (len(noted(raw)), len(noted(adopted))) == (1, 1)
        run.forget()
