"""The doctor finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, _state

from celery_clutch import Clutch, ClutchTask
from celery_clutch.extend.plugins import runtime
from celery_clutch.operate import doctor
from celery_clutch.operate.doctor import Finding, Severity
from celery_clutch.stores.base import Record
from celery_clutch.stores.memory import MemoryStore
from celery_clutch.testing import embedded

from .conftest import App, make_app

NOWHERE = "redis://localhost:1/0"


def nothing() -> None:
    """What tasks do here."""


def trouble(app: Celery, timeout: float = 0.1) -> dict[str, Finding]:
    """What is not ok, by the first words of it."""
    found = list(doctor.examine(app, timeout))
    return {each.what: each for each in found if each.severity is not Severity.OK}


def is_own(name: str) -> bool:
    return not name.startswith(("celery.", "celery_clutch."))


def about(app: Celery, word: str, timeout: float = 0.1) -> Finding:
    """The only trouble that has *word* in it."""
    (found,) = [each for what, each in trouble(app, timeout).items() if word in what]
    assert found.fix
    return found


@pytest.fixture
def served() -> Iterator[Celery]:
    app = App("doctor", task_cls=ClutchTask, set_as_current=False)
    app.task(name="doctor.job")(nothing)
    with embedded(app):
        yield app


def test_an_app_in_health(served: Celery) -> None:
    found = list(doctor.examine(served, 5))
    wrong = [each.what for each in found if each.severity is not Severity.OK]
    assert [what for what in wrong if "no ClutchTasks: it." not in what] == [
        "clutch_store is memory://, which other processes cannot see",
        "this app does not schedule the sweep, without which nothing that is lost is sent again",
    ]
    assert any("their result store is that of this machine" in each.what for each in found)
    assert any("embedded@localhost" in each.what for each in found)
    assert runtime(served).store.scan() == ([], "")  # what was written is gone


def test_a_queue_that_nobody_consumes(served: Celery) -> None:
    served.conf.task_routes = {"doctor.job": {"queue": "lonely"}}
    served.amqp.flush_routes()
    served.amqp.__dict__.pop("router", None)
    found = about(served, "no worker consumes", 5)
    assert (found.severity, found.what) == (Severity.WARNING, "no worker consumes from lonely")
    assert "-Q lonely" in found.fix


def test_no_worker(app: Celery) -> None:
    assert about(app, "no worker answers").severity is Severity.WARNING


def test_tasks_that_are_no_clutch_tasks(app: Celery) -> None:
    before = [name for name in app.tasks if is_own(name)]  # shared by other tests
    app.task(name="a.plain", base=celery.Task)(nothing)
    app.task(name="celery_tasks.ours")(nothing)
    found = about(app, "no ClutchTasks")
    assert found.severity is Severity.WARNING
    assert f" of {len(before) + 2} tasks are no ClutchTasks: a.plain" in found.what


def test_an_app_without_task_cls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "_on_app_finalizers", set())  # no tasks shared by other tests
    app = App("doctor", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.clutch_store = "memory://"
    app.task(name="plain")(nothing)
    assert about(app, "task_cls").severity is Severity.WARNING
    app.task(name="job", base=ClutchTask)(nothing)
    assert not [what for what in trouble(app) if "task_cls" in what]


def test_no_result_backend() -> None:
    app = make_app(backend=None)
    assert not [what for what in trouble(app) if "result backend" in what], "none is needed"


def test_servers_that_are_not_there() -> None:
    app = App("doctor", broker=NOWHERE, backend=NOWHERE, task_cls=ClutchTask, set_as_current=False)
    found = trouble(app)
    problems = [what for what, each in found.items() if each.severity is Severity.PROBLEM]
    for part in ("the broker cannot", "the result backend cannot", "the result store cannot"):
        assert [what for what in problems if what.startswith(part)], problems


def test_a_store_that_cannot_be() -> None:
    app = make_app()
    app.conf.clutch_store = "nosuch://"
    assert about(app, "result store").severity is Severity.PROBLEM


def test_no_store() -> None:
    app = make_app()
    app.conf.clutch_store = None
    assert "clutch_store" in about(app, "result store").what


def test_eager_mode(eager: Celery) -> None:
    assert about(eager, "task_always_eager").severity is Severity.WARNING
    assert not [what for what in trouble(eager) if "memory://" in what]


def test_a_visibility_timeout_that_is_short(app: Celery) -> None:
    # Nothing is sent or stored: the settings are looked at.
    app.conf.update(result_expires=60, broker_transport_options={"visibility_timeout": 60})
    assert not [what for what in trouble(app) if "60 seconds" in what]
    app.conf.update(broker_url=NOWHERE, result_backend=NOWHERE)
    found = about(app, "visibility_timeout is 60")
    assert found.severity is Severity.WARNING
    assert "a lease puts copies off" in found.fix
    # The store counts what a parallel step waits for, not the result backend.
    assert not [what for what in trouble(app) if "result_expires" in what]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("clutch_sotre", "Write clutch_store."),
        ("cluch_ttl", "Write clutch_ttl."),
        ("CLUTCH_LEASE", "Write clutch_lease."),
        ("clutch_zoom", "There are clutch_store, clutch_ttl,"),
    ],
)
def test_a_setting_that_is_misspelt(app: Celery, name: str, fix: str) -> None:
    app.conf.update({name: 5})
    found = about(app, name)
    assert found.severity is Severity.WARNING
    assert found.fix.startswith(fix)


def test_settings_that_are_well(app: Celery) -> None:
    app.conf.update(clutch_ttl=60, clutch_lease=5, my_own="clutch")
    assert not [what for what in trouble(app) if "setting" in what]


def test_settings_of_a_project_in_its_namespace() -> None:
    class Project:
        CELERY_CLUTCH_STORE = "memory://"
        CELERY_CLUTCH_LEESE = 5
        CLUTCH_TTLS = "somebody else's"

    app = App("doctor", broker="memory://", task_cls=ClutchTask, set_as_current=False)
    app.config_from_object(Project, namespace="CELERY")
    (what,) = [what for what in trouble(app) if "setting" in what]
    assert what == "the setting CELERY_CLUTCH_LEESE is not read by anybody"
    assert trouble(app)[what].fix == "Write CELERY_CLUTCH_LEASE."


def test_a_sweep_that_nobody_schedules(app: Celery) -> None:
    assert about(app, "schedule the sweep").severity is Severity.WARNING
    app.conf.beat_schedule = {"lost": {"task": "celery_clutch.sweep", "schedule": 60.0}}
    assert not [what for what in trouble(app) if "sweep" in what]


def test_a_run_that_is_not_there(served: Celery) -> None:
    """It may be in a store that another setting names: everything else is examined all the same."""
    found = {each.what: each for each in doctor.examine(served, 3, "nosuch")}
    missing = found["there is no run 'nosuch' in <MemoryStore memory://>"]
    assert missing.severity is Severity.PROBLEM
    assert "clutch_store" in missing.fix
    assert any("embedded@localhost" in what for what in found)


def test_a_run_while_the_broker_is_away(app: Celery) -> None:
    app.task(name="doctor.job")(nothing)
    run = Clutch(app.tasks["doctor.job"].s().set(countdown=60), app=app).engage()
    app.conf.update(broker_url=NOWHERE)
    told = [each.what for each in doctor.examine(app, 0.1, run.id)]
    assert any("the broker cannot be reached" in what for what in told)
    assert any(f"{run.id}: job 0 doctor.job is to begin at" in what for what in told)


def test_a_run_while_the_store_is_away() -> None:
    app = App("doctor", broker="memory://", task_cls=ClutchTask, set_as_current=False)
    app.conf.clutch_store = NOWHERE
    told = list(doctor.examine(app, 0.1, "some"))
    problems = [each.what for each in told if each.severity is Severity.PROBLEM]
    (store,) = [what for what in problems if what.startswith("the result store cannot be used")]
    assert [what for what in problems if what != store] == [
        "run some cannot be looked at without its store"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_protocol", 1),
        ("clutch_ttl", -1),
        ("clutch_lease", "long"),
        ("clutch_store", "no url"),
    ],
)
def test_a_setting_that_makes_no_sense(app: Celery, name: str, value: Any) -> None:
    app.conf[name] = value
    found = about(app, name)
    assert found.severity is Severity.PROBLEM
    assert found.what.startswith(name)


def test_a_run_that_workers_are_ready_for(served: Celery) -> None:
    job = served.tasks["doctor.job"]
    run = Clutch(job.s().set(countdown=60), job.s(), app=served).engage()
    told = [each.what for each in doctor.examine(served, 3, run.id)]
    assert any(f"{run.id}: job 0 doctor.job is to begin at" in what for what in told)
    ready = f"{run.id}: workers consume the queues, and know the tasks, of what is left of it"
    assert ready in told


class SlowClock(MemoryStore):
    """A store whose clock is an hour behind, and that has something to say."""

    def read(self, run: str) -> Record | None:
        found = super().read(run)
        return found and replace(found, created_at=found.created_at - 3600)

    def check(self) -> list[str]:
        return ["it rains. Take an umbrella."]


def test_a_store_with_another_clock_and_what_it_says_itself(app: Celery) -> None:
    runtime(app).store = SlowClock()
    assert 3590 < float(about(app, "clocks").what.split()[-2]) <= 3601
    assert about(app, "it rains").fix == "Take an umbrella."


def test_versions_that_do_not_fit(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "kombu-4.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kombu\nVersion: 4.0.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = [each for what, each in trouble(app).items() if "kombu" in what]
    assert any(each.what.startswith("celery-clutch") for each in found)
    assert {each.severity for each in found} == {Severity.PROBLEM}


def test_what_cannot_be_checked_is_a_problem_of_its_own(app: Celery) -> None:
    class Broken(MemoryStore):
        def check(self) -> Any:
            raise RuntimeError("out of order")

    runtime(app).store = Broken()
    (found,) = [each for what, each in trouble(app).items() if "out of order" in what]
    assert found.severity is Severity.PROBLEM


def test_it_does_not_take_for_ever_without_servers() -> None:
    app = App("doctor", broker=NOWHERE, backend=NOWHERE, task_cls=ClutchTask, set_as_current=False)
    start = time.monotonic()
    list(doctor.examine(app))
    assert time.monotonic() - start < 60
