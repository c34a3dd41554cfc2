"""Composing: every form of step, what it becomes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import orjson
import pytest
from celery import Celery, Task, chain, chord, group, shared_task, signature
from celery.canvas import Signature

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.errors import (
    AlreadyEngaged,
    BuildError,
    InvalidName,
    InvalidParent,
    InvalidStep,
    NonJSONArgument,
    PlanTooDeep,
)
from celery_clutch.extend.plugins import runtime
from celery_clutch.model.plan import MAX_DEPTH, Job, Node, Parallel, Scope, Series, children

from .conftest import make_app


class Tasks:
    """The tasks of an app: a, b and c are ClutchTasks, plain is not."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.a, self.b, self.c = (self._define(app, name) for name in "abc")

        @app.task(name="plain", base=Task)
        def plain(x: int, *, y: int = 0) -> int:
            return x + y

        @app.task(name="told")
        def told(status: dict[str, Any], *args: Any) -> None: ...

        self.plain, self.told = plain, told

    @staticmethod
    def _define(app: Celery, name: str) -> Any:
        @app.task(name=name)
        def run(*args: Any, **kwargs: Any) -> str:
            return name

        return run


@pytest.fixture
def t(app: Celery) -> Tasks:
    return Tasks(app)


@pytest.fixture
def te(eager: Celery) -> Tasks:
    return Tasks(eager)


def shape(node: Node) -> Any:
    """*node* as nested lists (series), sets of branches as tuples (parallel), and calls."""
    if isinstance(node, Job):
        values = [*map(repr, node.args), *(f"{k}={v!r}" for k, v in node.kwargs.items())]
        return f"{node.task}({', '.join(values)})"
    below = [shape(child) for child in children(node)]
    return below if isinstance(node, Series) else tuple(below)


def stored(app: Celery) -> int:
    """How many runs are in the store."""
    return len(runtime(app).store.scan()[0])


# --- every form of step -------------------------------------------------------------------


def test_a_signature_a_task_and_a_tuple(t: Tasks) -> None:
    clutch = Clutch()
    clutch << t.a.s(1, x=2)
    clutch << t.b
    clutch << (t.c, 1, 2)
    clutch << (t.c,)
    assert shape(clutch.plan) == ["a(1, x=2)", "b()", "c(1, 2)", "c()"]


def test_steps_can_be_chained_and_given_at_once(t: Tasks) -> None:
    assert shape((Clutch() << t.a << t.b.s(1)).plan) == ["a()", "b(1)"]
    assert shape(Clutch(t.a, t.b.s(1), (t.c, 2)).plan) == ["a()", "b(1)", "c(2)"]


def test_add(t: Tasks) -> None:
    clutch = Clutch().add(t.a, 1, draft=False).add(t.b).add(t.c.s(3)).add((t.c, 4))
    clutch.add(parallel(t.a, t.b))
    clutch.add(t.a, task=1)
    assert shape(clutch.plan) == [
        *("a(1, draft=False)", "b()", "c(3)", "c(4)"),
        ("a()", "b()"),
        "a(task=1)",
    ]


def test_the_readmes_blocks(t: Tasks) -> None:
    clutch = Clutch()
    clutch << t.a.s(0)
    with clutch.parallel():
        clutch << t.a.s(1)
        clutch << t.a.s(2)
        with clutch.series():
            clutch << t.b.s()
            clutch << t.c.s()
    clutch.add(t.c, 3)
    assert shape(clutch.plan) == ["a(0)", ("a(1)", "a(2)", ["b()", "c()"]), "c(3)"]


def test_blocks_and_expressions_say_the_same(t: Tasks) -> None:
    clutch = Clutch()
    with clutch.parallel() as same:
        assert same is clutch
        clutch << t.a
        with clutch.series() as same:
            assert same is clutch
            clutch << t.b
            with clutch.parallel():
                clutch << t.c.s(1)
                clutch << t.c.s(2)
    clutch << t.a
    expression = series(parallel(t.a, series(t.b, parallel(t.c.s(1), t.c.s(2)))), t.a)
    assert clutch.plan == expression.plan


def test_expressions_take_arguments_or_one_iterable(t: Tasks) -> None:
    calls = [t.a.s(i) for i in range(3)]
    for make, wrap in [(series, list), (parallel, lambda calls: [tuple(calls)])]:
        wanted = wrap(["a(0)", "a(1)", "a(2)"])
        for steps in [(*calls,), (calls,), (tuple(calls),), (iter(calls),)]:
            assert shape(make(*steps).plan) == wanted
        assert shape(make(t.a.s(i) for i in range(3)).plan) == wanted
        assert shape(make({i: call for i, call in enumerate(calls)}.values()).plan) == wanted


def test_an_expression_of_one_step(t: Tasks) -> None:
    for one, wanted in [
        (t.a.s(1), "a(1)"),
        (t.a, "a()"),
        ((t.a, 1), "a(1)"),
        ([(t.a, 1)], "a(1)"),
        (Clutch(t.a), "a()"),
    ]:
        assert shape(series(one).plan) == [wanted]
        assert shape(parallel(one).plan) == [(wanted,)]


def test_nothing_in_an_expression(t: Tasks) -> None:
    for nothing in [(), ([],), ((),), (iter([]),), (Clutch(),), (series(),), (parallel(),)]:
        assert series(*nothing).plan == parallel(*nothing).plan == Series()


def test_a_shared_task_is_a_step(app: Celery) -> None:
    @shared_task(name="unit.shared")
    def shared(*args: Any) -> None: ...

    clutch = Clutch(app=app) << shared << shared.s(1) << (shared, 2)
    assert shape(clutch.plan) == [f"unit.shared({x})" for x in ("", 1, 2)]


# --- clutches as steps --------------------------------------------------------------------


def test_a_clutch_inside_a_clutch_is_flattened(t: Tasks) -> None:
    inner = Clutch(t.b, t.c)
    assert shape(Clutch(t.a, inner, t.a).plan) == ["a()", "b()", "c()", "a()"]
    assert shape(parallel(inner, t.a).plan) == [(["b()", "c()"], "a()")]
    assert shape(parallel(Clutch(t.b), t.a).plan) == [("b()", "a()")]


def test_a_clutch_with_settings_keeps_them(t: Tasks) -> None:
    inner = Clutch(t.b, queue="slow", on_failure=t.told.s("inner"))
    root = Clutch(t.a, inner, queue="fast").plan
    assert root.scope == Scope(queue="fast")
    nested = root.steps[1]
    assert isinstance(nested, Series)
    assert nested.scope.queue == "slow"
    assert nested.scope.on_failure is not None
    assert nested.scope.on_failure["args"] == ("inner",)
    branch = parallel(inner, t.a).plan.steps[0]
    assert isinstance(branch, Parallel)
    assert branch.branches[0] == nested


def test_a_step_is_taken_as_it_is_now(t: Tasks) -> None:
    inner = Clutch(t.b)
    outer = Clutch(inner)
    inner << t.c
    assert shape(outer.plan) == ["b()"]
    assert shape(inner.plan) == ["b()", "c()"]


def test_a_clutch_can_be_added_to_itself(t: Tasks) -> None:
    clutch = Clutch(t.a)
    clutch << clutch
    assert shape(clutch.plan) == ["a()", "a()"]


def test_a_change_of_a_signature_later_does_not_reach_the_plan(t: Tasks) -> None:
    sig = t.a.s(1).set(priority=1)
    clutch = Clutch(sig)
    sig.set(priority=9)
    sig.args = (2,)
    assert clutch.plan.steps[0] == Job("a", (1,), {}, {"priority": 1})


# --- the app ------------------------------------------------------------------------------


def test_the_app_is_that_of_the_first_step(t: Tasks) -> None:
    other = make_app()
    assert Clutch(t.a).app is t.app
    assert Clutch(Clutch(t.a)).app is t.app
    assert Clutch.from_canvas(t.a.s()).app is t.app
    assert Clutch(t.a, app=other).app is other
    assert Clutch(t.a, Clutch(app=other)).app is t.app


def test_the_handle_has_the_app_of_the_clutch(te: Tasks) -> None:
    assert Clutch(te.a).engage().app is te.app


# --- blocks -------------------------------------------------------------------------------


def test_an_empty_block_adds_no_step(t: Tasks) -> None:
    clutch = Clutch(t.a)
    with clutch.parallel():
        pass
    with clutch.series():
        pass
    with clutch.parallel():
        with clutch.series():
            with clutch.parallel():
                pass
        clutch << Clutch(queue="q")
    assert shape(clutch.plan) == ["a()"]
    assert repr(clutch) == "<Clutch: 1 step, 1 job>"


def test_a_parallel_block_of_one_is_a_parallel(t: Tasks) -> None:
    clutch = Clutch()
    with clutch.parallel():
        clutch << t.a
    assert shape(clutch.plan) == [("a()",)]


def test_a_series_block_outside_a_parallel_is_just_its_steps(t: Tasks) -> None:
    clutch = Clutch(t.a)
    with clutch.series():
        clutch << t.b << t.c
    assert shape(clutch.plan) == ["a()", "b()", "c()"]


@pytest.mark.parametrize("block", ["parallel", "series"])
def test_an_exception_inside_a_block_discards_it(t: Tasks, block: str) -> None:
    clutch = Clutch(t.a)
    with pytest.raises(ZeroDivisionError), clutch.parallel():
        clutch << t.b
        with getattr(clutch, block)():
            clutch << t.c
            raise ZeroDivisionError
    clutch << t.c.s(2)
    assert shape(clutch.plan) == ["a()", "c(2)"]
    assert len(clutch) == 2


def test_an_exception_caught_around_an_inner_block_discards_that_alone(t: Tasks) -> None:
    clutch = Clutch()
    with clutch.parallel():
        clutch << t.a
        with pytest.raises(InvalidStep), clutch.series():
            clutch << t.b
            clutch << "no step"
        clutch << t.c
    assert shape(clutch.plan) == [("a()", "c()")]


@pytest.mark.parametrize("block", ["parallel", "series"])
def test_what_does_not_go_inside_an_open_block(te: Tasks, block: str) -> None:
    clutch = Clutch(te.a)
    with getattr(clutch, block)():
        clutch << te.b
        with pytest.raises(BuildError, match=r"engage\(\) inside an open"):
            clutch.engage()
        with pytest.raises(BuildError, match=r"clear\(\) inside an open"):
            clutch.clear()
        with pytest.raises(BuildError, match="open block"):
            Clutch(clutch)
    assert stored(te.app) == 0
    assert len(clutch) == 2


# --- showing ------------------------------------------------------------------------------


def test_len_counts_jobs(t: Tasks) -> None:
    clutch = Clutch()
    assert len(clutch) == 0
    clutch << t.a << parallel(t.a, series(t.b, t.c))
    assert len(clutch) == 4
    with clutch.parallel():
        clutch << t.a
        assert len(clutch) == 5


def test_a_clutch_is_true_even_when_empty() -> None:
    assert Clutch()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: Clutch(), "<Clutch: 0 steps, 0 jobs>"),
        (lambda t: Clutch(t.a), "<Clutch: 1 step, 1 job>"),
        (lambda t: Clutch(t.a, parallel(t.a, t.b)), "<Clutch: 2 steps, 3 jobs>"),
        (lambda t: Clutch(t.a, name="nightly"), "<Clutch 'nightly': 1 step, 1 job>"),
    ],
)
def test_repr(t: Tasks, make: Callable[[Tasks], Clutch], expected: str) -> None:
    assert repr(make(t)) == expected


def test_repr_counts_the_steps_of_the_tree(t: Tasks) -> None:
    assert repr(Clutch(Clutch())) == "<Clutch: 0 steps, 0 jobs>"
    assert repr(Clutch(series(t.a, t.b))) == "<Clutch: 2 steps, 2 jobs>"


def test_str_is_a_tree(t: Tasks) -> None:
    clutch = Clutch(name="nightly")
    clutch << t.a.s("x", draft=False)
    with clutch.parallel():
        clutch << t.b.s(1)
        with clutch.series():
            clutch << t.b.s(2)
            with clutch.parallel():
                clutch << t.c
                clutch << t.plain.s(5)
        clutch << t.b.s([3])
    clutch << Clutch(t.a, parallel(t.c), queue="slow")
    assert str(clutch) == "\n".join(
        [
            "Clutch 'nightly'",
            "├─ 0 a('x', draft=False)",
            "├─ 1 parallel",
            "│  ├─ 1.0 b(1)",
            "│  ├─ 1.1 series",
            "│  │  ├─ 1.1.0 b(2)",
            "│  │  └─ 1.1.1 parallel",
            "│  │     ├─ 1.1.1.0 c()",
            "│  │     └─ 1.1.1.1 plain(5)",
            "│  └─ 1.2 b([3])",
            "└─ 2 series",
            "   ├─ 2.0 a()",
            "   └─ 2.1 parallel",
            "      └─ 2.1.0 c()",
        ]
    )


def test_str_of_nothing_and_of_a_clutch_without_a_name(t: Tasks) -> None:
    assert str(Clutch()) == "Clutch"
    assert str(Clutch(t.a)) == "Clutch\n└─ 0 a()"


def test_an_open_block_can_be_shown(t: Tasks) -> None:
    clutch = Clutch(t.a)
    with clutch.parallel():
        clutch << t.b
        assert str(clutch) == "Clutch\n└─ 0 a()"
        assert repr(clutch) == "<Clutch: 1 step, 2 jobs>"


# --- clear and engage again ---------------------------------------------------------------


def test_clear_removes_steps_and_keeps_settings(t: Tasks) -> None:
    clutch = Clutch(t.a, name="n", queue="q")
    assert clutch.clear() is clutch
    assert len(clutch) == 0
    assert (clutch.name, clutch.plan.scope.queue) == ("n", "q")
    clutch << t.b
    assert shape(clutch.plan) == ["b()"]


def test_each_engage_is_a_run_of_its_own(te: Tasks) -> None:
    clutch = Clutch(te.a)
    first = clutch.engage()
    clutch << te.b
    second = clutch.engage()
    assert first != second
    assert (first.get(), second.get()) == (["a"], ["b"])


def test_tags_from_a_generator_are_those_of_every_run(te: Tasks) -> None:
    clutch = Clutch(te.a, tags=(tag for tag in ["x", "y"]))
    runs = [clutch.engage(), clutch.engage()]
    assert [run.status().tags for run in runs] == [("x", "y"), ("x", "y")]


def test_an_explicit_id_engages_once(te: Tasks) -> None:
    clutch = Clutch(te.a, id="order-7")
    run = clutch.engage()
    assert run.id == "order-7"
    with pytest.raises(AlreadyEngaged, match="order-7"):
        clutch.engage()
    assert ClutchResult("order-7", te.app).get() == ["a"]


def test_an_empty_clutch_sends_nothing_and_has_succeeded(t: Tasks) -> None:
    run = Clutch(app=t.app, name="nothing").engage()
    assert run.state is State.SUCCEEDED
    assert run.get(timeout=0) == []
    assert run.status().total == 0
    assert run.results() == []


# --- wrong steps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (None, "NoneType None"),
        (5, "int 5"),
        ("shop.pay", "str 'shop.pay'"),
        (b"x", "bytes b'x'"),
        ((), r"tuple \(\)"),
        ((1, 2), r"tuple \(1, 2\)"),
        ([1], r"list \[1\]"),
        ({"task": "shop.pay"}, r"dict \{'task': 'shop.pay'\}"),
        (Task, "type <class 'celery.app.task.Task'>"),
        (print, "builtin_function_or_method <built-in function print>"),
        (object, "type <class 'object'>"),
    ],
)
def test_what_is_no_step_is_named(step: Any, named: str) -> None:
    for add in (Clutch, Clutch().add, lambda step: Clutch() << step):
        with pytest.raises(InvalidStep, match=f"not {named}"):
            add(step)
    assert issubclass(InvalidStep, TypeError)


def test_a_list_of_steps_is_no_step_but_an_expression_takes_it(t: Tasks) -> None:
    with pytest.raises(InvalidStep, match="not list"):
        Clutch([t.a, t.b])
    with pytest.raises(InvalidStep, match="not tuple"):
        Clutch((t.a.s(), t.b.s()))
    assert shape(series([t.a, t.b]).plan) == ["a()", "b()"]


def test_the_result_of_a_call_is_no_step(te: Tasks) -> None:
    with pytest.raises(InvalidStep, match="not str 'a'"):
        Clutch(te.a())
    with pytest.raises(InvalidStep, match="not EagerResult"):
        Clutch(te.a.delay())
    with pytest.raises(InvalidStep, match="not ClutchResult"):
        Clutch(Clutch(te.a).engage())


@pytest.mark.parametrize("make", [series, parallel])
@pytest.mark.parametrize("only", [None, 5, "shop.pay", {"task": "shop.pay"}, object()])
def test_an_expression_of_what_is_no_step(make: Any, only: Any) -> None:
    with pytest.raises(InvalidStep, match=f"not {type(only).__name__} "):
        make(only)


def test_a_long_wrong_step_is_not_quoted_in_full() -> None:
    with pytest.raises(InvalidStep) as caught:
        Clutch("x" * 100_000)
    assert len(str(caught.value)) < 500


def test_a_wrong_step_leaves_the_clutch_as_it_was(t: Tasks) -> None:
    clutch = Clutch(t.a)
    for wrong in (None, (1, 2), t.plain.s()):
        with pytest.raises(InvalidStep):
            clutch << wrong
    assert shape(clutch.plan) == ["a()"]


def test_add_takes_arguments_behind_a_task_alone(t: Tasks) -> None:
    for wrong in ("a", t.a.s(), Clutch(t.a)):
        with pytest.raises(InvalidStep, match=f"not {type(wrong).__name__}"):
            Clutch().add(wrong, 1)


@pytest.mark.parametrize("args", [(), (1, 2), ("x", "y", "z")])
def test_a_plain_task_with_arguments_that_do_not_fit(t: Tasks, args: tuple[Any, ...]) -> None:
    # Nobody would be told of it in the worker that sends it, so it is refused here.
    with pytest.raises(InvalidStep, match="plain cannot be called with the arguments"):
        Clutch(t.plain.s(*args))
    with pytest.raises(InvalidStep, match="plain cannot be called"):
        Clutch().add(t.plain, 1, z=3)
    assert len(Clutch(t.plain.s(1, y=2))) == 1


def test_a_signature_without_a_task_name_is_refused(t: Tasks) -> None:
    nameless = Signature({"task": None, "args": (), "kwargs": {}, "options": {}})
    with pytest.raises(InvalidStep, match="no task name"):
        Clutch(nameless)


# --- plain tasks --------------------------------------------------------------------------


def test_plain_says_that_a_value_has_to_be_collected(t: Tasks) -> None:
    by_name = signature("elsewhere.task", args=(1,), app=t.app)
    steps = Clutch(t.a, t.plain.s(1), by_name, signature("a", app=t.app)).plan.steps
    assert [step.plain for step in steps if isinstance(step, Job)] == [False, True, True, False]


# --- ids, names and tags ------------------------------------------------------------------


@pytest.mark.parametrize("good", ["a", "order-7", "A_b.c:d@e+f=g/h~i", "x" * 200, "0"])
def test_good_ids(te: Tasks, good: str) -> None:
    assert Clutch(te.a, id=good).engage().id == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "a b",
        "a\n",
        "\x00",
        "{x}",
        "a{",
        "a*",
        "a\\b",
        "é",
        "x" * 201,
        5,
        b"x",
        ["x"],
        True,
    ],
)
def test_bad_ids(te: Tasks, bad: Any) -> None:
    with pytest.raises(InvalidName, match="cannot be the id of a run") as caught:
        Clutch(te.a, id=bad).engage()
    assert isinstance(caught.value, ValueError)
    assert stored(te.app) == 0


@pytest.mark.parametrize("good", ["a", "Nächtlicher Lauf {7}", "x" * 200, "日本 語"])
def test_good_names_and_tags(te: Tasks, good: str) -> None:
    status = Clutch(te.a, name=good, tags=[good, "two"]).engage().status()
    assert (status.name, status.tags) == (good, (good, "two"))


@pytest.mark.parametrize("bad", ["", "a\nb", "a\tb", "\x00", "\x7f", "\ud800", "x" * 201, 5, b"x"])
def test_bad_names_and_tags(te: Tasks, bad: Any) -> None:
    with pytest.raises(InvalidName, match="cannot be a name"):
        Clutch(te.a, name=bad).engage()
    with pytest.raises(InvalidName, match="cannot be a tag"):
        Clutch(te.a, tags=["good", bad]).engage()
    assert stored(te.app) == 0


def test_a_long_bad_name_is_not_quoted_in_full(te: Tasks) -> None:
    long = "x" * 100_000
    for bad in ({"id": long}, {"name": long}, {"tags": [long]}, {"tags": long}):
        with pytest.raises(InvalidName) as caught:
            Clutch(te.a, **bad).engage()
        assert len(str(caught.value)) < 1000


def test_tags_are_not_one_string(te: Tasks) -> None:
    with pytest.raises(InvalidName, match="not the string 'nightly'"):
        Clutch(te.a, tags="nightly").engage()


def test_tags_are_an_iterable(te: Tasks) -> None:
    with pytest.raises(InvalidName):
        Clutch(te.a, tags=5).engage()  # type: ignore[arg-type]


# --- handlers and queue -------------------------------------------------------------------


@pytest.mark.parametrize("queue", [5, "", b"q", ["q"]])
def test_a_queue_is_a_name(te: Tasks, queue: Any) -> None:
    with pytest.raises(InvalidName, match="queue is the name of a queue"):
        Clutch(te.a, queue=queue).engage()
    assert stored(te.app) == 0


def test_a_clutch_with_an_on_end_is_no_step(t: Tasks) -> None:
    inner = Clutch(t.a, name="inner", on_end=t.told)
    for compose in (series, parallel, Clutch().add, Clutch().__lshift__):
        with pytest.raises(
            BuildError, match=r"<Clutch 'inner'.* has an on_end and cannot be a ste"
        ):
            compose(inner)
    tree = orjson.loads(inner.to_json())
    again = Clutch.from_json(tree, app=t.app).on_end
    assert isinstance(again, Signature)
    assert again.task == "told"
    tree["clutch"] = {"series": [tree["clutch"], {"task": "a"}]}
    with pytest.raises(BuildError, match="step at 0 has an on_end, which only a whole run has"):
        Clutch.from_json(tree, app=t.app).engage()


@pytest.mark.parametrize("kind", ["on_failure", "on_success", "on_death", "on_end"])
class TestHandlers:
    @pytest.mark.parametrize("wrong", ["told", 5, print, {"task": "told"}, (1, 2), [], Clutch()])
    def test_a_wrong_handler_is_named(self, te: Tasks, kind: str, wrong: Any) -> None:
        clutch = Clutch(te.a, **{kind: wrong})
        with pytest.raises(InvalidStep, match=f"{kind} takes a signature or a task, not"):
            clutch.engage()
        assert stored(te.app) == 0

    def test_a_task_and_a_signature(self, t: Tasks, kind: str) -> None:
        for handler, args in [(t.told, ()), (t.told.s("ops"), ("ops",)), (t.told.si(1), (1,))]:
            kept = getattr(Clutch(t.a, **{kind: handler}).plan.scope, kind)
            assert (kept["task"], tuple(kept["args"])) == ("told", args)

    def test_a_handler_json_cannot_carry_is_named(self, te: Tasks, kind: str) -> None:
        with pytest.raises(NonJSONArgument, match=kind):
            Clutch(te.a, **{kind: te.told.s({1, 2})}).engage()

    def test_a_handler_json_cannot_carry_is_refused(self, te: Tasks, kind: str) -> None:
        with pytest.raises(NonJSONArgument):
            Clutch(te.a, **{kind: te.told.s({1, 2})}).engage()
        assert stored(te.app) == 0


# --- arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda t: Clutch(t.a.s({1})), r"job 0 \(a\), args: \$\[0\] "),
        (lambda t: Clutch(t.b, t.a.s(1, [object()])), r"job 1 \(a\), args: \$\[1\]\[0\] "),
        (lambda t: Clutch(t.a.s(x={"y": 1j})), r"job 0 \(a\), kwargs: \$\['x'\]\['y'\] "),
        (lambda t: Clutch(t.a.s().set(shadow=object())), r"job 0 \(a\), options: \$\['shadow'\] "),
        (
            lambda t: Clutch(parallel(t.b, series(t.a, t.c.s(float("nan"))))),
            r"job 0\.1\.1 \(c\), args: \$\[0\] ",
        ),
        (
            lambda t: Clutch(*[t.a] * 40, parallel([t.a] * 200), t.c.s(b=2**64)),
            r"job 41 \(c\), kwargs: \$\['b'\] ",
        ),
        (lambda t: Clutch(t.plain.s(range(3))), r"job 0 \(plain\), args: \$\[0\] "),
    ],
)
def test_an_argument_json_cannot_carry(te: Tasks, make: Any, where: str) -> None:
    with pytest.raises(NonJSONArgument, match=f"^{where}") as caught:
        make(te).engage()
    assert isinstance(caught.value, TypeError)
    assert stored(te.app) == 0


# --- depth --------------------------------------------------------------------------------


def test_a_plan_may_be_so_deep(te: Tasks) -> None:
    step: Any = te.a
    for _ in range(MAX_DEPTH - 1):
        step = parallel(step)
    assert len(Clutch(step)) == 1
    with pytest.raises(PlanTooDeep, match=str(MAX_DEPTH)):
        parallel(step).engage()
    assert stored(te.app) == 0


def test_expressions_far_too_deep(t: Tasks) -> None:
    step: Any = t.a
    with pytest.raises(PlanTooDeep):
        for _ in range(10_000):
            step = parallel(step, t.b)
    with pytest.raises(PlanTooDeep):
        for _ in range(10_000):
            step = Clutch(step, queue="q")


def test_blocks_far_too_deep(t: Tasks) -> None:
    clutch = Clutch(t.b)
    with pytest.raises(PlanTooDeep), ExitStack() as blocks:
        for _ in range(10_000):
            blocks.enter_context(clutch.parallel())
        clutch << t.a
    assert shape(clutch.plan) == ["b()"]


def test_series_in_series_have_no_depth(te: Tasks) -> None:
    step: Any = te.a
    for _ in range(10_000):
        step = series(step)
    assert series(step, te.b).engage().get() == ["b"]


def test_canvas_too_deep(t: Tasks) -> None:
    sig = t.a.si()
    for _ in range(MAX_DEPTH + 1):
        sig = chord([sig], t.b.si())
    with pytest.raises(PlanTooDeep):
        Clutch.from_canvas(sig)


def test_canvas_far_too_deep(t: Tasks) -> None:
    sig = t.a.si()
    for _ in range(100):
        sig = chord([sig], t.b.si())
    with pytest.raises(PlanTooDeep):
        Clutch.from_canvas(sig)


# --- parent -------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", [5, "task", object(), Task, Clutch()])
def test_a_parent_that_is_not_a_task(te: Tasks, parent: Any) -> None:
    with pytest.raises(InvalidParent, match=f"not {type(parent).__name__} ") as caught:
        Clutch(te.a, parent=parent).engage()
    assert isinstance(caught.value, TypeError)
    assert stored(te.app) == 0


def test_a_parent_that_is_not_a_clutch_task(te: Tasks) -> None:
    @te.app.task(name="outer", base=Task, bind=True)
    def outer(self: Task) -> str:
        try:
            Clutch(te.a, parent=self).engage()
        except InvalidParent as exc:
            return str(exc)
        return "engaged"

    (said,) = Clutch(outer).engage().get()
    assert said.startswith("outer cannot wait for a nested clutch")
    assert "base=ClutchTask" in said


def test_a_parent_outside_a_run_changes_nothing(te: Tasks) -> None:
    @te.app.task(name="alone", bind=True)
    def alone(self: Task) -> list[Any]:
        return [Clutch(te.a, parent=self).engage().state]

    assert alone.delay().get() == ["SUCCEEDED"]


# --- what the app cannot do ---------------------------------------------------------------


# --- from_canvas --------------------------------------------------------------------------


def mutable(node: Node) -> Iterator[tuple[str, bool]]:
    for child in children(node):
        if isinstance(child, Job):
            yield shape(child), child.prepend
        else:
            yield from mutable(child)


def test_a_chain(t: Tasks) -> None:
    clutch = Clutch.from_canvas(chain(t.a.s(1), t.b.si(2), t.c.s()))
    assert shape(clutch.plan) == ["a(1)", "b(2)", "c()"]
    assert [prepend for _, prepend in mutable(clutch.plan)] == [True, False, True]


def test_a_group(t: Tasks) -> None:
    assert shape(Clutch.from_canvas(group(t.a.s(1), t.b.s())).plan) == [("a(1)", "b()")]


def test_a_group_from_a_generator(t: Tasks) -> None:
    sig = group(t.a.s(i) for i in range(3))
    assert shape(Clutch.from_canvas(sig).plan) == [("a(0)", "a(1)", "a(2)")]


def test_a_group_of_chains(t: Tasks) -> None:
    sig = group(chain(t.a.s(1), t.b.s()), t.c.s())
    assert shape(Clutch.from_canvas(sig).plan) == [(["a(1)", "b()"], "c()")]


def test_a_chain_that_ends_in_a_group(t: Tasks) -> None:
    sig = chain(t.a.s(1), group(t.b.s(), t.c.si(2)))
    clutch = Clutch.from_canvas(sig)
    assert shape(clutch.plan) == ["a(1)", ("b()", "c(2)")]
    assert [prepend for _, prepend in mutable(clutch.plan)] == [True, True, False]


def test_a_chord(t: Tasks) -> None:
    sig = chord([t.a.s(1), t.b.si()], t.c.s(2))
    assert shape(Clutch.from_canvas(sig).plan) == [("a(1)", "b()"), "c(2)"]


def test_a_chord_whose_body_is_a_chain(t: Tasks) -> None:
    sig = chord([t.a.s(1)], chain(t.b.s(), t.c.s()))
    assert shape(Clutch.from_canvas(sig).plan) == [("a(1)",), "b()", "c()"]


def test_chords_inside_chains_and_chords(t: Tasks) -> None:
    inner = chord([t.a.s(1), t.a.s(2)], t.b.s())
    assert shape(Clutch.from_canvas(chain(t.c.s(), inner, t.c.s())).plan) == [
        "c()",
        ("a(1)", "a(2)"),
        "b()",
        "c()",
    ]
    assert shape(Clutch.from_canvas(chord([inner, t.c.s()], t.c.s(9))).plan) == [
        ([("a(1)", "a(2)"), "b()"], "c()"),
        "c(9)",
    ]


def test_a_group_in_the_middle_of_a_chain(t: Tasks) -> None:
    sig = chain(t.a.s(1), group(t.b.s(1), t.b.s(2)), t.c.s())
    assert shape(Clutch.from_canvas(sig).plan) == ["a(1)", ("b(1)", "b(2)"), "c()"]


def test_canvas_is_a_step_too(t: Tasks) -> None:
    clutch = Clutch(t.c.s(0), chain(t.a.s(1), t.b.s()), chord([t.a.s(2), t.a.s(3)], t.b.si(4)))
    assert shape(clutch.plan) == ["c(0)", "a(1)", "b()", ("a(2)", "a(3)"), "b(4)"]
    # A signature on its own takes nothing; inside canvas Celery's rule holds.
    assert [prepend for _, prepend in mutable(clutch.plan)] == [False, *[True] * 4, False]


def test_maps_and_chunks(t: Tasks) -> None:
    clutch = Clutch.from_canvas(chain(t.a.s(), t.b.map([1, 2]), t.b.starmap([(1, 2)])))
    assert [prepend for _, prepend in mutable(clutch.plan)] == [True, False, False]
    assert len(Clutch(t.b.map([1, 2]))) == 1


def test_chunks_are_a_parallel(t: Tasks) -> None:
    (step,) = Clutch.from_canvas(t.b.chunks([(1,), (2,), (3,)], 2)).plan.steps
    assert isinstance(step, Parallel)
    jobs = [child for child in step.branches if isinstance(child, Job)]
    assert [job.task for job in jobs] == ["celery.starmap"] * 2
    assert [sorted(job.kwargs) for job in jobs] == [["it", "task"]] * 2


def test_partial_arguments_of_a_chain_go_to_its_first_task(t: Tasks) -> None:
    sig = chain(t.a.s(1), t.b.s())
    sig.args = (9,)  # Celery's own clone() loses them
    assert shape(Clutch.from_canvas(sig).plan) == ["a(9, 1)", "b()"]


def test_partial_arguments_of_a_chord_go_to_its_header(t: Tasks) -> None:
    sig = chord([t.a.s(1), t.b.si(2)], t.c.s()).clone(args=(9,))
    assert shape(Clutch.from_canvas(sig).plan) == [("a(9, 1)", "b(2)"), "c()"]


def options_of(node: Node) -> dict[str, Any]:
    """The options of each job, by task name."""
    found: dict[str, Any] = {}
    for child in children(node):
        if isinstance(child, Job):
            found[child.task] = child.options
        else:
            found.update(options_of(child))
    return found


def test_options_of_signatures_are_kept(t: Tasks) -> None:
    options = {
        "queue": "q",
        "countdown": 5,
        "expires": 60,
        "priority": 3,
        "time_limit": 10,
        "soft_time_limit": 9,
        "headers": {"mine": 1},
    }
    for clutch in (
        Clutch(t.a.s().set(**options)),
        Clutch.from_canvas(t.a.s().set(**options)),
        Clutch.from_canvas(chain(t.b.s(), t.a.s().set(**options))),
        Clutch.from_canvas(chord([t.a.s().set(**options)], t.b.s())),
    ):
        assert options_of(clutch.plan)["a"] == options


def test_what_celery_wrote_into_a_signature_it_sent_is_left_out(t: Tasks) -> None:
    sig = t.a.s(1)
    sig.freeze()
    assert "task_id" in sig.options
    job = Clutch(sig).plan.steps[0]
    assert isinstance(job, Job)
    assert not {"task_id", "root_id", "parent_id", "group_id", "reply_to"} & set(job.options)


def test_options_of_a_chain_go_where_celery_puts_them(t: Tasks) -> None:
    sig = chain(t.a.s(), t.b.s(), t.c.s())
    sig.set(countdown=7)
    sig.link(t.told.s("after"))
    sig.link_error(t.told.s("wrong"))
    found = options_of(Clutch.from_canvas(sig).plan)
    assert [found[name].get("countdown") for name in "abc"] == [7, None, None]
    assert ["link" in found[name] for name in "abc"] == [False, False, True]
    assert ["link_error" in found[name] for name in "abc"] == [True, True, True]


def test_links_of_a_chain_join_those_of_its_tasks(t: Tasks) -> None:
    first, last = t.a.s(), t.b.s()
    first.link_error(t.told.s("own"))
    last.link(t.told.s("own"))
    sig = chain(first, last)
    sig.link(t.told.s("chain"))
    sig.link_error(t.told.s("chain"))
    found = options_of(Clutch.from_canvas(sig).plan)
    assert len(found["a"]["link_error"]) == 2
    assert len(found["b"]["link"]) == 2


def test_links_of_signatures_are_kept(t: Tasks) -> None:
    sig = t.a.s()
    sig.link(t.b.s(1))
    sig.link_error(t.c.s(2))
    found = options_of(Clutch(sig, t.c).plan)["a"]
    assert [each["task"] for each in found["link"]] == ["b"]
    assert [each["task"] for each in found["link_error"]] == ["c"]


def test_options_of_a_group_go_to_each_task(t: Tasks) -> None:
    sig = group(t.a.s(), t.b.s())
    sig.set(queue="q")
    clutch = Clutch.from_canvas(sig)
    assert {name: found["queue"] for name, found in options_of(clutch.plan).items()} == {
        "a": "q",
        "b": "q",
    }
    assert shape(clutch.plan) == [("a()", "b()")]


def test_options_of_the_clutch_go_with_it(t: Tasks) -> None:
    clutch = Clutch.from_canvas(t.a.s(), name="n", queue="q", tags=["x"], id="i")
    assert (clutch.name, clutch.queue, clutch.id) == ("n", "q", "i")


@pytest.mark.parametrize("wrong", [None, "a", {"task": "a"}, 5, Clutch(), [], Task])
def test_from_canvas_takes_a_signature(wrong: Any) -> None:
    with pytest.raises(InvalidStep, match=f"not {type(wrong).__name__} "):
        Clutch.from_canvas(wrong)


def test_errbacks_of_a_chord_are_kept_with_its_header(t: Tasks) -> None:
    sig = chord([t.a.s(1), t.b.s(2)], t.c.s())
    sig.link_error(t.a.s("failed"))
    clutch = Clutch.from_canvas(sig)
    header = clutch.plan.steps[0]
    assert isinstance(header, Parallel)
    assert header.scope.errbacks is not None
    assert [each["args"] for each in header.scope.errbacks["options"]["link_error"]] == [
        ("failed",)
    ]
    assert options_of(clutch.plan)["c"]["link_error"]
    text = clutch.to_json()
    assert Clutch.from_json(text, app=t.app).to_json() == text


@pytest.mark.parametrize("allowed", [False, True])
def test_errbacks_of_a_chain_reach_headers_where_celery_is_told_so(t: Tasks, allowed: bool) -> None:
    t.app.conf.task_allow_error_cb_on_chord_header = allowed
    sig = chain(group(t.a.s(), t.b.s()), t.c.s())
    sig.link_error(t.told.s("wrong"))
    for adopted in (sig, chain(t.c.s(), chord(group(t.a.s(), t.b.s()), t.c.s()), t.c.s())):
        adopted.link_error(t.told.s("wrong"))
        found = options_of(Clutch.from_canvas(adopted).plan)
        assert ["link_error" in found[name] for name in "abc"] == [allowed, allowed, True]


def test_a_chord_without_errbacks_has_none_to_keep(t: Tasks) -> None:
    header, _ = Clutch.from_canvas(chord([t.a.s(1), t.b.s(2)], t.c.s())).plan.steps
    assert not header.scope


def test_a_frozen_canvas_is_taken(t: Tasks) -> None:
    sig = chain(t.a.s(1), group(t.a.s(), t.b.s()), t.c.s())
    sig.freeze()
    assert shape(Clutch.from_canvas(sig).plan) == ["a(1)", ("a()", "b()"), "c()"]


@pytest.mark.parametrize("header", [[], group()])
def test_the_body_behind_an_empty_header_gets_an_empty_list(t: Tasks, header: Any) -> None:
    sig = chain(t.a.s(1), chord(header, t.b.s(2)), t.c.s())
    body, last = Clutch.from_canvas(sig).plan.steps[1:]
    assert (body.args, body.prepend) == (([], 2), False)
    assert last.prepend


def test_from_canvas_does_not_change_the_canvas(t: Tasks) -> None:
    sig = chain(t.a.s(1), chord([t.b.s(2), t.b.s(3)], t.c.s())).clone(args=(9,))
    before = repr(sig), dict(sig)
    Clutch.from_canvas(sig)
    Clutch.from_canvas(sig)
    assert (repr(sig), dict(sig)) == before
