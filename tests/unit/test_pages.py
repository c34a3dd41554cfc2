"""Pages: whatever the plan, cutting it loses nothing, doubles nothing and stays small."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.compile import cut as cut_module
from celery_clutch.compile import pages
from celery_clutch.compile.cut import paginate
from celery_clutch.compile.pages import ROOT, Expand, Item, Narrow, Pages
from celery_clutch.errors import CorruptRecord
from celery_clutch.model import plan, shape
from celery_clutch.model.plan import Job, Parallel, Scope, Series
from celery_clutch.stores.base import Barrier, Settles, Turn

from .reference import (
    Pick,
    all_items,
    before,
    evaluate,
    follow,
    jobs_of,
    limits,
    starts_of,
    the_last,
)
from .strategies import any_json, jobs, mutated, plans

J = Job("t")


def cut_of(root: Series, small: bool, tally: bool = False) -> Pages:
    with limits(small):
        return paginate(root, tally=tally, window=6 if small else pages.WINDOW)


either = st.booleans()
picks: st.SearchStrategy[Pick] = st.sampled_from([the_last, lambda count: 0]) | st.randoms().map(
    lambda random: random.randrange
)
all_plans = plans(narrow=True)


# --- nothing lost, nothing doubled --------------------------------------------------------


@given(all_plans, either, either)
def test_every_job_is_in_one_chain(root: Series, small: bool, tally: bool) -> None:
    cut = cut_of(root, small, tally)
    found = Counter(item.at for item in all_items(cut))
    assert found == Counter(jobs_of(root, ""))
    assert cut.jobs == root.size


@given(all_plans, either)
def test_branches_of_narrow_parallels_have_pages_of_their_own(root: Series, small: bool) -> None:
    cut = cut_of(root, small)
    wanted: dict[str, int] = {}
    for at, node in plan.walk(root):
        if isinstance(node, Parallel) and node.limit and node.branches:
            wanted[at] = node.limit
            for index, branch in enumerate(node.branches):
                starts = starts_of(cut.pages[f"{at}/{index}"])
                page = Counter(i.at for start in starts if isinstance(start, tuple) for i in start)
                assert set(page) <= jobs_of(branch, plan.join(at, index))
    found = {
        start.at: start.limit
        for starts in cut.pages.values()
        for start in starts_of(starts)
        if isinstance(start, Narrow)
    }
    assert found == wanted
    assert {key.partition("/")[0] for key in cut.pages if "/" in key} == set(wanted)


@given(all_plans, either)
def test_the_first_branches_of_a_narrow_parallel_start_it(root: Series, small: bool) -> None:
    cut = cut_of(root, small)

    def firsts(starts: Any) -> list[Item]:
        found: list[Item] = []
        for start in starts:
            if isinstance(start, Expand):
                found.extend(firsts(cut.pages[start.page]))
            elif isinstance(start, Narrow):
                found.extend(firsts(start.starts))
            else:
                found.extend(start)
        return found

    for starts in list(cut.pages.values()):
        for start in starts_of(starts):
            if isinstance(start, Narrow):
                branches = [
                    cut.pages[f"{start.at}/{index}"]
                    for index in range(min(start.limit, start.width))
                ]
                wanted = [item.at for each in branches for item in firsts(each)]
                assert Counter(item.at for item in firsts(start.starts)) == Counter(wanted)


@given(all_plans, either, picks)
def test_every_page_is_started_once(root: Series, small: bool, pick: Pick) -> None:
    cut = cut_of(root, small)
    started = Counter(follow(cut, pick).pages)
    assert set(started.values()) <= {1}
    left = set(cut.pages) - set(started)
    # Those that start a narrow parallel are started with it.
    copied = {
        f"{start.at}/{index}"
        for starts in cut.pages.values()
        for start in starts_of(starts)
        if isinstance(start, Narrow)
        for index in range(min(start.limit, start.width))
    }
    assert left == copied


@given(plans(job=jobs(), max_leaves=15, narrow=True), either)
def test_jobs_keep_what_they_were_given(root: Series, small: bool) -> None:
    wanted = {at: node for at, node in plan.walk(root) if isinstance(node, Job)}
    for item in all_items(cut_of(root, small)):
        job = wanted[item.at]
        assert (item.job.task, item.job.args, item.job.kwargs) == (job.task, job.args, job.kwargs)
        assert (item.job.plain, item.job.prepend) == (job.plain, job.prepend)
        assert item.job.options.get("priority") == job.options.get("priority")


# --- what is in a page means what the plan means ------------------------------------------


@given(all_plans, either, either, picks)
def test_pages_mean_what_the_plan_means(root: Series, small: bool, tally: bool, pick: Pick) -> None:
    wanted = evaluate(root)
    cut = cut_of(root, small, tally)
    found = follow(cut, pick)
    assert found.previous == wanted.previous
    assert found.values == {at: wanted.values[at] for at in jobs_of(root, "")}
    last = [shape.arrange(member, found.values, _none) for member in shape.members(cut.last)]
    assert last == wanted.last


def _none(address: str, skipped: bool) -> Any:
    raise KeyError(address)


@given(all_plans, either, picks)
def test_a_job_starts_when_all_before_it_is_done(root: Series, small: bool, pick: Pick) -> None:
    for at, done in follow(cut_of(root, small), pick).begun:
        assert before(root, at) <= done


@given(all_plans, either, picks)
def test_a_narrow_parallel_stays_within_its_limit(root: Series, small: bool, pick: Pick) -> None:
    begun = follow(cut_of(root, small), pick).begun
    for at, node in plan.walk(root):
        if not isinstance(node, Parallel) or not node.limit:
            continue
        branches = [jobs_of(branch, plan.join(at, i)) for i, branch in enumerate(node.branches)]
        started: set[str] = set()
        for address, done in begun:
            started.add(address)
            under_way = [each for each in branches if each & started and not each <= done]
            assert len(under_way) <= node.limit


@given(all_plans, either, picks)
def test_a_listener_hears_of_each_branch_once(root: Series, small: bool, pick: Pick) -> None:
    members: dict[str, Counter[str]] = defaultdict(Counter)
    widths = {at: len(n.branches) for at, n in plan.walk(root) if isinstance(n, Parallel)}
    for settles in follow(cut_of(root, small, tally=True), pick).settled:
        assert settles.width == widths[settles.step]
        members[settles.step][settles.member] += 1
    assert members == {
        step: Counter(plan.join(step, index) for index in range(width))
        for step, width in widths.items()
    }


@given(all_plans, either)
def test_pages_mean_the_same_after_json(root: Series, small: bool) -> None:
    for starts in cut_of(root, small).pages.values():
        assert pages.loads(pages.dumps(starts)) == starts


@given(plans(job=jobs(), max_leaves=15, narrow=True), either)
def test_pages_of_full_jobs_survive_json(root: Series, tally: bool) -> None:
    for starts in paginate(root, tally=tally).pages.values():
        assert pages.loads(pages.dumps(starts)) == starts


def test_barriers_are_short() -> None:
    barriers = (
        Barrier("0.1", 1),
        Barrier("1", 2, "page 3"),
        Barrier("1.2", 3, "", Settles("1", "1.2", 7)),
        Barrier("1.2", 3, "", None, Turn("1", "1.2", 2, 7)),
    )
    data = pages.barriers_to_json(barriers)
    assert data == [["0.1", 1], ["1", 2, "page 3"], ["1.2", 3, "", 7], ["1.2", 3, "", 0, 2, 7]]
    assert pages.barriers_from_json(data) == barriers


# --- small --------------------------------------------------------------------------------


def weight(starts: Any) -> int:
    """How many messages a page is."""
    return sum(not isinstance(start, Narrow) for start in starts_of(starts))


@given(all_plans, either, either)
def test_pages_are_bounded(root: Series, small: bool, tally: bool) -> None:
    with limits(small):
        cut = paginate(root, tally=tally)
        for starts in cut.pages.values():
            assert starts or not root.size
            assert weight(starts) <= cut_module.WIDTH
            for start in starts_of(starts):
                if isinstance(start, tuple):
                    assert 0 < len(start) <= cut_module.CHAIN


def test_a_narrow_parallel_in_the_widest_window_fits_a_page() -> None:
    narrow = plan.parallel([J] * 10_000, limit=10_000)
    cut = paginate(plan.series([plan.parallel([narrow, *[J] * 11_000])]), window=10_000)
    assert max(map(weight, cut.pages.values())) <= pages.WIDTH


@pytest.mark.parametrize("width", [1, 100, 101, 3000, 10_000, 25_000])
def test_a_wide_parallel_is_a_parallel_of_pages(width: int) -> None:
    cut = paginate(plan.series([plan.parallel([J] * width), J]))
    assert cut.jobs == width + 1
    assert cut.last == "1"
    assert max(map(weight, cut.pages.values())) <= pages.WIDTH
    # Not many pages either: each is nearly full.
    assert len(cut.pages) <= 3 + 1.1 * width / (pages.WIDTH - 1)


def most_at_once(cut: Pages) -> int:
    """How many messages wait at most, where one worker takes one after another."""
    queue: deque[Any] = deque([Expand(ROOT)])
    most = 0
    while queue:
        start = queue.popleft()
        if isinstance(start, Expand):
            queue.extend(starts_of(cut.pages[start.page]))
        most = max(most, len(queue))
    return most


@pytest.mark.parametrize(
    "node",
    [
        plan.parallel([J] * 25_000),
        plan.parallel([plan.parallel([J] * 200)] * 125),
        plan.parallel([plan.series([plan.parallel([J] * 200), J])] * 125),
        plan.parallel([plan.series([J, J])] * 25_000),
    ],
    ids=["wide", "nested", "series", "chains"],
)
def test_the_messages_of_a_wide_parallel_are_sent_a_window_at_a_time(node: plan.Node) -> None:
    for window in (300, 2000):
        cut = paginate(plan.series([node, J]), window=window)
        assert window * 0.8 < most_at_once(cut) <= window + pages.WIDTH


def test_pages_are_given_away_as_they_are_complete() -> None:
    kept: list[tuple[str, int]] = []
    root = plan.series([J, plan.parallel([J] * 1000), J])
    cut = paginate(root, keep=lambda key, starts: kept.append((key, weight(starts))))
    whole = paginate(root)
    assert kept == [(key, weight(starts)) for key, starts in whole.pages.items()]
    assert cut.pages == {}
    assert cut.first == whole.first == whole.pages[ROOT]


def test_more_pages_are_sent_where_the_jobs_before_them_are() -> None:
    near = Job("t", options={"queue": "near"})
    cut = paginate(plan.series([plan.parallel([near] * 5000)], Scope()))
    queues = {s.queue for starts in cut.pages.values() for s in starts if isinstance(s, Expand)}
    assert queues == {"near"}


@pytest.mark.parametrize("length", [1, 12, 13, 500, 10_000])
def test_a_long_series_is_a_series_of_pages(length: int) -> None:
    cut = paginate(plan.series([J] * length))
    assert len(cut.pages) == -(-length // pages.CHAIN)


def test_a_parallel_that_is_followed_is_two_pages() -> None:
    cut = paginate(plan.series([plan.parallel([J, J, J]), J]))
    (then,) = set(cut.pages) - {ROOT}
    assert {item.barriers for item in pages.items(cut.pages[ROOT])} == {
        (Barrier("0", 3, f"page {then}"),)
    }
    assert [item.at for item in pages.items(cut.pages[then])] == ["1"]


def test_a_parallel_at_the_end_of_a_branch_counts_towards_the_barrier_around() -> None:
    cut = paginate(plan.series([plan.parallel([plan.series([J, plan.parallel([J, J])]), J]), J]))
    ends = {item.at: item.barriers for item in all_items(cut)}
    assert ends["0.0.1.0"] == ends["0.0.1.1"] == ends["0.1"]
    assert ends["0.1"][0].width == 3


def test_an_empty_plan_is_one_empty_page() -> None:
    cut = paginate(Series())
    assert cut.pages == {ROOT: ()}
    assert (cut.jobs, cut.last) == (0, "")


@given(all_plans, either)
def test_a_plain_task_that_takes_a_previous_result_leads_its_chain(
    root: Series, small: bool
) -> None:
    # Who sends it puts the result into its message: it has to be there by then.
    for starts in cut_of(root, small).pages.values():
        for start in starts_of(starts):
            if isinstance(start, tuple):
                assert not any(item.job.plain and item.job.prepend for item in start[1:])


# --- queues and scopes --------------------------------------------------------------------


@given(plans(job=jobs(), max_leaves=15, narrow=True), either)
def test_the_queue_in_force_reaches_everything(root: Series, small: bool) -> None:
    cut = cut_of(root, small)
    given_options = {at: node.options for at, node in plan.walk(root) if isinstance(node, Job)}
    scopes = {"": root.scope}
    for at, node in plan.walk(root):
        outer = scopes[at.rpartition(".")[0]]
        scopes[at] = outer if isinstance(node, Job) else node.scope.inherit(outer)
    for item in all_items(cut):
        if queue := scopes[item.at].queue:
            assert item.job.options["queue"] == queue
            assert "routing_key" not in item.job.options
        else:
            assert item.job.options == given_options[item.at]
    for starts in cut.pages.values():
        for start in starts_of(starts):
            if isinstance(start, Expand) and root.scope.queue:
                assert start.queue


@given(all_plans, either)
def test_scopes_are_those_in_force(root: Series, small: bool) -> None:
    cut = cut_of(root, small)
    assert cut.scopes[""] == root.scope
    for at, node in plan.walk(root):
        if isinstance(node, Job) or not node.scope:
            assert at not in cut.scopes
            continue
        nearest = at.rpartition(".")[0]
        while nearest and nearest not in cut.scopes:
            nearest = nearest.rpartition(".")[0]
        assert cut.scopes[at] == node.scope.inherit(cut.scopes[nearest])


@given(all_plans, either, picks)
def test_each_inner_on_success_is_told_once_behind_its_jobs(
    root: Series, small: bool, pick: Pick
) -> None:
    inner = {
        f"success {at}": jobs_of(node, at)
        for at, node in plan.walk(root)
        if isinstance(node, Series) and node.scope.on_success
    }
    told = follow(cut_of(root, small), pick).told
    assert Counter(key for key, _ in told) == Counter(list(inner))
    for key, done in told:
        assert inner[key] <= done


# --- details ------------------------------------------------------------------------------


def test_only_a_page_of_jobs_is_sent_by_whoever_engages() -> None:
    assert pages.is_direct(paginate(plan.series([J] * 500)).pages[ROOT])
    assert pages.is_direct(paginate(plan.series([plan.parallel([J] * 100), J])).pages[ROOT])
    assert not pages.is_direct(paginate(plan.series([plan.parallel([J] * 101), J])).pages[ROOT])
    assert pages.is_direct(())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain",
        pages.compress(b""),
        pages.compress(b"{"),
        pages.compress(b"5"),
        pages.compress(b"[5]"),
        pages.compress(b"[[]]"),
        pages.compress(b'[["?", 1]]'),
        pages.compress(b'[["c", "0"]]'),
        pages.compress(b'[["c", ["0", null, "", "", [], []]]]'),
        pages.compress(b'[["c", ["0", ["t", [], {}, {}, 0], "", "", [5], []]]]'),
        pages.compress(b'[["c", ["0", ["t", [], {}, {}, 0], "", "", [["0"]], []]]]'),
        pages.compress(
            b'[["c", ["0", ["t", [], {}, {}, 0], "", "", [["0", 1, 2, 3, 4, 5, 6, 7, 8, 9]], []]]]'
        ),
        pages.compress(b'[["c", ["0", ["t", [], {}, {}, 0], 5, "", [], []]]]'),
        pages.compress(b'[["c", ["0", ["t", [], {}, {}, 0], "0*x", "", [], []]]]'),
        pages.compress(b'[["c", ["0", ["t", [], {}, {}, 0], "", "", [], [["0"]]]]]'),
        pages.compress(b'[["n", "0", 1, 2]]'),
        pages.compress(b'[["n", "0", 1, 2, [[5]]]]'),
        pages.compress(b'[["x", "1", "q", "more"]]'),
        pages.compress(b'[{"__type__": "decimal", "__value__": "x"}]'),
    ],
)
def test_what_is_not_a_page_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        pages.loads(data)


@given(st.binary())
def test_any_bytes_are_a_page_or_a_corrupt_record(data: bytes) -> None:
    for each in (data, pages.compress(data)):
        with suppress(CorruptRecord):
            pages.loads(each)


@given(any_json)
def test_any_json_is_a_page_or_a_corrupt_record(value: Any) -> None:
    with suppress(CorruptRecord):
        pages.loads(pages.compress(orjson.dumps(value)))


@given(plans(max_leaves=10, narrow=True), st.data())
def test_a_page_with_a_mistake_in_it_is_a_corrupt_record_if_it_is_no_page(
    root: Series, data: st.DataObject
) -> None:
    cut = paginate(root, tally=True)
    starts = cut.pages[data.draw(st.sampled_from(sorted(cut.pages)))]
    value = data.draw(mutated(orjson.loads(pages.decompress(pages.dumps(starts)))))
    with suppress(CorruptRecord):
        for item in pages.items(pages.loads(pages.compress(orjson.dumps(value)))):
            list(shape.addresses(item.previous))


@given(all_plans, st.data())
def test_half_a_page_is_a_corrupt_record(root: Series, data: st.DataObject) -> None:
    whole = pages.dumps(paginate(root).pages[ROOT])
    with pytest.raises(CorruptRecord):
        pages.loads(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_page_is_smaller_than_its_json() -> None:
    starts = paginate(plan.series([plan.parallel([J] * 90)])).pages[ROOT]
    assert len(pages.dumps(starts)) < len(pages.decompress(pages.dumps(starts))) / 4


def test_a_deep_plan_fits_its_pages() -> None:
    node: plan.Node = J
    for _ in range(31):
        node = plan.series([J, plan.parallel([node, J]), J], Scope(queue="q"))
    root = plan.series([node])
    wanted = evaluate(root)
    for small in (False, True):
        assert follow(cut_of(root, small)).previous == wanted.previous
