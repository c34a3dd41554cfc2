"""What is kept with a run, and how it reads as a Status."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Failure, State
from celery_clutch.compile import record
from celery_clutch.compile.header import Header
from celery_clutch.compile.record import Held, Meta, Parent
from celery_clutch.errors import CorruptRecord
from celery_clutch.model.plan import Scope
from celery_clutch.stores.base import Record

from .strategies import any_json, handlers, mutated, scopes, texts, words

addresses = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(
    lambda path: ".".join(map(str, path))
)
parents = st.builds(
    Parent,
    header=st.builds(lambda run, at: Header(run, 2, at, at).to_dict(), words, addresses),
    task=words,
    task_id=words,
    attempt=st.integers(1, 9),
    quiet=st.booleans(),
    shares=st.booleans(),
)
metas = st.builds(
    Meta,
    jobs=st.integers(0, 99),
    last=words | st.lists(addresses, max_size=3),
    name=st.none() | texts,
    tags=st.lists(words, max_size=3).map(tuple),
    scopes=st.dictionaries(addresses, scopes(), max_size=3),
    parent=st.none() | parents,
    expires=st.floats(0, 2e9),
    context=st.dictionaries(words, words, max_size=2),
    awaited=st.none() | handlers(),
)
held = st.builds(
    Held,
    value=st.binary(max_size=20),
    runs=st.lists(words, max_size=2).map(tuple),
    changes=st.dictionaries(words, st.none() | texts.map(str.encode), max_size=2),
    info=texts.map(str.encode),
    links=st.lists(handlers(), max_size=2).map(tuple),
    replaced=st.booleans(),
)

FAILURE = Failure("0", "t", "id", "ValueError", "no", "tb", 1, True, "2024-01-01T00:00:00+00:00")


def run_record(failures: dict[str, Any] | None = None, **changes: Any) -> Record:
    failures = {at: orjson.dumps(data) for at, data in (failures or {}).items()}
    found = Record(
        run="r",
        meta=Meta(jobs=3, last="2", name="nightly", tags=("a", "b")).dumps(),
        state=State.RUNNING,
        generation=1,
        jobs=3,
        remaining=2,
        failing=0,
        dead=0,
        created_at=0.0,
        updated_at=60.0,
        ended_at=None,
        failures=failures,
    )
    return dataclasses.replace(found, **changes)


def failed(*at: str) -> dict[str, Any]:
    return {each: dataclasses.replace(FAILURE, address=each).to_dict() for each in at}


# --- meta ---------------------------------------------------------------------------------


@given(metas)
def test_meta_survives_json(meta: Meta) -> None:
    assert Meta.loads(meta.dumps()) == meta


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"5",
        b"[]",
        b"{}",
        b'{"jobs": 1}',
        b'{"jobs": 1, "last": "0", "colour": 1}',
        b'{"jobs": 1, "last": "0", "scopes": {"": {"colour": 1}}}',
        b'{"jobs": 1, "last": "0", "parent": {"task": "t"}}',
        b'{"jobs": 1, "last": "0", "tags": 5}',
        b'{"jobs": 1, "last": 5}',
        b'{"jobs": 1, "last": "0", "scopes": [1]}',
    ],
)
def test_what_is_not_meta_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        Meta.loads(data)


@given(st.binary())
def test_any_bytes_are_meta_or_a_corrupt_record(data: bytes) -> None:
    with suppress(CorruptRecord):
        Meta.loads(data)


@given(any_json)
def test_any_json_is_meta_or_a_corrupt_record(value: Any) -> None:
    with suppress(CorruptRecord):
        Meta.loads(orjson.dumps(value))


@given(metas, st.data())
def test_meta_with_a_mistake_in_it(meta: Meta, data: st.DataObject) -> None:
    with suppress(CorruptRecord):
        Meta.loads(orjson.dumps(data.draw(mutated(orjson.loads(meta.dumps())))))


def test_the_scope_at_an_address_is_that_of_the_nearest_subtree() -> None:
    whole, inner, innermost = Scope(queue="a"), Scope(queue="b"), Scope(queue="c")
    meta = Meta(9, "0", scopes={"": whole, "1": inner, "1.2.0": innermost})
    wanted = {
        "": whole,
        "0": whole,
        "10": whole,
        "1": inner,
        "1.0": inner,
        "1.2": inner,
        "1.2.0": innermost,
        "1.2.0.7": innermost,
        "1.20": inner,
    }
    assert {at: meta.scope(at) for at in wanted} == wanted
    assert Meta(0, "").scope("3") == Scope()


def test_the_scope_of_the_branch_of_a_map_is_that_of_each_of_its_branches() -> None:
    inner, innermost = Scope(queue="inner"), Scope(queue="innermost")
    meta = Meta(1, "", scopes={"": Scope(queue="all"), "1.%": inner, "1.%.0.%": innermost})
    found = {at: meta.scope(at).queue for at in ("1", "1.5", "1.5.1.0", "1.5.0.12.3", "2.5")}
    assert found == {
        "1": "all",
        "1.5": "inner",
        "1.5.1.0": "inner",
        "1.5.0.12.3": "innermost",
        "2.5": "all",
    }
    assert meta.scope("1.5+0").queue == "all"  # it was added, and is none of the map's own
    assert list(meta.between("1.5", "1.5.0.12.3")) == [innermost]
    assert list(meta.between("1", "1.5.0.12.3")) == [innermost, inner]


def test_an_inner_scope_without_anything_hides_the_one_around_it() -> None:
    meta = Meta(1, "0", scopes={"": Scope(queue="a"), "0": Scope()})
    assert Meta.loads(meta.dumps()).scope("0") == Scope()


def test_the_ends_that_somebody_is_told_of() -> None:
    everything = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
    handler = {"task": "t"}
    assert Meta(1, "0").ends() == ()
    assert Meta(1, "0", scopes={"": Scope(on_success=handler)}).ends() == (State.SUCCEEDED,)
    assert Meta(1, "0", scopes={"0": Scope(on_success=handler)}).ends() == ()
    assert Meta(1, "0", scopes={"0": Scope(on_death=handler)}).ends() == (State.FAILED,)
    assert Meta(1, "0", awaited=handler).ends() == everything
    assert Meta(1, "0", scopes={"": Scope(on_end=handler)}).ends() == everything


# --- held ---------------------------------------------------------------------------------


@given(held)
def test_held_survives(found: Held) -> None:
    assert Held.loads(found.dumps()) == found


@given(st.binary())
def test_any_bytes_are_held_or_a_corrupt_record(data: bytes) -> None:
    with suppress(CorruptRecord):
        Held.loads(data)


@given(held, st.data())
def test_held_with_a_mistake_in_it(found: Held, data: st.DataObject) -> None:
    head = orjson.loads(found.dumps().partition(b"\n")[0])
    for value in (data.draw(any_json), data.draw(mutated(head))):
        with suppress(CorruptRecord):
            Held.loads(orjson.dumps(value) + b"\n5")


# --- status -------------------------------------------------------------------------------


def test_a_record_reads_as_a_status() -> None:
    found = record.status(run_record(failing=1, dead=2))
    assert (found.id, found.name, found.tags) == ("r", "nightly", ("a", "b"))
    assert (found.state, found.generation) == (State.RUNNING, 1)
    assert (found.total, found.done, found.failing, found.dead) == (3, 1, 1, 2)
    assert found.created_at == "1970-01-01T00:00:00+00:00"
    assert found.updated_at == "1970-01-01T00:01:00+00:00"
    assert found.ended_at is None
    assert found.parent is found.step is None
    ended = record.status(run_record(ended_at=61.0))
    assert ended.ended_at == "1970-01-01T00:01:01+00:00"


@given(parents)
def test_a_nested_run_names_its_parent(parent: Parent) -> None:
    meta = Meta(1, "0", parent=parent)
    found = record.status(run_record(meta=meta.dumps()))
    assert found.parent == {"run": parent.header["run"], "address": parent.header["at"]}


def test_failures_are_in_the_order_of_addresses() -> None:
    found = record.failures(run_record(failed("10", "9.2", "9.10", "2", "1.0")))
    assert [failure.address for failure in found] == ["1.0", "2", "9.2", "9.10", "10"]


def test_failures_in_branches_that_were_added_and_elsewhere_come_last() -> None:
    ordered = ["1.2", "1.10", "1.3+0", "1.10+0.1", "1.10+0.1+2", "2", "page 7"]
    found = record.failures(run_record(failed(*reversed(ordered))))
    assert [failure.address for failure in found] == ordered


def test_failures_of_jobs_that_have_recovered_are_left_out() -> None:
    found = run_record(failed("0", "1"), finished=frozenset({"0"}))
    assert [failure.address for failure in record.failures(found)] == ["1"]
    assert [failure.address for failure in record.status(found).failures] == ["1"]


def test_a_callback_is_told_of_its_own_step_recovered_jobs_included() -> None:
    found = run_record(failed("0", "1", "1.0", "1.2.3", "10", "11.0"), finished=frozenset({"1.0"}))
    status = record.status(found, step="1")
    assert [failure.address for failure in status.failures] == ["1", "1.0", "1.2.3"]
    assert status.step == "1"


@pytest.mark.parametrize("broken", [5, [], {}, {"address": "0"}, None])
def test_a_failure_that_cannot_be_read_is_a_corrupt_record(broken: Any) -> None:
    with pytest.raises(CorruptRecord, match="failure of job 4"):
        record.failures(run_record({"4": broken}))


def test_a_failure_that_is_not_json_is_a_corrupt_record() -> None:
    with pytest.raises(CorruptRecord, match="failure of job 4"):
        record.failures(dataclasses.replace(run_record(), failures={"4": b"\xff"}))


def test_the_runs_that_jobs_wait_for() -> None:
    held = {"0": Held(b"", runs=("a", "b")).dumps(), "1.0": Held(b"1").dumps()}
    assert record.held_runs(run_record(held=held)) == {"0": ("a", "b")}


def many(number: int) -> Record:
    """A run with so many failures in step 1, every third of which is a KeyError."""
    found = failed(*(f"1.{index}" for index in range(number)))
    for index in range(0, number, 3):
        found[f"1.{index}"]["exception"] = "KeyError"
    return run_record(found)


def test_a_status_has_the_first_20_failures_and_counts_all() -> None:
    for step in (None, "1"):
        status = record.status(many(2000), step=step)
        assert [each.address for each in status.failures] == [f"1.{index}" for index in range(20)]
        assert status.failure_count == 2000
        assert status.exceptions == {"ValueError": 1333, "KeyError": 667}


def test_what_a_handler_is_sent_is_bounded() -> None:
    found = {
        at: {**data, "message": "m" * 1000, "traceback": "t" * 4000}
        for at, data in failed(*(f"1.{index}" for index in range(2000))).items()
    }
    assert len(orjson.dumps(record.status(run_record(found), step="1").to_dict())) < 120_000


def test_of_exceptions_the_20_most_frequent_are_counted() -> None:
    found = failed(*(f"1.{index}" for index in range(40)))
    for index in range(30):
        found[f"1.{index}"]["exception"] = f"Odd{index}"
    status = record.status(run_record(found))
    assert len(status.exceptions) == 20
    assert (next(iter(status.exceptions)), status.failure_count) == ("ValueError", 40)


def test_a_tally_keeps_the_first_failures_whatever_the_order() -> None:
    found = many(50)
    for limit in (0, 1, 20, 70):
        tally = record.Tally(limit)
        for address, data in reversed(found.failures.items()):
            tally.add(address, data, address in found.finished)
        assert tally.failures() == record.failures(found)[:limit]
        assert tally.count == 50
