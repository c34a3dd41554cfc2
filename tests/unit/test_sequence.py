"""Sequences: what a class may say, and whole runs in eager mode."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_clutch import Clutch, ClutchResult, ClutchTask, Sequence, parallel
from celery_clutch.errors import (
    BuildError,
    InvalidSequence,
    NonJSONData,
    ResultTooLarge,
    RunNotFound,
)


@pytest.fixture
def tasks(eager: Celery) -> Any:
    class Tasks:
        app = eager

        @eager.task(name="create", bind=True)
        def create(self: ClutchTask) -> str:
            self.data["message"] = {"from": self.data["name"], "to": []}
            return "created"

        @eager.task(name="notify", bind=True)
        def notify(self: ClutchTask, how: str) -> str:
            self.data[how] = f"{how} to {self.data['name']}"
            return how

        @eager.task(name="assign", bind=True)
        def assign(self: ClutchTask, team: str) -> Any:
            self.data["message"]["to"].append(team)
            return self.previous_results

        @eager.task(name="seen", bind=True)
        def seen(self: ClutchTask) -> Any:
            return dict(self.data)

        @eager.task(name="tell")
        def tell(status: Any) -> None: ...

    eager.set_current()
    return Tasks


def test_a_sequence_runs_its_steps_over_its_data(tasks: Any) -> None:
    class ContactForm(Sequence):
        steps = [
            tasks.create,
            parallel(tasks.notify.s("mail"), tasks.notify.s("sms")),
            tasks.assign.s(team="sales"),
        ]
        on_failure = tasks.tell
        tags = ["web"]

    run = ContactForm(name="Joel", github="joelmoss").start()
    assert run.get() == [["mail", "sms"]]
    assert run.data() == {
        "name": "Joel",
        "github": "joelmoss",
        "message": {"from": "Joel", "to": ["sales"]},
        "mail": "mail to Joel",
        "sms": "sms to Joel",
    }
    status = run.status()
    assert (status.name, status.tags, status.total) == ("ContactForm", ("web",), 4)
    assert run.forget()
    with pytest.raises(RunNotFound):
        run.data()


def test_each_start_is_a_run_with_data_of_its_own(tasks: Any) -> None:
    class Form(Sequence):
        steps = [tasks.create]
        name = "a form"

    form = Form({"name": "a", "odd key!": None}, extra=1)
    first, second = form.start(id="form-1"), form.start()
    assert (first.id, first.status().name) == ("form-1", "a form")
    for run in (first, second):
        assert run.data() == {
            "name": "a",
            "odd key!": None,
            "extra": 1,
            "message": {"from": "a", "to": []},
        }
    assert "odd key!" in repr(form)


def test_subclasses_extend_and_override(tasks: Any) -> None:
    class Base(Sequence, abstract=True):
        queue = "forms"

    class Short(Base):
        steps = [tasks.create]

    class Long(Short):
        steps = [*Short.steps, tasks.assign.s("ops"), tasks.seen]
        queue = "long"

    class Same(Long):
        pass

    assert [Short(name="x").clutch().queue, Long().clutch().queue] == ["forms", "long"]
    assert Long(name="x").start().get() == [{"name": "x", "message": {"from": "x", "to": ["ops"]}}]
    assert len(Same().clutch()) == 3


def test_sequences_and_clutches_in_one_another(tasks: Any) -> None:
    class Inner(Sequence):
        steps = [tasks.create, tasks.assign.s("inner")]

    class Outer(Sequence):
        steps = [Inner, parallel(Inner(color="red"), tasks.notify.s("sms")), tasks.seen]

    found = Outer(name="x").start().get()[0]
    assert found["message"] == {"from": "x", "to": ["inner"]}
    assert (found["color"], found["sms"]) == ("red", "sms to x")
    run = Clutch(tasks.notify.s("mail"), Inner, data={"name": "y"}).engage()
    assert run.data()["message"] == {"from": "y", "to": ["inner"]}


def test_different_data_for_one_key_is_refused(tasks: Any) -> None:
    class Inner(Sequence):
        steps = [tasks.seen]

    clutch = Clutch(Inner(a=1), Inner(a=1), data={"a": 3})
    assert clutch.engage().get() == [{"a": 3}], "what is said outside goes before"
    with pytest.raises(BuildError, match="different data"):
        clutch << Inner(a=2)


def test_outside_a_run_the_data_is_empty(eager: Celery) -> None:
    @eager.task(bind=True)
    def touch(self: ClutchTask) -> Any:
        self.data["x"] = 1
        return dict(self.data)

    assert touch.delay().get() == {}
    assert touch() == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"when": {1}}, r"data\['when'\]"),
        ({"deep": [{"x": float("inf")}]}, r"data\['deep'\] .* at \$\[0\]\['x'\]"),
        ({1: 2}, "a key of the data is a string of 1 to 255 characters"),
        ("text", "data is a mapping"),
    ],
)
def test_data_that_is_not_json_is_refused_at_start(tasks: Any, data: Any, message: str) -> None:
    class Form(Sequence):
        steps = [tasks.create]

    with pytest.raises(NonJSONData, match=message):
        Form(data).start(id="refused")
    with pytest.raises(NonJSONData, match=message):
        Clutch(tasks.create, data=data, id="refused").engage()
    with pytest.raises(RunNotFound):
        ClutchResult("refused", tasks.app).status()


def test_data_that_is_too_large_is_refused_at_start(tasks: Any) -> None:
    with pytest.raises(ResultTooLarge, match=r"data\['blob'\]"):
        Clutch(tasks.seen, data={"blob": "x" * 2**20}).engage()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({}, "has no steps"),
    "empty steps": ({"steps": []}, "has no steps"),
    "steps of a wrong type": ({"steps": "create"}, "steps is a list of steps, not 'create'"),
    "a step of a wrong type": ({"steps": [42]}, r"steps\[0\]: a step is .* not int 42"),
    "an unknown setting": ({"steps": ["ok"], "que": "x"}, "Bad.que is not a setting"),
    "a queue of a wrong type": ({"steps": ["ok"], "queue": 1}, "queue is a string, not 1"),
    "an empty name": ({"steps": ["ok"], "name": ""}, "name is a string"),
    "a handler of a wrong type": ({"steps": ["ok"], "on_death": "x"}, "on_death is a signature"),
    "tags of a wrong type": ({"steps": ["ok"], "tags": "x"}, "tags is a list of strings"),
    "an app of a wrong type": ({"steps": ["ok"], "app": "x"}, "app is a Celery app"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_errors_when_the_class_is_defined(tasks: Any, case: str) -> None:
    body, message = BAD[case]
    if body.get("steps") == ["ok"]:
        body = {**body, "steps": [tasks.create]}
    with pytest.raises(InvalidSequence, match=message):
        type("Bad", (Sequence,), dict(body))


def test_methods_and_private_names_are_no_settings(tasks: Any) -> None:
    class Form(Sequence):
        _secret = 1
        steps = [tasks.seen]

        @property
        def size(self) -> int:
            return 1

        def helper(self) -> int:
            return self._secret + self.size

    assert Form().helper() == 2
