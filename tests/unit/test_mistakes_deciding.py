"""Mistakes in choices, maps, and parallels that go on without some of their branches: each is said
before anything is stored, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_clutch import Clutch, named, parallel, series
from celery_clutch.errors import BuildError, InvalidName, InvalidStep, NonJSONArgument, PlanTooDeep
from celery_clutch.extend.plugins import forget_runtime, runtime

from .conftest import make_app

app = make_app()


@app.task(name="a")
def a(x: Any = None) -> Any:
    return x


@app.task(name="b")
def b(x: Any = None) -> Any:
    return x


@pytest.fixture(autouse=True)
def nothing_is_stored() -> Iterator[None]:
    yield
    assert not runtime(app).store.scan()[0]
    forget_runtime(app)


NAN = float("nan")

# --- tolerance and quorum -----------------------------------------------------------------------


@pytest.mark.parametrize("allow", ["x", "0.5", b"x", None, -1, -0.5, 1.0, 1.5, NAN, [1], {}])
def test_allow_failures(allow: Any) -> None:
    said = "allow_failures is a number of branches, a share of them below 1, or True for all, not "
    with pytest.raises(BuildError, match=said):
        parallel(a, b, allow_failures=allow)
    with pytest.raises(BuildError, match=said):
        Clutch(a).map(b, allow_failures=allow)
    with pytest.raises(BuildError, match=said):
        Clutch().parallel(allow_failures=allow)


@pytest.mark.parametrize("need", ["x", 0, -1, 1.0, 1.5, NAN, True, False, [1]])
def test_need(need: Any) -> None:
    said = "need is a number of at least 1, not "
    with pytest.raises(BuildError, match=said):
        parallel(a, b, need=need)
    with pytest.raises(BuildError, match=said):
        Clutch(a).map(b, need=need)


@pytest.mark.parametrize("limit", [None, 1])
def test_more_are_needed_than_there_are(limit: int | None) -> None:
    clutch = Clutch(a, parallel(a, b, need=3, max_concurrency=limit))
    with pytest.raises(InvalidStep, match="parallel at 1 needs 3 of its 2 branches"):
        clutch.engage()


@pytest.mark.parametrize(("need", "allow"), [(2, 1), (1, 2), (2, 0.5)])
def test_need_and_allow_failures_that_contradict_each_other(need: int, allow: Any) -> None:
    with pytest.raises(
        InvalidStep, match=f"needs {need} of its 2 branches, and so it cannot allow"
    ):
        parallel(a, b, need=need, allow_failures=allow).engage()


def test_need_where_all_may_fail() -> None:
    said = "allow_failures=True .* need=1 .*: give one of them"
    with pytest.raises(BuildError, match=said):
        parallel(a, b, need=1, allow_failures=True)
    with pytest.raises(BuildError, match=said):
        Clutch(a).map(b, need=1, allow_failures=True)


# --- maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clutch", "address"),
    [
        (Clutch().map(a), "0"),
        (parallel(Clutch().map(a), b), r"0\.0"),
        (Clutch(a).map(Clutch().map(b)), "1.%"),
        (Clutch(a).map(series(Clutch().map(b), a)), r"1\.%\.0"),
    ],
    ids=["clutch", "branch", "map", "series in a map"],
)
def test_a_map_that_is_the_first_step(clutch: Clutch, address: str) -> None:
    with pytest.raises(InvalidStep, match=f"map at {address} has no step before it that could"):
        clutch.engage()


@pytest.mark.parametrize("template", [Clutch(), parallel([]), series()])
def test_a_map_of_nothing(template: Clutch) -> None:
    with pytest.raises(InvalidStep, match="map needs a step to run for each element, and <Clutch"):
        Clutch(a).map(template)


@pytest.mark.parametrize("template", [5, None, "a", [a, b], {"task": "a"}])
def test_a_map_of_what_is_no_step(template: Any) -> None:
    with pytest.raises(InvalidStep, match="a step is a signature, a task"):
        Clutch(a).map(template)


@pytest.mark.parametrize(
    "options", [{"args": 5}, {"args": "xy"}, {"kwargs": 5}, {"kwargs": [1]}, {"kwargs": {1: 2}}]
)
def test_arguments_of_a_map(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidStep, match="map takes args, a list, and kwargs, a mapping of names"):
        Clutch(a).map(b, **options)


def test_arguments_of_a_map_of_what_is_no_task() -> None:
    for template in (b.s(1), Clutch(b), (b, 1)):
        with pytest.raises(InvalidStep, match="map takes a task before arguments, not"):
            Clutch(a).map(template, args=[2])


def test_arguments_that_do_not_fit_beside_the_element() -> None:
    with pytest.raises(InvalidStep, match=r"job 1.% \(b\) cannot be called with the arguments"):
        Clutch(a).map(b, args=[1]).engage()


def test_arguments_of_a_map_that_json_cannot_carry() -> None:
    @app.task(name="two")
    def two(x: Any, y: Any) -> None: ...

    with pytest.raises(NonJSONArgument):
        Clutch(a).map(two, kwargs={"y": object()}).engage()


@pytest.mark.parametrize("name", [5, "", "1.2", "x\n"])
def test_names_of_maps_and_choices(name: Any) -> None:
    with pytest.raises(InvalidName):
        Clutch(a).map(b, name=name)
    with pytest.raises(InvalidName):
        Clutch(a).choose(a, {"x": b}, name=name)


@pytest.mark.parametrize(
    "clutch",
    [
        Clutch(named(a, "x")).map(named(b, "x")),
        Clutch(a).map(series(named(a, "x"), named(b, "x"))),
        Clutch().choose(a, {"one": named(a, "x"), "two": named(b, "x")}),
        Clutch(named(a, "x")).choose(named(a, "x"), {"one": b}),
    ],
    ids=["before a map", "in a map", "options", "a decider"],
)
def test_two_steps_of_one_name(clutch: Clutch) -> None:
    with pytest.raises(InvalidName, match="two steps of the clutch are named 'x', the step at "):
        clutch.engage()


def test_maps_in_maps_without_end() -> None:
    clutch = Clutch(a)
    with pytest.raises(PlanTooDeep, match="more than 64 deep"):
        for _ in range(70):
            clutch = Clutch(a).map(clutch)


# --- choices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, None, 5, [b], "x"])
def test_a_choice_without_options(options: Any) -> None:
    with pytest.raises(InvalidStep, match="choose takes a mapping of values to steps, not "):
        Clutch().choose(a, options)


@pytest.mark.parametrize("option", [5, None, "b", [a, b]])
def test_options_that_are_no_steps(option: Any) -> None:
    with pytest.raises(InvalidStep, match="a step is a signature, a task"):
        Clutch().choose(a, {"x": option})
    if option is not None:
        with pytest.raises(InvalidStep, match="a step is a signature, a task"):
            Clutch().choose(a, {"x": b}, default=option)


@pytest.mark.parametrize("decider", [Clutch(a, b), Clutch(), parallel(a), a.s() | b.s()])
def test_only_one_task_decides(decider: Any) -> None:
    for compose in (lambda: Clutch().choose(decider, {"x": b}), lambda: Clutch(a).when(decider)):
        with pytest.raises(InvalidStep, match="what decides is one task, not "):
            compose()


@pytest.mark.parametrize("decider", [5, None, "a", lambda: True])
def test_what_is_no_task_does_not_decide(decider: Any) -> None:
    for compose in (lambda: Clutch().choose(decider, {"x": b}), lambda: Clutch(a).when(decider)):
        with pytest.raises(InvalidStep, match="a step is a signature, a task"):
            compose()


@pytest.mark.parametrize(
    "key", [(1, 2), frozenset("x"), b"x", NAN, float("inf"), 2**70, "\ud800"], ids=repr
)
def test_keys_that_no_value_has(key: Any) -> None:
    with pytest.raises(InvalidStep, match="the key of an option"):
        Clutch().choose(a, {key: b})


def test_arguments_of_what_decides_and_of_options() -> None:
    with pytest.raises(InvalidStep, match=r"job 0.0 \(a\) cannot be called"):
        Clutch().choose(a.s(1, 2), {"x": b}).engage()
    with pytest.raises(InvalidStep, match=r"job 0.1 \(b\) cannot be called"):
        Clutch().choose(a, {"x": b.s(1, 2)}).engage()


def test_when_without_a_step_before() -> None:
    with pytest.raises(BuildError, match=r"when\(\) is of the step that was added last, and none"):
        Clutch().when(a)
    clutch = Clutch(a)
    with clutch.parallel():
        with pytest.raises(BuildError, match="none was: add the step before"):
            clutch.when(a)


def test_when_of_what_adds_no_step() -> None:
    """A list of steps may be empty, and then there is nothing that could run."""
    assert len(parallel([]).when(a)) == len(series([]).when(a)) == 0
    clutch = Clutch(a)
    clutch << Clutch()
    assert len(clutch.when(b)) == 1


# --- as JSON ------------------------------------------------------------------------------------

A = {"task": "a"}


def choice(*options: Any, **more: Any) -> dict[str, Any]:
    return {"choose": A, "options": list(options), **more}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"map": 5}, "5 is not a step"),
        ({"map": [A]}, "is not a step"),
        ({"map": {"series": []}}, "map needs a step to run for each element"),
        ({"map": A, "limit": 0}, "limit is a number of at least 1, not 0"),
        ({"map": A, "allow": "x"}, "allow_failures is a number of branches, .* not 'x'"),
        ({"map": A, "need": -1}, "need is a number of branches of at least 1, not -1"),
        ({"map": A, "need": True}, "need is a number .* not True"),
        ({"map": A, "need": 1, "allow": True}, "give one of them"),
        ({"map": A, "wide": 1}, "unknown keys: wide"),
        ({"map": A, "choose": A}, "has to have one of: task, series, parallel, map, choose"),
        ({"parallel": [A], "allow": 2.5}, "allow_failures is .* not 2.5"),
        ({"choose": A}, "options are a list of pairs of key and step, not None"),
        ({"choose": A, "options": {"x": A}}, "options are a list of pairs .* not {"),
        (choice(), r"options are a list of pairs of key and step, not \[\]"),
        (choice(["5"]), "options are a list of pairs"),
        (choice("ab"), "options are a list of pairs"),
        (choice(["5", 5]), "5 is not a step"),
        (choice([5, A]), "5 is not the key of an option"),
        (choice(["x", A]), "'x' is not the key of an option, which is the JSON of a string"),
        (choice(["[1]", A]), "is not the key of an option"),
        (choice([" 5", A]), "without blanks"),
        (choice(["5", A], ["5", A]), "two options have the key 5"),
        (choice(["5", A], default=None), "None is not a step"),
        (choice(["5", A], limit=1), "unknown keys: limit"),
        (choice(["5", A], truth=1), "truth is true or false, not 1"),
        (choice(["5", A], truth=True), 'with "truth" there is one option'),
        (choice(["true", A], truth=True, default=A), 'with "truth" there is one option'),
        ({"choose": {"series": [A]}, "options": [["5", A]]}, "only a task decides"),
        ({"choose": 5, "options": [["5", A]]}, "5 is not a step"),
    ],
)
def test_json(step: Any, said: str) -> None:
    with pytest.raises(InvalidStep, match=f"this is not the JSON of a clutch: .*{said}"):
        Clutch.from_json({"clutch": {"series": [A, step]}}, app=app)


COMPOSE: list[Callable[[], Clutch]] = [
    lambda: Clutch(a).when(b),
    lambda: Clutch().choose(a, {"eu": b, None: Clutch(), 5: series(a, b), True: a, 1.5: a}),
    lambda: Clutch().choose(a, {"eu": b}, default=parallel(a, b), name="route"),
    lambda: Clutch(a).map(series(b, a), max_concurrency=2, allow_failures=0.5, name="all"),
    lambda: parallel(a, b, need=1),
]


@pytest.mark.parametrize("compose", COMPOSE)
def test_json_and_back(compose: Callable[[], Clutch]) -> None:
    clutch = compose()
    again = Clutch.from_json(clutch.to_json(), app=app)
    assert again.plan == clutch.plan
