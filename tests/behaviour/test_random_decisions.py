"""Plans of all kinds of steps, generated: what they give, with deaths that are tolerated or resumed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from integration import app as tasks
from integration.lab import Runs, new_tag

from celery_clutch import Clutch, ClutchResult, State
from celery_clutch.errors import MissingResult
from celery_clutch.model import plan
from celery_clutch.model.plan import Series

from . import deciding
from .deciding import Dead, Given
from .test_plans import on_examples


def engaged(lab: Runs, root: Series, dead: set[str]) -> ClutchResult:
    run = new_tag()
    if dead:
        tasks.notebook().sadd(f"it:dead:{run}", *dead)
    clutch = Clutch.from_json({"clutch": plan.to_dict(root)}, id=run, app=lab.app)
    result = clutch.engage()
    lab.settle()
    return result


def given_by(root: Series, dead: frozenset[str]) -> tuple[Any, Given]:
    """The results of the last step, or Dead; and what each job has given."""
    given = Given(dead)
    try:
        return deciding.evaluate(root, given), given
    except Dead:
        return Dead, given


def check_values(run: ClutchResult, wanted: Any, given: Given) -> None:
    assert run.state is State.SUCCEEDED
    assert deciding.plain(run.get(timeout=1)) == wanted
    assert deciding.plain(run.results()) == wanted
    for at, value in given.values.items():
        assert run.results(at) == value, at
    for at, value in given.perhaps.items():
        with suppress(MissingResult):
            assert run.results(at) == value, at
    status = run.status()
    assert (status.done, status.failing, status.dead) == (status.total, 0, 0)
    assert run.record().due == {}


def test_any_plan_gives_what_it_means(lab: Runs) -> None:
    @on_examples(lab, deciding.plans())
    def check(root: Series) -> None:
        wanted, given = given_by(root, frozenset())
        run = engaged(lab, root, set())
        check_values(run, wanted, given)
        ran = lab.ran(run)
        assert set(ran) == set(given.values)
        assert set(ran.values()) <= {1}


def test_deaths_are_tolerated_or_resumed(lab: Runs) -> None:
    @on_examples(lab, deciding.plans(), st.data())
    def check(root: Series, data: st.DataObject) -> None:
        dead = data.draw(st.sets(st.sampled_from(deciding.jobs(root)), max_size=4))
        wanted, given = given_by(root, frozenset(dead))
        run = engaged(lab, root, dead)
        if wanted is not Dead:
            check_values(run, wanted, given)
            return
        assert run.state is State.FAILED
        assert {failure.address for failure in run.failures()} <= dead
        tolerated = run.record().tolerated
        tasks.notebook().delete(f"it:dead:{run.id}")
        assert run.resume()
        lab.settle()
        wanted, given = given_by(root, frozenset(tolerated))
        check_values(run, wanted, given)
