"""The header of a job, and which steps it settles."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.compile.header import NAME, Header
from celery_clutch.compile.pages import CloseItem, JobItem, paginate
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Parallel, Scope, Series
from celery_clutch.stores.base import Settles

from .reference import all_items, enclosing, reporter
from .strategies import full_scopes, plans, scopes, words

LISTENING = Scope(on_failure={"task": "alert"})

headers = st.builds(
    Header,
    run=words,
    generation=st.integers(0, 99),
    at=words,
    slot=words,
    previous=words | st.just(""),
    settles=words | st.just(""),
    prepend=st.booleans(),
    close=st.booleans(),
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


def test_a_header_is_small() -> None:
    header = Header("r" * 36, 0, "1.2", "1.2")
    assert header.to_dict() == {"run": "r" * 36, "gen": 0, "at": "1.2"}


def test_prepend_needs_something_to_prepend() -> None:
    job = Job("t", prepend=True)
    assert not Header.of_item(Header("r", 0, "", ""), JobItem("0", "0", "", "", job)).prepend
    assert Header.of_item(Header("r", 0, "", ""), JobItem("1", "1", "0", "", job)).prepend


def test_the_header_of_a_close() -> None:
    gather = CloseItem("1", "0.1", "1*2", "0*2", queue="q")
    assert Header.of_item(Header("r", 3, "", ""), gather) == Header(
        "r", 3, "1", "0.1", "1*2", "0*2", prepend=False, close=True
    )
    assert Header.of_item(Header("r", 0, "", ""), CloseItem("4", scope="4")).slot == "4!"


# --- settling -----------------------------------------------------------------------------


def listening(root: Series) -> Series:
    """*root*, with somebody who listens to every failure."""
    return Series(root.steps, LISTENING)


def headers_of(root: Series) -> list[Header]:
    items = all_items(paginate(root))
    return [
        Header.of_item(Header("r", 0, "", ""), i)
        for i in items
        if isinstance(i, (JobItem, CloseItem))
    ]


def widths(root: Series) -> dict[str, int]:
    return {at: len(n.branches) for at, n in plan.walk(root) if isinstance(n, Parallel)}


@given(plans().map(listening))
def test_when_all_completes_each_branch_settles_its_parallel_once(root: Series) -> None:
    members: dict[str, Counter[str]] = defaultdict(Counter)
    wanted = widths(root)
    for header in headers_of(root):
        if settles := header.settled_by_completion(alone=False):
            assert settles.width == wanted[settles.step]
            members[settles.step][settles.member] += 1
    assert members == {
        step: Counter(plan.join(step, index) for index in range(width))
        for step, width in wanted.items()
    }


@given(plans().map(listening))
def test_a_failure_settles_every_parallel_around_it(root: Series) -> None:
    wanted = widths(root)
    for header in headers_of(root):
        if header.close:
            continue
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
        assert own or around, "a failure that nobody would hear of"


@given(plans().map(listening))
def test_a_failure_is_reported_by_the_nearest_step_alone(root: Series) -> None:
    for header in headers_of(root):
        if not header.close:
            loud = [each.loud for each in header.settled_by_failure()]
            assert loud == [True] + [False] * (len(loud) - 1)
            assert not any(each.loud for each in header.settled_by_failure(loud=False))


@given(plans(scope=full_scopes(on_success=False)))
def test_the_step_that_reports_a_failure(root: Series) -> None:
    for header in headers_of(root):
        if header.close:
            continue
        step, teller = reporter(root, header.at)
        loud = [each.step for each in header.settled_by_failure() if each.loud]
        assert loud == ([] if teller is None else [step])


@given(plans().map(listening))
def test_a_job_outside_parallels_is_a_step_of_its_own(root: Series) -> None:
    for header in headers_of(root):
        if not header.close and not enclosing(root, header.at):
            assert header.settled_by_failure() == [Settles(header.at, header.at, 1)]
            assert header.settled_by_completion(alone=False) is None


@given(plans(scope=scopes().map(lambda each: Scope(queue=each.queue))))
def test_where_nobody_listens_no_job_settles_anything(root: Series) -> None:
    root = Series(root.steps, Scope(queue=root.scope.queue))
    for header in headers_of(root):
        if not header.close:
            assert header.settles == ""
            assert header.settled_by_failure() == []
            assert header.settled_by_completion(alone=False) is None


def test_settling_by_example() -> None:
    j = Job("t")
    root = Series((j, Parallel((Series((j, j)), Parallel((j, j)))), j), LISTENING)
    by = {header.at: header for header in headers_of(root) if not header.close}
    assert by["1.0.0"].settled_by_completion(alone=False) is None
    assert by["1.0.1"].settled_by_completion(alone=False) == Settles("1", "1.0", 2)
    assert by["1.0.0"].settled_by_failure() == [Settles("1", "1.0", 2)]
    assert by["1.1.1"].settled_by_completion(alone=False) == Settles("1.1", "1.1.1", 2)
    assert by["1.1.1"].settled_by_failure() == [
        Settles("1.1", "1.1.1", 2),
        Settles("1", "1.1", 2, loud=False),
    ]
    gather = next(header for header in headers_of(root) if header.close)
    assert gather.settled_by_completion(alone=False) == Settles("1", "1.1", 2)
