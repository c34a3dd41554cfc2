"""Mistakes that people make, and what they are told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest
from celery import Celery, Task, chain

from celery_clutch import Clutch, ClutchResult, ClutchTask, named, parallel, series
from celery_clutch.compile.values import read as read_members
from celery_clutch.errors import (
    BuildError,
    ClutchFailed,
    ConfigurationError,
    InvalidOption,
    InvalidParent,
    InvalidStep,
    MissingResult,
    NonJSONArgument,
    UnknownAddress,
    UnknownStore,
)
from celery_clutch.extend.plugins import Plugins, runtime
from celery_clutch.extend.settings import Settings
from celery_clutch.operate.doctor import examine
from celery_clutch.testing import embedded

from .conftest import make_app

# --- results that are not there -----------------------------------------------------------


class Gate:
    """An app with a job that waits until it is let go."""

    def __init__(self) -> None:
        self.app = make_app()
        self.open = threading.Event()

        @self.app.task(name="wait")
        def wait() -> str:
            self.open.wait(30)
            return "waited"

        @self.app.task(name="die")
        def die() -> None:
            raise ValueError("no money")

        @self.app.task(name="tell", bind=True)
        def tell(job: ClutchTask) -> list[Any]:
            return job.previous_results

        self.wait, self.die, self.tell = wait, die, tell


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    with embedded(gate.app):
        yield gate
        gate.open.set()


def test_a_result_of_a_job_that_has_not_ended(gate: Gate) -> None:
    run = series(gate.wait, gate.tell).engage()
    for address in ("0", "1", None):
        with pytest.raises(MissingResult, match="has no result yet: the run is RUNNING"):
            run.results(address)
    gate.open.set()
    assert run.get(timeout=10) == [["waited"]]
    assert run.results("0") == "waited"


def test_a_result_of_a_job_that_is_dead(gate: Gate) -> None:
    run = series(gate.die, gate.tell).engage()
    run.get(timeout=10, propagate=False)
    with pytest.raises(MissingResult, match=r"0 .* has no result: it died of ValueError: no money"):
        run.results("0")
    with pytest.raises(MissingResult, match=r"1 .* has no result: the run is FAILED"):
        run.results("1")


def test_a_result_of_a_run_that_is_gone(gate: Gate) -> None:
    gate.open.set()
    run = series(gate.wait, gate.tell).engage()
    run.get(timeout=10)
    run.forget()
    store = runtime(gate.app).store
    with pytest.raises(MissingResult, match=f"run {run.id} is gone: it was forgotten, or has exp"):
        read_members(store, run.id, ["0"])


def test_a_result_that_was_evicted(gate: Gate) -> None:
    gate.open.set()
    run = series(gate.wait, gate.tell).engage()
    run.get(timeout=10)
    lose_results(runtime(gate.app).store, run.id)
    for read in (lambda: run.results("0"), run.results, run.get):
        with pytest.raises(MissingResult, match="had a result that is no longer in the store"):
            read()


def lose_results(store: Any, run: str) -> None:
    """What a server does that evicts keys."""
    with store.transaction(run) as rows:
        for address in ("0", "1"):
            rows.put("result", address, None)


@pytest.mark.parametrize("address", [0, 1.0, "", "x", "5", ("0",), True])
def test_an_address_that_the_plan_does_not_have(eager: Celery, address: Any) -> None:
    @eager.task(name="one")
    def one() -> int:
        return 1

    run = Clutch(one).engage()
    with pytest.raises(UnknownAddress, match="an address is a string such as"):
        run.results(address)
    assert run.results("0") == 1


# --- arguments and options ----------------------------------------------------------------


@pytest.fixture
def takes(app: Celery) -> Any:
    @app.task(name="shop.takes")
    def takes(number: int, *, unit: str = "g") -> None: ...

    return takes


@pytest.mark.parametrize("args", [(), (1, 2)])
def test_arguments_that_do_not_fit(app: Celery, takes: Any, args: tuple[Any, ...]) -> None:
    clutch = Clutch(takes.s(1), takes.s(*args))
    with pytest.raises(InvalidStep, match=r"job 1 \(shop.takes\) cannot be called .* argument"):
        clutch.engage()
    assert not runtime(app).store.scan()[0]
    assert issubclass(InvalidStep, TypeError)


def test_arguments_are_looked_at_as_celery_does(app: Celery, takes: Any) -> None:
    @app.task(name="loose", typing=False)
    def loose() -> None: ...

    @app.task(name="bound", bind=True)
    def bound(self: ClutchTask, number: int) -> None: ...

    assert Clutch(loose.s(1, 2), bound.s(1), takes.s(1, unit="kg")).engage()
    with pytest.raises(InvalidStep, match="bound"):
        Clutch(bound.s(1, 2)).engage()


def test_a_previous_result_is_an_argument(app: Celery, takes: Any) -> None:
    assert Clutch.from_canvas(takes.s(1) | takes.s()).engage()
    with pytest.raises(InvalidStep, match="job 1 "):
        Clutch.from_canvas(takes.s(1) | takes.s(2)).engage()
    with pytest.raises(InvalidStep, match="job 0 "):  # nothing goes before its arguments
        Clutch.from_canvas(takes.s()).engage()


def test_json_is_looked_at_too(app: Celery, takes: Any) -> None:
    text = Clutch(takes.s(1, 2)).to_json()
    with pytest.raises(InvalidStep, match="job 0 "):
        Clutch.from_json(text, app=app).engage()


def test_an_argument_that_celery_could_not_read(app: Celery, takes: Any) -> None:
    tagged = {"__type__": "money", "__value__": 5}
    with pytest.raises(
        NonJSONArgument, match=r"^job 0 \(shop.takes\), args: \$\[0\] cannot be sent"
    ):
        Clutch(takes.s(tagged)).engage()
    assert not runtime(app).store.scan()[0]


def test_bind_is_missing(app: Celery) -> None:
    @app.task(name="publish")
    def publish(self: Any, url: str) -> None: ...

    with pytest.raises(InvalidStep, match=r"@app.task\(bind=True\) is missing"):
        Clutch(publish.s("url")).engage()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("expires", "soon"),
        ("expires", True),
        ("eta", "tomorrow"),
        ("eta", 5),
        ("countdown", "5"),
        ("countdown", float("nan")),
        ("time_limit", "x"),
        ("time_limit", 0),
        ("soft_time_limit", -1),
        ("priority", "high"),
        ("priority", 1000),
        ("serializer", "jason"),
        ("compression", "lzip"),
        ("queue", 5),
        ("headers", "x"),
    ],
)
def test_options_that_celery_cannot_send(app: Celery, takes: Any, option: str, value: Any) -> None:
    said = f"{option} is .*, not "
    with pytest.raises(InvalidOption, match=rf"job 1 \(shop.takes\): {said}"):
        Clutch(takes.s(1), takes.s(2).set(**{option: value})).engage()
    with pytest.raises(InvalidOption, match=f"engage: {said}"):
        Clutch(takes.s(1)).engage(**{option: value})
    with pytest.raises(InvalidOption, match=rf"on_death \(shop.takes\): {said}"):
        Clutch(takes.s(1), on_death=takes.s(2).set(**{option: value})).engage()
    with pytest.raises(InvalidOption, match=rf"on_end \(shop.takes\): {said}"):
        Clutch(takes.s(1), on_end=takes.s(2).set(**{option: value})).engage()
    assert not runtime(app).store.scan()[0]


def test_options_that_celery_can_send(app: Celery, takes: Any) -> None:
    when = datetime(2030, 1, 1, tzinfo=timezone.utc)
    for options in (
        {"expires": 60, "countdown": 0.5, "priority": 9, "queue": "q", "headers": {"a": 1}},
        {"expires": when, "eta": when, "serializer": "json", "compression": "gzip"},
        {"expires": "2030-01-01T00:00:00Z", "eta": when.isoformat()},
        {"time_limit": 10, "soft_time_limit": 5.5, "retry_policy": {"max_retries": 1}},
    ):
        assert Clutch(takes.s(1).set(**options)).engage()
        assert Clutch(takes.s(1)).engage(**options)


def test_a_soft_time_limit_above_the_hard_one(takes: Any) -> None:
    with pytest.raises(InvalidOption, match="soft_time_limit 10 is more than time_limit 5"):
        Clutch(takes.s(1).set(time_limit=5, soft_time_limit=10)).engage()


@pytest.mark.parametrize("option", ["name", "id", "tags", "data", "on_failure", "parent", "app"])
def test_what_engage_takes_no_more(takes: Any, option: str) -> None:
    with pytest.raises(InvalidOption, match=rf"{option} is an argument .* Clutch\({option}=...\)"):
        Clutch(takes.s(1)).engage(**{option: "x"})


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("id", r"Clutch\(id=...\); the id of its message is task_id"),
        ("name", r"named\(step, name\)"),
        ("parent", r"Clutch\(parent=...\)"),
        ("on_failure", r"Clutch\(on_failure=...\)"),
        ("on_end", r"Clutch\(on_end=...\)"),
    ],
)
def test_what_a_step_does_not_take(app: Celery, takes: Any, option: str, fix: str) -> None:
    said = rf"job 1 \(shop.takes\): {option} is no option of a step: .*{fix}"
    with pytest.raises(InvalidOption, match=said):
        Clutch(takes.s(1), takes.s(2).set(**{option: "x"})).engage()
    assert not runtime(app).store.scan()[0]


@pytest.mark.parametrize("option", ["args", "kwargs", "link", "link_error", "task_id"])
def test_what_belongs_to_a_step(takes: Any, option: str) -> None:
    with pytest.raises(InvalidOption, match=f"{option} belongs to a step"):
        Clutch(takes.s(1)).engage(**{option: "x"})


def test_the_start_of_a_nested_clutch_takes_no_options(eager: Celery) -> None:
    @eager.task(name="outer", bind=True)
    def outer(self: ClutchTask) -> None:
        Clutch(outer, parent=self).engage(countdown=5)

    (failure,) = Clutch(outer).engage().failures()
    assert "countdown cannot be set for a nested clutch" in failure.message


# --- what reads as Celery's, or as a function ----------------------------------------------


WRITTEN: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda a: Clutch().parallel(a, a),
        r"parallel\(\) .* 'with clutch.parallel\(\):' .* << parallel",
    ),
    (lambda a: Clutch().series(a), r"series\(\) .* 'with clutch.series\(\):' .* << series"),
    (lambda a: Clutch(a).map(a, [1, 2]), r"the step before returns.* parallel\(task.s\(each\)"),
    (lambda a: a.s() | parallel(a, a), r"series\(a, b\)"),
    (lambda a: parallel(a, a) | a.s(), r"series\(a, b\)"),
    (lambda a: a | parallel(a, a), r"series\(a, b\)"),
    (lambda a: (a.s() | a.s()) | Clutch(a), r"series\(a, b\)"),
    (lambda a: chain(a.s(), Clutch(a)), r"series\(a, b\)"),
]


@pytest.mark.parametrize(("write", "fix"), WRITTEN)
def test_what_is_written_as_something_else(
    takes: Any, write: Callable[[Any], Any], fix: str
) -> None:
    with pytest.raises(InvalidStep, match=fix):
        write(takes)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("delay", r"engage\(\)"),
        ("apply_async", r"engage\(\*\*options\)"),
        ("apply", r"engage\(\)"),
        ("get", r"engage\(\)\.get\(timeout=...\)"),
    ],
)
def test_a_clutch_is_no_signature(takes: Any, name: str, fix: str) -> None:
    clutch = Clutch(takes.s(1))
    with pytest.raises(BuildError, match=f"a clutch has no {name}: write clutch.{fix}"):
        getattr(clutch, name)()
    assert not hasattr(clutch, name)
    with pytest.raises(AttributeError, match="'Clutch' object has no attribute 'frob'"):
        clutch.frob  # type: ignore[attr-defined]


# --- names --------------------------------------------------------------------------------


def test_a_near_miss_of_a_name(app: Celery, takes: Any, caplog: pytest.LogCaptureFixture) -> None:
    missed = app.signature("shop.take", (1,))
    Clutch(missed, missed, app.signature("elsewhere.count")).engage()
    (record,) = caplog.records
    assert "'shop.take' here; is it 'shop.takes' that is meant" in record.getMessage()


@pytest.mark.parametrize(
    ("scheme", "package"),
    [
        ("django", "celery-clutch-django"),
        ("sqlite", "celery-clutch-sqlalchemy"),
        ("postgresql", "celery-clutch-sqlalchemy"),
        ("postgresql+psycopg", "celery-clutch-sqlalchemy"),
        ("mariadb", "celery-clutch-sqlalchemy"),
        ("mysql", "celery-clutch-sqlalchemy"),
    ],
)
def test_a_store_of_a_plugin_that_is_not_installed(scheme: str, package: str) -> None:
    with pytest.raises(
        UnknownStore,
        match=f"{scheme}://: it comes with .* pip install {package}$".replace("+", r"\+"),
    ):
        Plugins(()).open(Settings(f"{scheme}://x"))


def test_a_near_miss_of_a_store() -> None:
    with pytest.raises(UnknownStore, match="Is it postgresql:// that is meant"):
        Plugins(()).open(Settings("postgres://x"))


# --- the app ------------------------------------------------------------------------------


def test_protocol_1_is_refused(takes: Any) -> None:
    takes.app.conf.task_protocol = 1
    with pytest.raises(ConfigurationError, match="task_protocol is 1"):
        Clutch(takes.s(1)).engage()
    (found,) = [each for each in examine(takes.app) if "task_protocol" in each.what]
    assert found.severity == "problem"


NO_APP = """
from celery_clutch import Clutch, ClutchResult
from celery_clutch.errors import NoApp
from celery import signature

for use in (lambda: ClutchResult("x").state, Clutch(signature("a")).engage, Clutch().engage):
    try:
        use()
    except NoApp as exc:
        print(exc)
"""


def test_no_app() -> None:
    said = subprocess.run(
        [sys.executable, "-c", NO_APP], capture_output=True, text=True, timeout=60
    )
    assert said.stdout.count("import the module that makes yours first, or pass app=") == 3, said


# --- composing ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parallel", "series"])
def test_a_block_without_with(app: Celery, takes: Any, kind: str) -> None:
    clutch = Clutch(takes.s(1))
    getattr(clutch, kind)()
    clutch << takes.s(2)
    for use in (clutch.engage, lambda: Clutch(clutch)):
        with pytest.raises(BuildError, match=rf"{kind}\(\) was called without with"):
            use()
    assert clutch.clear() is clutch
    clutch << takes.s(3)
    assert clutch.engage()


def test_a_block_may_be_entered_later(takes: Any) -> None:
    clutch = Clutch()
    block = clutch.parallel()
    with block:
        clutch << takes.s(1) << takes.s(2)
    assert clutch.engage().plan().steps[0].size == 2  # type: ignore[union-attr]


def test_a_comma_between_steps(takes: Any, recwarn: pytest.WarningsRecorder) -> None:
    clutch = Clutch()
    more = takes.s(2)
    clutch << takes.s(1), more
    (warning,) = recwarn
    assert issubclass(warning.category, SyntaxWarning)
    assert "what is behind the comma" in str(warning.message)
    assert warning.filename == __file__
    assert len(clutch) == 1


def test_a_comma_between_steps_each_time_warns_of_other_values(takes: Any) -> None:
    clutch = Clutch()
    with pytest.warns(SyntaxWarning):
        clutch << takes.s(1), takes.s(2), Clutch(takes.s(3))


def test_tuples_that_lose_nothing(takes: Any, recwarn: pytest.WarningsRecorder) -> None:
    clutch = Clutch()
    kept = clutch << takes.s(1), 5
    print(clutch << takes.s(2), "said")
    clutch << (takes, 3)
    clutch << takes.s(4)
    listed = [(clutch << takes.s(n), n) for n in (5, 6)]
    series(clutch << takes.s(7), takes.s(8))
    assert (clutch << takes.s(9), 1) == (clutch, 1)
    assert kept[0] is listed[0][0] is clutch
    assert not recwarn.list


def test_a_task_is_no_argument_of_a_task(takes: Any) -> None:
    for step in ((takes, takes), (takes, 1, takes)):
        with pytest.raises(InvalidStep, match="one << for each step"):
            Clutch() << step


# --- nested clutches ----------------------------------------------------------------------


def nested(eager: Celery, compose: Callable[[Any], Any]) -> ClutchResult:
    """A run of a job that composes nested clutches."""

    @eager.task(name="outer", bind=True)
    def outer(self: ClutchTask) -> str:
        compose(self)
        return "done"

    return Clutch(outer).engage()


def test_a_nested_clutch_that_is_never_engaged(
    eager: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @eager.task(name="one")
    def one() -> int:
        return 1

    run = nested(eager, lambda job: Clutch(one, one, parent=job, name="letters"))
    assert run.get() == ["done"]
    assert f"job 0 of run {run.id} (outer) has returned without engaging" in caplog.text
    assert "<Clutch 'letters': 2 steps, 2 jobs>" in caplog.text


def test_nested_clutches_of_which_nothing_is_said(
    eager: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @eager.task(name="one")
    def one() -> int:
        return 1

    def compose(job: ClutchTask) -> None:
        Clutch(parent=job)  # there was nothing to do
        Clutch(one, parent=job).engage()
        Clutch(Clutch(one, parent=job), parent=job).engage()

    assert nested(eager, compose).get() == ["done"]
    assert "without engaging" not in caplog.text


def test_a_parent_that_does_not_run(eager: Celery) -> None:
    @eager.task(name="other")
    def other() -> None: ...

    (failure,) = nested(eager, lambda job: Clutch(other, parent=other).engage()).failures()
    assert "parent is other, which does not run here; outer does" in failure.message


def test_a_parent_that_is_no_task(eager: Celery) -> None:
    with pytest.raises(InvalidParent, match=r"@app.task\(bind=True\)"):
        Clutch(parent="x").engage()


# --- branches that a job adds -------------------------------------------------------------


ADDED = [
    (lambda one: one.s({1}), r"NonJSONArgument: job 0\.0\+0 \(one\), args: \$\[0\] cannot be sent"),
    (lambda one: [one.s(1), [one.s(1)]], "InvalidStep: a step is a signature, a task"),
    (lambda one: Clutch(one.s(1), data={"a": 1}), r"BuildError: .*data\['a'\].* self.data"),
    (lambda one: named(one.s(1), "x"), "InvalidName: .*'x'.* cannot have a name"),
    (lambda one: Clutch(one.s([1])).map(named(one.s(), "x")), "InvalidName: .*'x'.* have a name"),
]


@pytest.mark.parametrize(("added", "said"), ADDED)
def test_what_cannot_be_added_as_a_branch(eager: Celery, added: Any, said: str) -> None:
    @eager.task(name="one")
    def one(x: Any = None) -> Any:
        return x

    @eager.task(name="adds", bind=True)
    def adds(self: ClutchTask) -> None:
        self.branches.add(added(one))

    run = parallel(adds, named(one, "x")).engage()
    with pytest.raises(ClutchFailed, match=said):
        run.get()
    assert run.progress().total == 2


def test_a_plain_task_that_asks_for_previous_results(eager: Celery) -> None:
    @eager.task(name="plain", base=Task, bind=True)
    def plain(self: Any) -> Any:
        return self.previous_results

    (failure,) = Clutch(plain).engage().failures()
    assert failure.exception == "AttributeError"
    assert 'task_cls="celery_clutch:ClutchTask"' in failure.message
