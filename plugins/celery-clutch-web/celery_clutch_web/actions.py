"""What the pages do to runs, each told in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from celery import Celery
from celery_clutch import ClutchResult, ResultStore, State
from celery_clutch.errors import ClutchError, RunNotFound
from celery_clutch.model.graph import printable
from celery_clutch.stores.base import Summary
from kombu.exceptions import OperationalError

from . import listing
from .security import Refused, Role, Visitor

audit = logging.getLogger("celery_clutch.audit")
"""A line for each action: what, by whom, to which run, and what came of it."""


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done to a run.

    Attributes:
        verb: its name.
        role: who may do it.
        states: of the runs that it can do something to.
        done, nothing: what has happened, or why nothing has.
        run: does it, and returns whether it did something.
    """

    verb: str
    role: Role
    states: frozenset[State]
    done: str
    nothing: str
    run: Callable[[ClutchResult], bool]


ACTIONS = {
    action.verb: action
    for action in (
        Action(
            "resume",
            Role.STEER,
            frozenset((State.FAILED, State.CANCELLED)),
            "resumed",
            "has nothing to resume",
            ClutchResult.resume,
        ),
        Action(
            "cancel",
            Role.STEER,
            frozenset((State.RUNNING, State.FAILED)),
            "cancelled",
            "has ended already",
            ClutchResult.cancel,
        ),
        Action(
            "forget",
            Role.FORGET,
            frozenset(State),
            "forgotten",
            "is not there",
            ClutchResult.forget,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an action on a run: ``done``, ``nothing``, ``missing`` or ``error``."""

    run: str
    kind: str
    said: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return asdict(self)


def allowed(verb: str, visitor: Visitor) -> Action:
    """The action called *verb*.

    Raises:
        Refused: there is none, or *visitor* may not do it.
    """
    action = ACTIONS.get(verb)
    if action is None:
        raise Refused(f"There is no action {verb!r}.", 400)
    if visitor.role < action.role:
        raise Refused(f"You are not allowed to {verb} runs.")
    return action


def perform(app: Celery, action: Action, runs: Sequence[str], visitor: Visitor) -> list[Outcome]:
    """Do it to each of *runs*, also where it fails for one of them."""
    outcomes = []
    for run in runs:
        outcome = _perform(app, action, run)
        audit.info(
            "%s run=%s by=%s role=%s outcome=%s",
            *(action.verb, _quoted(run), _quoted(visitor.name)),
            *(visitor.role.name.lower(), outcome.kind),
        )
        outcomes.append(outcome)
    return outcomes


@dataclass(frozen=True, slots=True)
class Preview:
    """The runs that an action is about to be done to.

    Attributes:
        action: what is to be done.
        runs: to which.
        missing: ids that were chosen and are not there.
        next: the cursor of a preview of others that may fit; "" if there are none.
        more: more ids were chosen than are done at once.
    """

    action: Action
    runs: list[Summary]
    missing: list[str]
    next: str = ""
    more: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        runs = [listing.summary(run) for run in self.runs]
        found = {"verb": self.action.verb, "runs": runs, "missing": self.missing}
        return {**found, "next": self.next or None}


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an action."""

    action: Action
    outcomes: list[Outcome]

    @property
    def all_done(self) -> bool:
        """Whether it has done something to every run, of which there is one at least."""
        return bool(self.outcomes) and all(each.kind == "done" for each in self.outcomes)

    def run_page(self, base: str) -> str:
        """Where the page of the (first) run is."""
        return f"{base}/run?{urlencode({'id': self.outcomes[0].run, 'done': self.action.verb})}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-friendly data."""
        return {"verb": self.action.verb, "runs": [each.to_dict() for each in self.outcomes]}


def preview(
    store: ResultStore,
    action: Action,
    ids: Sequence[str],
    filters: listing.Filters,
    cursor: str = "",
) -> Preview:
    """The runs with these *ids*, or else those that fit *filters*, as far as the action can do
    something to them; `listing.MOST` at most."""
    if ids:
        found = {id: listing.one(store, id) for id in ids[: listing.MOST]}
        runs = [run for run in found.values() if run is not None]
        missing = [id for id, run in found.items() if run is None]
        return Preview(action, runs, missing, more=len(ids) > listing.MOST)
    if not filters:
        raise Refused("Choose runs, or filters.", 400)
    if filters.state and State(filters.state) not in action.states:
        return Preview(action, [], [])
    runs, following = listing.every(store, filters, action.states, cursor)
    return Preview(action, runs, [], following)


def _perform(app: Celery, action: Action, run: str) -> Outcome:
    handle = ClutchResult(run, app)
    try:
        if action.run(handle):
            return Outcome(run, "done", action.done)
        _ = handle.state  # the state of what is not there says so
    except RunNotFound:
        return Outcome(run, "missing", "is not there any more")
    except (ClutchError, OperationalError) as exc:
        return Outcome(run, "error", str(exc) or repr(exc))
    return Outcome(run, "nothing", action.nothing)


def _quoted(text: str) -> str:
    """*text* in one line and between quotes, so that none looks like two fields."""
    return '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'
