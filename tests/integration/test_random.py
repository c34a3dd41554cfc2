"""Random plans, stopped in random places and resumed, on a real worker."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from unit.reference import evaluate
from unit.strategies import plans

from celery_clutch import Clutch, ClutchResult, State, parallel
from celery_clutch.extend.plugins import runtime
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Scope, Series

from . import app as tasks
from .app import clutch_work, plain_work
from .lab import Lab

MANY = 15
"""How many plans; all of them run at once."""

bare = plans(scope=st.just(Scope()), max_leaves=25, narrow=True)
own = plans(st.just(Job("t")), st.just(Scope()), max_leaves=25, narrow=True)


def drawn(roots: st.SearchStrategy[Series]) -> list[tuple[Series, dict[str, int], set[str]]]:
    """Plans, the same each time; how often which of their jobs fail, and which cancel the run."""
    found: list[tuple[Series, dict[str, int], set[str]]] = []

    @settings(
        max_examples=MANY,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(roots, st.data())
    def draw(root: Series, data: st.DataObject) -> None:
        jobs = [at for at, node in plan.walk(root) if isinstance(node, Job)]
        some = st.sets(st.sampled_from(jobs)) if jobs else st.just(set())
        failing = {at: data.draw(st.integers(1, 2)) for at in sorted(data.draw(some))}
        found.append((root, failing, data.draw(some)))

    draw()
    return found


def build(node: Node, **options: Any) -> Any:
    """*node* composed as a user would."""
    if isinstance(node, Job):
        return plain_work.s() if node.plain else clutch_work.s()
    steps = [build(child) for child in plan.children(node)]
    if isinstance(node, Parallel):
        return parallel(*steps, max_concurrency=node.limit)
    return Clutch(*steps, **options)


@pytest.mark.parametrize("cancels", [False, True], ids=["failing", "cancelled"])
def test_whatever_has_stopped_goes_on(lab: Lab, tag: str, cancels: bool) -> None:
    # A plain task cannot be stopped, and has no result in a cancelled run.
    examples = drawn(own if cancels else bare)
    runs: list[ClutchResult] = []
    for number, (root, failing, cancelling) in enumerate(examples):
        run = f"{tag}-{number}"
        for at, times in failing.items():
            tasks.notebook().hset(f"it:failing:{run}", at, times)
        for at in cancelling if cancels else ():
            tasks.notebook().sadd(f"it:cancelling:{run}", at)
        runs.append(build(root, id=run).engage())
    lab.settle()
    rounds = 0
    while left := [run for run in runs if run.state is not State.SUCCEEDED]:
        assert rounds < 60, f"they get nowhere: {left}"
        rounds += 1
        for run in left:
            assert run.state is not State.RUNNING, "it hangs"
            assert run.resume() or run.state is State.SUCCEEDED
        lab.settle()
    assert rounds, "there was something to resume"
    for run, (root, _, _) in zip(runs, examples):
        wanted = evaluate(root)
        assert run.get(timeout=1) == wanted.last
        for at, value in wanted.values.items():
            assert not at or run.results(at) == value, at
        returned = tasks.notebook().lrange(f"it:returned:{run.id}", 0, -1)
        assert Counter(returned) == Counter(wanted.previous.keys()), "each has returned once"
        status = run.status()
        assert (status.failing, status.dead) == (0, 0)
        assert run.record().due == {}
        assert runtime(lab.app).store.leases(run.id) == {}
