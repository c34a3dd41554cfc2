"""The header of a job, and which steps it settles."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.compile.cut import paginate
from celery_clutch.compile.header import NAME, Header
from celery_clutch.compile.pages import Item
from celery_clutch.errors import CorruptRecord
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Parallel, Scope, Series
from celery_clutch.stores.base import TURNS, Barrier, Settles, Turn

from .reference import all_items, enclosing, follow, reporter
from .strategies import any_json, full_scopes, mutated, plans, scopes, words

LISTENING = Scope(on_failure={"task": "alert"})

addresses = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(
    lambda path: ".".join(map(str, path))
)
turns = st.builds(
    lambda at, limit, width: Turn(at.rpartition(".")[0], at, limit, width),
    addresses,
    st.integers(1, 9),
    st.integers(1, 9),
)
barriers = st.builds(
    lambda at, width, then, members, turn: Barrier(
        at,
        width,
        then,
        Settles(at.rpartition(".")[0], at, members) if members else None,
        Turn(at.rpartition(".")[0], at, *turn) if turn else None,
    ),
    addresses,
    st.integers(1, 99),
    st.just("") | words,
    st.integers(0, 9),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
headers = st.builds(
    Header,
    run=words,
    generation=st.integers(0, 99),
    at=addresses,
    page=words,
    previous=st.just("") | addresses | st.lists(addresses, min_size=1, max_size=2),
    settles=words | st.just(""),
    barriers=st.lists(barriers, max_size=3).map(tuple),
    narrow=st.lists(turns, max_size=2).map(tuple),
    next=st.just("") | addresses,
    receipts=st.lists(words, max_size=2).map(tuple),
    prepend=st.booleans(),
    task=st.just("") | words,
    expires=st.floats(0, 2e9),
    context=st.dictionaries(words, words, max_size=2),
    late=st.integers(0, 20),
)


@given(headers)
def test_a_header_survives_the_message(header: Header) -> None:
    assert Header.from_dict(orjson.loads(orjson.dumps(header.to_dict()))) == header


@given(headers)
def test_a_header_is_found_in_a_worker_and_in_eager_mode(header: Header) -> None:
    data = header.to_dict()
    assert Header.of(SimpleNamespace(**{NAME: data})) == header
    assert Header.of(SimpleNamespace(headers={NAME: data})) == header
    assert Header.of(SimpleNamespace(**{NAME: None}, headers={NAME: data})) == header


@pytest.mark.parametrize("headers_", [None, {}, {"other": 1}, {NAME: None}])
def test_a_request_outside_a_run_has_none(headers_: object) -> None:
    assert Header.of(SimpleNamespace(headers=headers_)) is None
    assert Header.of(SimpleNamespace()) is None


@given(any_json)
def test_any_json_is_a_header_or_a_corrupt_record(value: Any) -> None:
    with suppress(CorruptRecord):
        Header.from_dict(value)


@given(headers, st.data())
def test_a_header_with_a_mistake_in_it(header: Header, data: st.DataObject) -> None:
    value = data.draw(mutated(orjson.loads(orjson.dumps(header.to_dict()))))
    with suppress(CorruptRecord):
        Header.from_dict(value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": 5},
        {"gen": "x"},
        {"gen": float("inf")},
        {"at": None},
        {"prev": 5},
        {"prev": "0*x"},
        {"ends": [5]},
        {"ends": [["0"]]},
        {"ends": [[0, 1]]},
        {"narrow": [["0", 1]]},
        {"due": 5},
        {"context": 5},
        {"expires": "x"},
    ],
)
def test_what_is_not_a_header_is_a_corrupt_record(wrong: dict[str, Any]) -> None:
    data = Header("r", 0, "0", "0").to_dict()
    assert Header.from_dict(data) == Header("r", 0, "0", "0")
    with pytest.raises(CorruptRecord):
        Header.from_dict({**data, **wrong})


def test_a_header_is_small() -> None:
    header = Header("r" * 36, 0, "1.2", "1")
    assert header.to_dict() == {"run": "r" * 36, "gen": 0, "at": "1.2", "page": "1"}


def test_prepend_needs_something_to_prepend() -> None:
    job = Job("t", prepend=True)
    assert not Header.of_item(Header("r", 0), "0", Item("0", job)).prepend
    assert Header.of_item(Header("r", 0), "0", Item("1", job, previous="0")).prepend


@given(headers)
def test_what_the_headers_of_a_run_have_in_common(header: Header) -> None:
    origin = header.origin
    assert (origin.run, origin.generation) == (header.run, header.generation)
    assert (origin.expires, origin.context) == (header.expires, header.context)
    assert (origin.at, origin.page, origin.barriers, origin.receipts) == ("", "", (), ())


def test_the_turn_of_a_message() -> None:
    header = Header("r", 0, "0", "0", late=3)
    assert header.turn(SimpleNamespace(retries=2)) == 2 * TURNS + 3
    assert header.turn(SimpleNamespace(retries=None)) == header.turn(SimpleNamespace()) == 3


# --- settling -----------------------------------------------------------------------------


def listening(root: Series) -> Series:
    """*root*, with somebody who listens to every failure."""
    return Series(root.steps, LISTENING)


def headers_of(root: Series) -> list[Header]:
    return [Header.of_item(Header("r", 0), "0", item) for item in all_items(paginate(root))]


def widths(root: Series) -> dict[str, int]:
    return {at: len(n.branches) for at, n in plan.walk(root) if isinstance(n, Parallel)}


@given(plans(narrow=True).map(listening))
def test_when_all_completes_each_branch_settles_its_parallel_once(root: Series) -> None:
    settled = Counter(follow(paginate(root)).settled)
    assert settled == Counter(
        Settles(step, plan.join(step, index), width)
        for step, width in widths(root).items()
        for index in range(width)
    )


@given(plans().map(listening))
def test_a_failure_settles_every_parallel_around_it(root: Series) -> None:
    wanted = widths(root)
    for header in headers_of(root):
        around = enclosing(root, header.at)
        settled = header.settled_by_failure()
        own = [each for each in settled if each.step == header.at]
        others = [each for each in settled if each.step != header.at]
        assert [each.step for each in others] == around
        for each in others:
            assert each.width == wanted[each.step]
            assert each.member.rpartition(".")[0] == each.step
            assert header.at == each.member or header.at.startswith(f"{each.member}.")
        assert own in ([], [Settles(header.at, header.at, 1)])
        assert header.settles_alone() == (own[0] if own else None)
        assert own or around, "a failure that nobody would hear of"


@given(plans().map(listening))
def test_a_failure_is_reported_by_the_nearest_step_alone(root: Series) -> None:
    for header in headers_of(root):
        loud = [each.loud for each in header.settled_by_failure()]
        assert loud == [True] + [False] * (len(loud) - 1)
        assert not any(each.loud for each in header.settled_by_failure(loud=False))


@given(plans(scope=full_scopes(on_success=False)))
def test_the_step_that_reports_a_failure(root: Series) -> None:
    for header in headers_of(root):
        step, teller = reporter(root, header.at)
        loud = [each.step for each in header.settled_by_failure() if each.loud]
        assert loud == ([] if teller is None else [step])


@given(plans().map(listening))
def test_a_job_outside_parallels_is_a_step_of_its_own(root: Series) -> None:
    for header in headers_of(root):
        if not enclosing(root, header.at):
            alone = Settles(header.at, header.at, 1)
            assert header.settled_by_failure() == (alone,)
            assert header.settles_alone() == alone


@given(plans(scope=scopes().map(lambda each: Scope(queue=each.queue))))
def test_where_nobody_listens_no_job_settles_anything(root: Series) -> None:
    root = Series(root.steps, Scope(queue=root.scope.queue))
    for header in headers_of(root):
        assert header.settles == ""
        assert header.settled_by_failure() == ()
        assert header.settles_alone() is None
        assert not any(barrier.settles for barrier in header.barriers)


def test_settling_by_example() -> None:
    j = Job("t")
    root = Series((j, Parallel((Series((j, j)), Parallel((j, j)))), j), LISTENING)
    by = {header.at: header for header in headers_of(root)}
    assert by["1.0.0"].barriers == ()
    assert by["1.0.1"].barriers[0].settles == Settles("1", "1.0", 2)
    assert by["1.0.0"].settled_by_failure() == (Settles("1", "1.0", 2),)
    assert [each.settles for each in by["1.1.1"].barriers] == [
        Settles("1.1", "1.1.1", 2),
        Settles("1", "1.1", 2),
        None,
    ]
    assert by["1.1.1"].settled_by_failure() == (
        Settles("1.1", "1.1.1", 2),
        Settles("1", "1.1", 2, loud=False),
    )


def test_a_death_in_the_header_of_a_chord_is_told_once_for_each_header() -> None:
    j, body = Job("t"), {"task": "body", "options": {"link_error": []}}
    inner = Parallel((j, j), Scope(errbacks=body))
    root = Series((Parallel((inner, j), Scope(errbacks=body)), j))
    by = {header.at: header for header in headers_of(root)}
    inner_branch, inner_chord = Settles("0.0!", "0.0.1", 2), Settles("0!", "0.0", 2)
    assert by["0.0.1"].settled_by_failure(final=True) == (inner_branch, inner_chord)
    assert by["0.1"].settled_by_failure(final=True) == (Settles("0!", "0.1", 2),)
    assert by["0.0.1"].settled_by_failure() == ()
    assert by["1"].settled_by_failure(final=True) == ()


def test_a_branch_of_the_header_of_a_chord_settles_when_it_has_ended() -> None:
    j, body = Job("t"), {"task": "body", "options": {"link_error": []}}
    header = Parallel((Parallel((j, j)), Series((j, j)), j), Scope(errbacks=body))
    by = {header.at: header for header in headers_of(Series((header, j)))}
    settled = {
        at: [(each.width, each.settles) for each in header.barriers if each.settles]
        for at, header in by.items()
    }
    assert settled == {
        "0.0.0": [(2, Settles("0!", "0.0", 3))],
        "0.0.1": [(2, Settles("0!", "0.0", 3))],
        "0.1.0": [],
        "0.1.1": [(1, Settles("0!", "0.1", 3))],
        "0.2": [(1, Settles("0!", "0.2", 3))],
        "1": [],
    }
