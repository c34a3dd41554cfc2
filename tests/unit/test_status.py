"""Status, Failure, Progress and State."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import orjson
import pytest
from hypothesis import given

from celery_clutch import Failure, Progress, State, Status
from celery_clutch.model.status import isoformat

from .strategies import failures, statuses


@given(statuses)
def test_a_status_survives_json(status: Status) -> None:
    assert Status.from_dict(orjson.loads(orjson.dumps(status.to_dict()))) == status
    assert Status.from_dict(json.loads(json.dumps(status.to_dict()))) == status


@given(failures)
def test_a_failure_survives_json(failure: Failure) -> None:
    assert Failure.from_dict(json.loads(json.dumps(failure.to_dict()))) == failure


@given(statuses)
def test_the_dict_has_plain_types_alone(status: Status) -> None:
    def plain(value: Any) -> bool:
        if type(value) is dict:
            return all(type(key) is str and plain(item) for key, item in value.items())
        if type(value) is list:
            return all(map(plain, value))
        return value is None or type(value) in (str, int, bool)

    assert plain(status.to_dict())


@given(statuses)
def test_the_dict_has_the_documented_keys(status: Status) -> None:
    assert set(status.to_dict()) == {
        *("id", "name", "tags", "state", "generation", "total", "done", "failing", "dead"),
        *("created_at", "updated_at", "ended_at", "parent", "step", "failures"),
        *("failure_count", "exceptions", "draining", "skipped", "tolerated"),
    }


@given(failures)
def test_the_dict_of_a_failure_has_the_documented_keys(failure: Failure) -> None:
    assert set(failure.to_dict()) == {
        *("address", "task", "task_id", "exception", "message", "traceback"),
        *("attempt", "final", "at"),
    }


@given(statuses)
def test_keys_of_a_newer_version_are_left_out(status: Status) -> None:
    data = {**status.to_dict(), "colour": "red"}
    data["failures"] = [{**failure, "colour": "red"} for failure in data["failures"]]
    assert Status.from_dict(data) == status


def status_of(**values: Any) -> Status:
    base = dict.fromkeys(("name", "ended_at", "parent", "step"))
    counts = {"generation": 0, "total": 8, "done": 2, "failing": 1, "dead": 0}
    times = {"created_at": isoformat(1000), "updated_at": isoformat(1004)}
    own = {"id": "r", "tags": (), "state": State.RUNNING, "failures": ()}
    return Status(**{**base, **counts, **times, **own, **values})


def test_progress_is_the_counts_and_the_time_they_took() -> None:
    progress = status_of().progress
    assert progress == Progress(done=2, total=8, failing=1, dead=0)
    assert (progress.rate, progress.seconds_left) == (0.5, 12.0)


def test_progress_before_the_first_result_and_after_the_end() -> None:
    first = status_of(done=0).progress
    assert (first.rate, first.seconds_left) == (None, None)
    instant = status_of(updated_at=isoformat(1000)).progress
    assert (instant.rate, instant.seconds_left) == (None, None)
    failed = status_of(state=State.FAILED).progress
    assert (failed.rate, failed.seconds_left) == (0.5, 0.0)


def test_fraction() -> None:
    assert Progress(done=1, total=4, failing=0, dead=0).fraction == 0.25
    assert Progress(done=0, total=0, failing=0, dead=0).fraction == 1.0


@pytest.mark.parametrize("state", State)
def test_a_state_is_its_name(state: State) -> None:
    assert state == state.name
    assert str(state) == f"{state}" == state.name
    assert json.dumps(state) == f'"{state.name}"'
    assert State(state.name) is state


def test_states() -> None:
    assert [str(state) for state in State] == ["RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]


def test_times_are_utc() -> None:
    assert isoformat(0) == "1970-01-01T00:00:00+00:00"
    assert isoformat(1.5) == "1970-01-01T00:00:01.500000+00:00"


@pytest.mark.parametrize("cls", [Status, Failure, Progress])
def test_they_are_frozen(cls: type) -> None:
    names = [each.name for each in dataclasses.fields(cls)]
    thing = cls(**dict.fromkeys(names, 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, names[0], 1)
