"""Names of steps: how they are given, which cannot be, from where they may be read, how they show."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from celery import Celery
from hypothesis import given

from celery_clutch import Clutch, ClutchTask, Sequence, named, parallel, series
from celery_clutch.compile import cut
from celery_clutch.errors import BuildError, InvalidName, UnknownAddress, UnknownName
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle import tree
from celery_clutch.handle.lines import lines as draw_lines
from celery_clutch.handle.result import ClutchResult
from celery_clutch.model import graph, names, plan
from celery_clutch.model.plan import Branches, Job, Node, Parallel

from .conftest import make_app
from .strategies import plans, with_names

app = make_app()


@app.task(name="a")
def a() -> str:
    return "a"


@app.task(name="b")
def b() -> str:
    return "b"


def shown(clutch: Clutch) -> list[str]:
    return [line.lstrip("│├└─ ") for line in str(clutch).splitlines()[1:]]


# --- giving names -------------------------------------------------------------------------


def test_named_names_the_step_that_was_added_last() -> None:
    clutch = Clutch(a)
    clutch.add(b).named("one")
    clutch << a
    clutch.named("two")
    with clutch.parallel():
        clutch.add(a).named("three")
        with clutch.series():
            clutch << a << b
        clutch.named("four")
    clutch.named("five")
    assert shown(clutch) == [
        "0 a()",
        "one (1 b())",
        "two (2 a())",
        "five (3 parallel)",
        "three (3.0 a())",
        "four (3.1 series)",
        "3.1.0 a()",
        "3.1.1 b()",
    ]


def same(*clutches: Clutch) -> bool:
    return len({str(clutch.plan) for clutch in clutches}) == 1


def test_a_block_takes_its_name_as_an_argument() -> None:
    clutch = Clutch()
    with clutch.parallel(name="sizes", max_concurrency=1), clutch.series(name="one"):
        clutch << a << b
    inner = series(a, b, name="one")
    assert same(
        clutch,
        series(parallel(inner, name="sizes", max_concurrency=1)),
        Clutch(parallel(inner, max_concurrency=1).named("sizes")),
        Clutch() << named(parallel(named(series(a, b), "one"), max_concurrency=1), "sizes"),
    )


def test_an_expression_is_named_as_a_whole() -> None:
    assert same(
        series(named(series(a, b), "both"), a),
        series(series(a, b).named("both"), a),
        series(series(a, b, name="both"), a),
        Clutch(Clutch(a, b).named("both"), a),
    )
    whole = series(a, b).named("first").named("second")
    assert same(series(whole, a), series(series(a, b, name="second"), a))


def test_a_series_that_is_named_is_not_flattened() -> None:
    assert shown(series(series(a, name="inner"), b))[0].startswith("inner (0 ")
    assert len(series(series(a, b, name="inner"), b).plan.steps) == 2
    (branch,) = plan.children(parallel(series(a, name="alone")).plan.steps[0])
    assert isinstance(branch, Job)
    assert branch.name == "alone"
    clutch = Clutch()
    with clutch.parallel(), clutch.series(name="alone"):
        clutch << a
    (branch,) = plan.children(clutch.plan.steps[0])
    assert isinstance(branch, Job)
    assert branch.name == "alone"


def test_a_step_may_have_two_names(eager: Celery) -> None:
    @eager.task
    def one() -> int:
        return 1

    run = series(named(named(one, "inner"), "outer"), one).engage()
    assert run.results("inner") == run.results("outer") == 1


def test_a_clutch_with_handlers_and_a_sequence_are_steps_with_names(eager: Celery) -> None:
    @eager.task(base=ClutchTask, bind=True)
    def read(self: ClutchTask) -> dict[str, Any]:
        return dict(self.results)

    class Steps(Sequence):
        steps = [named(read, "first"), read]
        queue = "side"

    run = series(
        named(Steps, "sequence"), named(Clutch(read, on_success=read.s()), "own"), read
    ).engage()
    first: dict[str, Any] = {"first": {}}
    second = {**first, "sequence": first}
    assert run.get(timeout=1) == [{**second, "own": second}]


def test_an_empty_block_has_no_name() -> None:
    clutch = Clutch(a)
    clutch.add(b).named("last")
    with clutch.parallel(name="empty"):
        pass
    clutch.named("nothing")
    clutch << Clutch()
    clutch.named("nothing")
    with clutch.parallel():
        clutch << a << Clutch()
        clutch.named("nothing")
    assert "empty" not in str(clutch)
    assert "nothing" not in str(clutch)
    assert not len(series(parallel([], name="empty"), name="empty"))
    assert not len(parallel([]).named("empty"))


def test_nothing_was_added_to_the_open_block() -> None:
    clutch = Clutch(a)
    clutch << b
    with clutch.parallel(), pytest.raises(BuildError, match=r"parallel\(name=\.\.\.\)"):
        clutch.named("too early")


def test_clear_forgets_names() -> None:
    clutch = series(a, b, name="both").clear()
    clutch << a
    assert "both" not in str(Clutch(clutch))


def test_a_step_far_back_in_a_wide_parallel_keeps_its_name() -> None:
    clutch = Clutch()
    with clutch.parallel():
        for number in range(3000):
            clutch.add(a).named(f"step {number}")
            clutch << b
    (wide,) = clutch.plan.steps
    assert isinstance(wide, Parallel)
    assert isinstance(wide.branches, Branches)
    assert wide.branches[2].name == "step 1"
    assert wide.branches.only_jobs
    assert [each.name for each in wide.branches][::2] == [f"step {n}" for n in range(3000)]


def test_the_name_of_all_of_a_clutch_is_shown(eager: Celery) -> None:
    named_whole = Clutch(a, a).named("both")
    assert str(named_whole).splitlines()[0] == "both (Clutch)"
    assert str(Clutch(a, a, name="run").named("both")).splitlines()[0] == "both (Clutch 'run')"
    assert "both (Clutch)" in named_whole._repr_html_()
    assert str(Clutch(a).named("one")).splitlines()[0] == "Clutch", "the step has it"


BAD = [
    "",
    " \n",
    "a\x1b[31m",
    "x" * 201,
    "\u202e",
    "\ud800",
    "0",
    "1.2",
    "12.0.3",
    "1.%",
    "1.%.0",
    "%",
    "1.0-2+0",
    5,
    None,
    b"photo",
]


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_name(name: Any) -> None:
    with pytest.raises(InvalidName, match="the name of a step"):
        named(a, name)
    with pytest.raises(InvalidName, match="the name of a step"):
        Clutch().add(a).named(name)
    if name is not None:  # no name
        with pytest.raises(InvalidName, match="the name of a step"):
            series(a, name=name)
        with pytest.raises(InvalidName, match="the name of a step"), Clutch().parallel(name=name):
            pass


@pytest.mark.parametrize("name", ["1.%", "1.0", "%"])
def test_a_name_that_reads_as_an_address_needs_another_character(name: str) -> None:
    said = re.escape(f"{name!r} cannot be the name of a step: it reads as an address")
    with pytest.raises(InvalidName, match=f"^{said}; use .* besides digits and [.]%[+]-"):
        named(a, name)


@pytest.mark.parametrize(
    "name", ["photo", "Größe 2", "1.2.", "x" * 200, "a.b", "{}", "📷", "-1", "50 %"]
)
def test_what_can(eager: Celery, name: str) -> None:
    @eager.task
    def one() -> int:
        return 1

    assert series(named(one, name)).engage().results(name) == 1


@pytest.mark.parametrize("name", ["x" * 201, "0", "a\nb"])
def test_json_cannot_bring_in_a_bad_name(eager: Celery, name: str) -> None:
    clutch = Clutch.from_json({"clutch": {"series": [{"task": "x", "name": name}]}}, app=eager)
    with pytest.raises(InvalidName, match="the name of a step"):
        clutch.engage()


def test_a_name_is_that_of_one_step(eager: Celery) -> None:
    @eager.task
    def one() -> int:
        return 1

    clutch = Clutch(one, named(one, "photo"), id="same")
    with clutch.parallel():
        clutch << one
        clutch.add(one).named("photo")
    with pytest.raises(
        InvalidName, match=r"'photo', the step at 1 and the step at 2\.1: a name is"
    ):
        clutch.engage()
    twice = series(one, one, name="both")
    with pytest.raises(InvalidName, match=r"'both', the step at 0 and the step at 1"):
        series(twice, twice).engage()
    inside = series(named(one, "x"), one, name="x")
    with pytest.raises(InvalidName, match=r"'x', the whole clutch and the step at 0"):
        inside.engage()
    with pytest.raises(Exception, match="there is no run"):
        ClutchResult("same", eager).state


# --- reading ------------------------------------------------------------------------------


def order(node: Node, address: str = "") -> tuple[set[str], set[tuple[str, str]]]:
    """The jobs of a node, and which of them certainly end before which others begin."""
    if isinstance(node, Job):
        return {address}, set()
    jobs: set[str] = set()
    before: set[tuple[str, str]] = set()
    for index, child in enumerate(plan.children(node)):
        inside, within = order(child, plan.join(address, index))
        before |= within
        if not isinstance(node, Parallel):
            before |= {(one, other) for one in jobs for other in inside}
        jobs |= inside
    return jobs, before


@given(plans(max_leaves=15).map(with_names))
def test_a_job_sees_exactly_the_steps_whose_jobs_all_precede_it(root: plan.Series) -> None:
    known = names.loads(names.dumps(cut.paginate(root).names))
    jobs, before = order(root)
    steps = [("", root), *plan.walk(root)] if root.size else []
    assert set(known) == {f"at {address}" for address, _ in steps}
    for job in jobs:
        results = names.Results(lambda: known, lambda shape: shape, job)
        expected = [
            f"at {address}"
            for address, node in steps
            if all((each, job) in before for each in order(node, address)[0])
        ]
        assert sorted(results) == sorted(expected)
        assert len(results) == len(expected)


@given(plans(max_leaves=15).map(with_names))
def test_names_survive_json(root: plan.Series) -> None:
    assert plan.loads(plan.dumps(root)) == root
    assert plan.from_dict(plan.to_dict(root), lambda task: False).name == root.name
    again = plan.from_dict(plan.to_dict(root), lambda task: True)
    found = [(at, node.name) for at, node in plan.walk(again)]
    assert found == [(at, node.name) for at, node in plan.walk(root)]


def test_the_store_is_asked_when_a_result_is_read_and_not_before(eager: Celery) -> None:
    asked: list[str] = []

    @eager.task(base=ClutchTask, bind=True)
    def read(self: ClutchTask, *wanted: str) -> list[Any]:
        store = runtime(eager).store
        with pytest.MonkeyPatch.context() as patch:
            for name in ("page", "values"):
                patch.setattr(store, name, counted(name, getattr(store, name)))
            return [self.results[name] for name in wanted]

    def counted(name: str, call: Any) -> Any:
        def counts(*args: Any) -> Any:
            asked.append(name)
            return call(*args)

        return counts

    inner = named(parallel(read.s(), read.s()), "both")
    run = series(inner, read.s(), read.s("both", "both")).engage()
    assert run.get(timeout=1) == [[[[], []], [[], []]]]
    assert asked == ["page", "values"]


def test_results_outside_a_run(eager: Celery) -> None:
    @eager.task(base=ClutchTask, bind=True)
    def read(self: ClutchTask) -> Any:
        return len(self.results), "x" in self.results, self.results.get("x", "default")

    assert read.delay().get() == (0, False, "default")
    with pytest.raises(KeyError, match=r"^no step is named 'x'; no step of the run has a name$"):
        read.results["x"]


def test_a_name_that_the_run_does_not_have(eager: Celery) -> None:
    @eager.task
    def one() -> int:
        return 1

    run = series(named(one, "photo"), *(named(one, f"n{n}") for n in range(20))).engage()
    with pytest.raises(UnknownName, match="is it 'photo' that is meant"):
        run.results("phto")
    with pytest.raises(UnknownAddress, match=r"'n8' and 11 more$") as caught:
        run.results("elsewhere")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownAddress, match="an address is a string such as"):
        run.results("99")


# --- showing ------------------------------------------------------------------------------

HOSTILE = '<b>"[red]\\'
PLAN = plan.series(
    [
        Job("shop.fetch", name=HOSTILE),
        plan.parallel([Job("shop.size", name="small"), Job("shop.size")], name="sizes"),
    ]
)


def test_drawings_have_names() -> None:
    assert graph.text(PLAN, "photos").splitlines() == [
        "photos",
        f"├─ {HOSTILE} (0 shop.fetch)",
        "└─ sizes (1 parallel)",
        "   ├─ small (1.0 shop.size)",
        "   └─ 1.1 shop.size",
    ]
    drawn = graph.html(PLAN, "photos")
    assert "&lt;b&gt;&quot;[red]\\ (0 shop.fetch)" in drawn
    assert "<b>" not in drawn
    assert r'[label="<b>\"[red]\\ (0 shop.fetch)"]' in graph.dot(PLAN)
    (line,) = [each for each in graph.mermaid(PLAN).splitlines() if "shop.fetch" in each]
    assert re.fullmatch(r'  n0\["[\w .,*#;-]+"\]', line)


def test_a_name_that_nobody_checked_breaks_no_line() -> None:
    root = plan.series([plan.parallel([Job("x", name="a\nb")], name="\x1b[31m")])
    for draw in (graph.text, graph.dot, graph.mermaid, graph.html):
        assert "\x1b" not in draw(root, "title")
        assert "a\nb" not in draw(root, "title")


def test_branches_that_are_alike_are_drawn_once_whatever_their_names_are() -> None:
    root = plan.series([plan.parallel(Job("x", name=f"n{n}") for n in range(50))])
    assert graph.text(root).splitlines()[1:] == ["└─ 0 parallel", f"   └─ 0.* x {graph.TIMES} 50"]


def test_a_run_shows_names(eager: Celery) -> None:
    @eager.task(name="shop.fetch")
    def fetch(url: str) -> None:
        raise ValueError(url)

    clutch = Clutch()
    with clutch.parallel(name="fetched"):
        clutch.add(fetch, "u").named("photo")
        clutch.add(fetch, "v")
    run = clutch.engage()
    drawn = tree.build(run.plan(), run.record(), runtime(eager).store.executions(run.id))
    photo, other = drawn.root.below[0].below
    assert (photo.name, photo.to_dict()["name"]) == ("photo", "photo")
    assert (other.name, other.to_dict()["name"]) == ("", None)
    lines = draw_lines(drawn, time.time(), arguments=True)
    assert lines.below[0].text.startswith("fetched (0 parallel)  ")
    assert lines.below[0].below[0].text.startswith("photo (0.0 shop.fetch('u'))  ")
    told = [reason.sentence for reason in run.why()]
    assert any(": job photo (0.0 shop.fetch) is dead" in sentence for sentence in told)
    assert any(": job 0.1 shop.fetch is dead" in sentence for sentence in told)
