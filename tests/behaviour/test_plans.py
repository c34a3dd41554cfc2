"""Plans of any shape, generated: what they give, what their handlers are told, and how they go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.app import job, note, plain_job
from integration.lab import Runs, handlers, new_tag
from unit.reference import enclosing, evaluate, reporter
from unit.strategies import plans

from celery_clutch import Clutch, ClutchResult, State, parallel
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Node, Parallel, Scope, Series

HANDLERS = ("on_failure", "on_success", "on_death")

unscoped = plans(scope=st.just(Scope()), max_leaves=25)


def on_examples(lab: Runs, *strategies: Any) -> Callable[[Callable[..., None]], None]:
    """Run the decorated check on so many examples as the engine has time for."""
    limits = settings(
        max_examples=lab.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def run(check: Callable[..., None]) -> None:
        limits(given(*strategies)(check))()

    return run


def compose(lab: Runs, node: Node, tag: str, at: str = "", **options: Any) -> Any:
    """*node* as a user would compose it; each handler notes under *tag* whose it is."""
    if isinstance(node, Job):
        return plain_job.s() if node.plain else job.s()
    below = enumerate(plan.children(node))
    steps = [compose(lab, child, tag, plan.join(at, index)) for index, child in below]
    if isinstance(node, Parallel):
        return parallel(*steps)
    kinds = [kind for kind in HANDLERS if getattr(node.scope, kind)]
    told = {kind: note.s(tag, f"{kind} of {at}") for kind in kinds}
    return Clutch(*steps, queue=lab.side if node.scope.queue else None, **{**told, **options})


def can_fail(root: Series) -> list[str]:
    return [at for at, node in plan.walk(root) if isinstance(node, Job) and not node.plain]


def some_of(jobs: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(jobs), unique=True) if jobs else st.just([])


def run_of(lab: Runs, root: Series, tag: str, times: dict[str, int]) -> ClutchResult:
    """A run of *root* that has ended, in which jobs have failed so many *times*."""
    lab.let_fail(tag, times)
    run: ClutchResult = compose(lab, root, tag, id=tag, app=lab.app, **handlers(tag)).engage()
    lab.finish(run)
    return run


def test_any_plan_gives_what_it_means(lab: Runs) -> None:
    @on_examples(lab, unscoped)
    def check(root: Series) -> None:
        wanted, tag = evaluate(root), new_tag()
        run = run_of(lab, root, tag, {})
        assert run.state is State.SUCCEEDED
        assert run.get(timeout=1) == run.results() == wanted.last
        for at, _ in plan.walk(root):
            assert run.results(at) == wanted.values[at]
        status, size = run.status(), root.size
        assert (status.total, status.done, status.failing, status.dead) == (size, size, 0, 0)
        assert lab.ran(run) == Counter(wanted.previous.keys())
        assert lab.kinds(tag) == ({"on_success": 1} if root.size else {})


def test_a_step_with_retries_is_reported_once(lab: Runs) -> None:
    @on_examples(lab, unscoped, st.data())
    def check(root: Series, data: st.DataObject) -> None:
        wanted, tag = evaluate(root), new_tag()
        times = {at: data.draw(st.integers(1, 2)) for at in data.draw(some_of(can_fail(root)))}
        run = run_of(lab, root, tag, times)
        assert run.get(timeout=1) == wanted.last
        steps = [status["step"] for status in lab.notes(tag, "on_failure")]
        assert Counter(steps) == Counter({(*enclosing(root, at), at)[0] for at in times})
        assert lab.ran(run) == {at: 1 + times.get(at, 0) for at in wanted.previous}
        assert lab.kinds(tag)["on_success"] == (1 if root.size else 0)
        assert not lab.kinds(tag)["on_death"]


def test_a_dead_job_stops_what_follows_and_resume_goes_on(lab: Runs) -> None:
    @on_examples(lab, unscoped.filter(can_fail), st.data())
    def check(root: Series, data: st.DataObject) -> None:
        wanted, tag = evaluate(root), new_tag()
        dead = data.draw(st.sampled_from(can_fail(root)))
        run = run_of(lab, root, tag, {dead: 4})  # as often as it is tried
        assert run.failed()
        (failure,) = run.failures()
        assert (failure.address, failure.final, failure.attempt) == (dead, True, 4)
        assert lab.kinds(tag) == {"on_failure": 1, "on_death": 1}
        # Branches beside it have run, steps after it have not.
        assert not [at for at in lab.ran(run) if follows(root, at, dead)]
        assert run.resume() is True
        lab.finish(run)
        assert run.get(timeout=1) == wanted.last
        for at, _ in plan.walk(root):
            assert run.results(at) == wanted.values[at]
        assert lab.ran(run) == {at: 5 if at == dead else 1 for at in wanted.previous}
        assert run.resume() is False
        assert run.status().generation == 1


def follows(root: Series, at: str, dead: str) -> bool:
    """Whether *at* is in a step after the one that *dead* is in."""
    node: Node = root
    for left, right in zip(at.split("."), dead.split("."), strict=False):
        if left != right:
            return isinstance(node, Series) and int(left) > int(right)
        node = plan.children(node)[int(left)]
    return False


def test_handlers_are_those_of_the_nearest_clutch(lab: Runs) -> None:
    @on_examples(lab, plans(max_leaves=25, built=True), st.data())
    def check(root: Series, data: st.DataObject) -> None:
        tag = new_tag()
        failing = data.draw(some_of(can_fail(root)))
        lab.let_fail(tag, dict.fromkeys(failing, 1))
        run = compose(lab, root, tag, id=tag, app=lab.app).engage()
        lab.finish(run)
        assert run.get(timeout=1) == evaluate(root).last
        wanted: Counter[tuple[str, str | None]] = Counter()
        for step, teller in {reporter(root, at) for at in failing}:
            if teller is not None:
                wanted[f"on_failure of {teller}", step] += 1
        for at, node in [("", root), *plan.walk(root)]:
            if isinstance(node, Series) and node.scope.on_success and root.size:
                wanted[f"on_success of {at}", None] += 1
        told = [(kind, s["step"]) for kind in lab.kinds(tag) for s in lab.notes(tag, kind)]
        assert Counter(told) == wanted
