"""Pages: whatever the plan, cutting it loses nothing, doubles nothing and stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.compile import pages
from celery_clutch.compile.pages import (
    ROOT,
    CloseItem,
    Expand,
    Item,
    JobItem,
    Pages,
    ParallelItem,
    expand_slots,
    paginate,
)
from celery_clutch.errors import CorruptRecord
from celery_clutch.model import plan
from celery_clutch.model.plan import Job, Parallel, Scope, Series

from .reference import all_items, evaluate, flat, follow
from .strategies import jobs, plans

J = Job("t")


@contextmanager
def limits(small: bool) -> Iterator[None]:
    """With *small*, pages so small that a plan of a few jobs takes many."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for name, value in {"CHAIN": 3, "SMALL": 2, "TAIL": 1, "WIDTH": 3}.items():
                patch.setattr(pages, name, value)
        yield


def cut_of(root: Series, small: bool, closed: bool = False) -> Pages:
    with limits(small):
        return paginate(root, closed=closed)


either = st.booleans()


# --- nothing lost, nothing doubled --------------------------------------------------------


@given(plans(), either, either)
def test_every_job_appears_exactly_once(root: Series, small: bool, closed: bool) -> None:
    cut = cut_of(root, small, closed)
    found = [item.at for item in all_items(cut) if isinstance(item, JobItem)]
    wanted = [at for at, node in plan.walk(root) if isinstance(node, Job)]
    assert Counter(found) == Counter(wanted)
    assert cut.jobs == root.size


@given(plans(), either, either)
def test_slots_are_unique_and_units_counts_them(root: Series, small: bool, closed: bool) -> None:
    cut = cut_of(root, small, closed)
    slots = [slot for items in cut.pages.values() for slot in pages.slots(items)]
    assert len(set(slots)) == len(slots) == cut.units


@given(plans(), either, either)
def test_every_page_is_referred_to_exactly_once(root: Series, small: bool, closed: bool) -> None:
    cut = cut_of(root, small, closed)
    named = Counter(item.page for item in all_items(cut) if isinstance(item, Expand))
    assert named == Counter(set(cut.pages) - {ROOT})


@given(plans(job=jobs(), max_leaves=15), either)
def test_jobs_keep_what_they_were_given(root: Series, small: bool) -> None:
    wanted = {at: node for at, node in plan.walk(root) if isinstance(node, Job)}
    for item in all_items(cut_of(root, small)):
        if isinstance(item, JobItem):
            job = wanted[item.at]
            assert (item.job.task, item.job.args, item.job.kwargs) == (
                job.task,
                job.args,
                job.kwargs,
            )
            assert (item.job.plain, item.job.prepend) == (job.plain, job.prepend)
            assert item.job.options.get("priority") == job.options.get("priority")


# --- what is in a page means what the plan means ------------------------------------------


@given(plans(), either, either)
def test_pages_mean_what_the_plan_means(root: Series, small: bool, closed: bool) -> None:
    wanted = evaluate(root)
    cut = cut_of(root, small, closed)
    found = follow(cut)
    assert found.previous == wanted.previous
    last, _ = expand_slots(cut.last)
    assert [found.slots[slot] for slot in last] == wanted.last
    for at, node in plan.walk(root):
        # A branch writes its value to its own address; a step does unless it ends a branch.
        if isinstance(node, Job) and at in found.slots:
            assert found.slots[at] == wanted.values[at]
        if isinstance(node, Parallel):
            for index in range(len(node.branches)):
                branch = plan.join(at, index)
                assert found.slots[branch] == wanted.values[branch]


@given(plans(), either)
def test_pages_mean_the_same_after_json(root: Series, small: bool) -> None:
    cut = cut_of(root, small)
    for items in cut.pages.values():
        assert pages.loads(pages.dumps(items)) == items


@given(plans(job=jobs(), max_leaves=15))
def test_pages_of_full_jobs_survive_json(root: Series) -> None:
    for items in paginate(root).pages.values():
        assert pages.loads(pages.dumps(items)) == items


@given(plans(), either, either, st.data())
def test_what_is_left_of_a_run_means_the_same(
    root: Series, small: bool, closed: bool, data: st.DataObject
) -> None:
    cut = cut_of(root, small, closed)
    whole = follow(cut)
    # Any point at which a run can stop: each result has those it was made of behind it.
    kept = whole.order[: data.draw(st.integers(0, len(whole.order)))]
    rest = follow(cut, done={slot: whole.slots[slot] for slot in kept})
    assert rest.slots == whole.slots
    assert rest.order == [slot for slot in whole.order if slot not in kept]


# --- small --------------------------------------------------------------------------------


def weight(items: Iterable[Item]) -> int:
    return sum(not isinstance(item, ParallelItem) for item in flat(items))


def chains(items: tuple[Item, ...]) -> Iterator[tuple[Item, ...]]:
    """*items* and every branch inside them."""
    yield items
    for item in items:
        if isinstance(item, ParallelItem):
            for branch in item.branches:
                yield from chains(branch)


@given(plans(), either, either)
def test_pages_are_bounded(root: Series, small: bool, closed: bool) -> None:
    with limits(small):
        cut = paginate(root, closed=closed)
        # A page may end with what closes a parallel and with an Expand.
        longest = pages.CHAIN + 2
        per_level = longest + pages.SMALL
        for items in cut.pages.values():
            assert items or not root.size
            assert weight(items) <= pages.WIDTH + (root.depth + 1) * per_level
            for chain in chains(items):
                assert len(chain) <= longest
                assert sum(isinstance(item, ParallelItem) for item in chain) <= 1
                for item in chain:
                    if isinstance(item, ParallelItem) and len(item.branches) > 1:
                        assert weight([item]) <= pages.WIDTH


@given(plans(), either, either)
def test_little_stands_behind_a_parallel(root: Series, small: bool, closed: bool) -> None:
    # Each message of a chord carries what follows the chord.
    with limits(small):
        for items in paginate(root, closed=closed).pages.values():
            for chain in chains(items):
                for index, item in enumerate(chain):
                    if isinstance(item, ParallelItem):
                        assert len(chain) - index - 1 <= max(pages.TAIL, 2) + 1


@pytest.mark.parametrize("width", [1, 100, 101, 3000, 10_000, 25_000])
def test_a_wide_parallel_is_a_parallel_of_pages(width: int) -> None:
    cut = paginate(plan.series([plan.parallel([J] * width), J]))
    assert cut.jobs == cut.units == width + 1
    assert cut.last == "1"
    heaviest = max(map(weight, cut.pages.values()))
    assert heaviest <= pages.WIDTH + 1
    # Not many pages either: each is nearly full.
    assert len(cut.pages) <= 2 + 1.1 * width / (pages.WIDTH - 1)


@pytest.mark.parametrize("length", [1, 12, 13, 500, 10_000])
def test_a_long_series_is_a_series_of_pages(length: int) -> None:
    cut = paginate(plan.series([J] * length))
    assert max(map(len, cut.pages.values())) <= pages.CHAIN + 1
    assert len(cut.pages) == -(-length // pages.CHAIN)


def test_a_small_clutch_is_one_page_with_nothing_but_its_jobs() -> None:
    cut = paginate(plan.series([J, plan.parallel([J, J, J]), J]))
    assert list(cut.pages) == [ROOT]
    assert all(isinstance(item, (JobItem, ParallelItem)) for item in all_items(cut))


def test_an_empty_plan_is_one_empty_page() -> None:
    cut = paginate(Series())
    assert cut.pages == {ROOT: ()}
    assert (cut.jobs, cut.units, cut.last) == (0, 0, "")


# --- what Celery needs --------------------------------------------------------------------


def loose_ends(cut: Pages, closed: bool) -> list[Item]:
    """Items that end something that is waited for, and are not a plain task.

    Celery loses count of a chord whose header has a group in it.
    """
    found: list[Item] = []

    def visit(items: tuple[Item, ...], waited: bool) -> None:
        for index, item in enumerate(items):
            follows = index < len(items) - 1
            if isinstance(item, ParallelItem):
                if waited and not follows:
                    found.append(item)
                for branch in item.branches:
                    visit(branch, follows)
            elif isinstance(item, Expand):
                visit(cut.pages[item.page], waited or follows)

    visit(cut.pages[ROOT], closed)
    return found


@given(plans(), either, either)
def test_what_is_waited_for_ends_in_a_plain_task(root: Series, small: bool, closed: bool) -> None:
    assert loose_ends(cut_of(root, small, closed), closed) == []


@given(plans(), either, either)
def test_barriers_says_whether_chords_are_needed(root: Series, small: bool, closed: bool) -> None:
    cut = cut_of(root, small, closed)
    chains_ = [chain for items in cut.pages.values() for chain in chains(items)]
    waits = any(isinstance(item, ParallelItem) for chain in chains_ for item in chain[:-1])
    assert cut.barriers is waits


@given(plans(), either)
def test_an_expand_ends_its_page(root: Series, small: bool) -> None:
    for items in cut_of(root, small).pages.values():
        for chain in chains(items):
            for item in chain[:-1]:
                assert not isinstance(item, Expand)


@given(plans(), either)
def test_a_plain_task_that_takes_a_previous_result_leads_its_page(
    root: Series, small: bool
) -> None:
    # Whoever compiles the page reads the result: it has to be there by then.
    cut = cut_of(root, small)
    for items in cut.pages.values():
        written = set(pages.slots(items))
        for item in flat(items):
            if isinstance(item, JobItem) and item.job.plain and item.job.prepend:
                assert not written.intersection(expand_slots(item.previous)[0])


# --- queues and scopes --------------------------------------------------------------------


@given(plans(job=jobs(), max_leaves=15), either, either)
def test_the_queue_in_force_reaches_everything(root: Series, small: bool, closed: bool) -> None:
    cut = cut_of(root, small, closed)
    given_options = {at: node.options for at, node in plan.walk(root) if isinstance(node, Job)}
    scopes = {"": root.scope}
    for at, node in plan.walk(root):
        outer = scopes[at.rpartition(".")[0]]
        scopes[at] = outer if isinstance(node, Job) else node.scope.inherit(outer)
    for item in all_items(cut):
        if isinstance(item, JobItem):
            if queue := scopes[item.at].queue:
                assert item.job.options["queue"] == queue
                assert "routing_key" not in item.job.options
            else:
                assert item.job.options == given_options[item.at]
        elif isinstance(item, (CloseItem, Expand)) and root.scope.queue:
            assert item.queue


@given(plans(), either)
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


@given(plans(), either)
def test_each_inner_on_success_has_one_close_behind_its_jobs(root: Series, small: bool) -> None:
    cut = cut_of(root, small)
    told = Counter(i.scope for i in all_items(cut) if isinstance(i, CloseItem) and i.scope)
    wanted = [at for at, n in plan.walk(root) if isinstance(n, Series) and n.scope.on_success]
    assert told == Counter(wanted)
    order = follow(cut).order
    for at in wanted:
        inside = [
            i for i, slot in enumerate(order) if slot.startswith(f"{at}.") and "!" not in slot
        ]
        assert all(index < order.index(f"{at}!") for index in inside)


# --- details ------------------------------------------------------------------------------


def test_without_leaves_what_is_not_done() -> None:
    barrier, gather = CloseItem("0"), CloseItem("0", slot="0.1", previous="0.1*2")
    told = CloseItem("2", scope="2")
    job = {at: JobItem(at, at, "", "", J) for at in "abcd"}
    items = (
        job["a"],
        ParallelItem("0", ((job["b"],), (job["c"], gather), (Expand("7"),))),
        barrier,
        told,
        job["d"],
    )
    assert pages.without(items, set()) == items
    assert pages.without(items, {"a", "b", "2!"}) == (
        ParallelItem("0", ((job["c"], gather), (Expand("7"),))),
        barrier,
        job["d"],
    )
    assert pages.without(items, {"c"})[1] == ParallelItem(
        "0", ((job["b"],), (gather,), (Expand("7"),))
    )
    assert pages.without((job["a"],), {"a"}) == ()


@given(plans(), either, st.data())
def test_without_drops_the_done_and_nothing_else(
    root: Series, small: bool, data: st.DataObject
) -> None:
    cut = cut_of(root, small)
    slots = [slot for items in cut.pages.values() for slot in pages.slots(items)]
    done = set(data.draw(st.lists(st.sampled_from(slots)))) if slots else set()
    for items in cut.pages.values():
        left = pages.without(items, done)
        assert set(pages.slots(left)) == set(pages.slots(items)) - done
        expands = [i for i in flat(items) if isinstance(i, Expand)]
        assert [i for i in flat(left) if isinstance(i, Expand)] == expands
        for item in flat(left):
            if isinstance(item, ParallelItem):
                assert item.branches
                assert all(item.branches)


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ("", ([], False)),
        ("0", (["0"], False)),
        ("1.2", (["1.2"], False)),
        ("0*1", (["0.0"], True)),
        ("1.2*3", (["1.2.0", "1.2.1", "1.2.2"], True)),
    ],
)
def test_expand_slots(previous: str, expected: tuple[list[str], bool]) -> None:
    assert expand_slots(previous) == expected


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
        pages.compress(b'[["j", "0"]]'),
        pages.compress(b'[["j", "0", "0", "", "", null]]'),
        pages.compress(b'[["j", "0", "0", "", "", 5, 6]]'),
        pages.compress(b'[["p", "0"]]'),
        pages.compress(b'[["p", "0", [[5]]]]'),
        pages.compress(b'[["c"]]'),
        pages.compress(b'[["x", "1", "q", "more"]]'),
    ],
)
def test_what_is_not_a_page_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        pages.loads(data)


def test_a_page_is_smaller_than_its_json() -> None:
    items = paginate(plan.series([plan.parallel([J] * 90)])).pages[ROOT]
    assert len(pages.dumps(items)) < len(pages.decompress(pages.dumps(items))) / 4


def test_a_deep_plan_fits_its_pages() -> None:
    node: plan.Node = J
    for _ in range(31):
        node = plan.series([J, plan.parallel([node, J]), J], Scope(queue="q"))
    root = plan.series([node])
    wanted = evaluate(root)
    for small in (False, True):
        assert follow(cut_of(root, small)).previous == wanted.previous
