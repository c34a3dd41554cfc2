"""The one suite that every store passes: subclass `StoreContract` in a test module.

::

    from celery_clutch.testing import StoreContract

    class TestMyStore(StoreContract):
        def make_store(self, options):
            return MyStore("mine://localhost", options)

The tests follow the docstrings of `celery_clutch.stores.base`, and their messages quote them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..errors import AlreadyEngaged, MissingExtra, StoreUnavailable
from ..model.status import State
from ..stores.base import (
    END,
    NOTHING,
    STOPPED,
    TURNS,
    Attempted,
    Barrier,
    Begun,
    Claim,
    Completed,
    Completion,
    Due,
    Execution,
    Failed,
    Growth,
    Lease,
    Missing,
    Record,
    ResultStore,
    Settles,
    StoreOptions,
    Summary,
    Tolerance,
    Turn,
    Verdict,
)
from ..stores.buckets import Buckets
from ..stores.memory import MemoryStore

try:
    import hypothesis
    import hypothesis.stateful
    import pytest
    from hypothesis import strategies as st
except ImportError as exc:  # pragma: no cover - exercised in a bare environment
    needs = "StoreContract needs pytest and hypothesis: pip install pytest hypothesis"
    raise MissingExtra(needs) from exc

T = TypeVar("T")

ODD = [
    b"",
    b"null",
    b"false",
    b"0",
    b"\x00",
    b"\r\n",
    b"\xff\xfe\xc3\x28",
    bytes(range(256)),
    b'"\\',
]
"""Values that a careless store loses or changes."""

IDS = ["a", "a:b", "a:run", "-", "~", "0", "A_b-c.d:e@f+g=h/i~j", "r" * 200]
"""Run ids that a clutch may be given."""

LONG = 30.0
"""Seconds within which something that has to happen is expected to have happened."""

PROMPT = 10.0
"""Seconds within which a waiting client is expected to notice; asking twice a second will do."""


class StoreContract:
    """Tests of a `ResultStore`.

    A subclass says how to open one, in `make_store`. What that needs of pytest, such as a temporary
    directory, an autouse fixture of the subclass can put on ``self``.

    Attributes:
        shared: two store objects of the same place see the same runs. False for stores that live in
            one object.
        processes: they do so from different processes as well.
        ttl: the shortest time to live that the store can keep to, in seconds.
        examples: how many random histories are compared with what `MemoryStore` does, of runs that
            decide nothing, and as many of runs that do.
    """

    shared = True
    processes = True
    ttl = 0.3
    examples = 40

    def make_store(self, options: StoreOptions) -> ResultStore:
        """Open the store. Called more than once in a test where `shared`."""
        raise NotImplementedError("a subclass of StoreContract says how to open its store")

    def make_unreachable(self, options: StoreOptions) -> ResultStore | None:
        """A store whose server cannot be reached; None if there is no server to be away."""
        return None

    @pytest.fixture
    def store(self) -> Iterator[ResultStore]:
        """The store under test, with a prefix of its own; its runs are deleted after the test."""
        with self._opened() as opened:
            yield opened

    @contextmanager
    def _opened(self, **options: float) -> Iterator[ResultStore]:
        prefix = f"contract-{uuid.uuid4().hex[:12]}"
        store = self.make_store(StoreOptions(prefix, **options))
        self._others: list[ResultStore] = []
        try:
            yield store
        finally:
            for summary in _scan(store):
                store.delete(summary.run)
            for each in (store, *self._others):
                each.close()

    def _two(self, store: ResultStore) -> list[ResultStore]:
        """*store*, and a second object for the same place if there can be one."""
        if not self.shared:
            return [store, store]
        self._others.append(self.make_store(store.options))
        return [store, self._others[-1]]

    # --- create ---------------------------------------------------------------------------

    def test_create_starts_a_run(self, store: ResultStore) -> None:
        before = time.time()
        store.create("r", b"meta", {"0": b"page"}, 3)
        record = _read(store, "r")
        assert (record.run, record.meta) == ("r", b"meta"), "meta: what create was given, unchanged"
        assert record.state is State.RUNNING
        assert record.generation == 0
        assert (record.jobs, record.remaining) == (3, 3), "remaining == jobs"
        assert (record.done, record.failing, record.dead) == (0, 0, 0)
        assert record.ended_at is None, "ended_at is None while running"
        assert (record.failures, record.finished, record.held) == ({}, frozenset(), {})
        assert record.due == {}
        assert abs(record.created_at - before) < 300, "created_at: seconds since the epoch"
        assert record.updated_at >= record.created_at

    def test_create_without_jobs_has_succeeded(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 0, ends=[State.SUCCEEDED, State.FAILED])
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "with jobs == 0 it is SUCCEEDED from the start"
        assert record.ended_at is not None
        assert _due(store, "r") == {"end SUCCEEDED": ""}
        assert store.wait("r", LONG) is State.SUCCEEDED

    def test_create_makes_due(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1, due={"page 0": 1234.5, "odd: ü \u2713": 4e9})
        assert _read(store, "r").due == {"page 0": Due(1234.5), "odd: ü \u2713": Due(4e9)}
        assert [each.due for each in _scan(store)] == [2]

    def test_create_leaves_a_run_that_exists_as_it_is(self, store: ResultStore) -> None:
        store.create("r", b"first", {"0": b"page"}, 2, name="first", tags=["t"])
        _complete(store, "r", "0", b"value")
        for state in (State.RUNNING, State.CANCELLED):
            before = _read(store, "r")
            with pytest.raises(AlreadyEngaged, match="r"):
                store.create("r", b"second", {"0": b"other", "1": b"new"}, 0, name="second")
            assert _read(store, "r") == before, f"a {state} run of this id is left as it is"
            assert store.page("r", "0") == b"page"
            assert store.page("r", "1") is Missing
            assert [summary.name for summary in _scan(store)] == ["first"]
            store.transition("r", [State.RUNNING], State.CANCELLED, 0)

    def test_one_of_many_creators_wins(self, store: ResultStore) -> None:
        def create(store: ResultStore, who: bytes) -> bytes | None:
            try:
                store.create("r", who, {"0": who}, 1)
            except AlreadyEngaged:
                return None
            return who

        stores = self._two(store)
        answers = _at_once([_call(create, stores[i % 2], b"%d" % i) for i in range(8)])
        winners = [who for who in answers if who is not None]
        assert len(winners) == 1, "of several creators of one id, one creates the run"
        assert (_read(store, "r").meta, store.page("r", "0")) == (winners[0], winners[0])

    def test_runs_do_not_touch_each_other(self, store: ResultStore) -> None:
        for number, run in enumerate(IDS):
            store.create(run, run.encode(), {"0": run.encode()}, number + 2, due={run: 1.0})
            _complete(store, run, "0", run.encode())
            _fail(store, run, "1", failure=run.encode())
            assert store.checkpoint(run, "1", run.encode(), 0)
            assert _begin(store, run, "2", owner=run) is Verdict.RUN
        for number, run in enumerate(IDS):
            record, own = _read(store, run), run.encode()
            assert (record.run, record.meta, record.remaining) == (run, own, number + 1)
            assert (record.failures, record.held) == ({"1": own}, {"1": own})
            assert (store.page(run, "0"), store.values(run, ["0"])) == (own, [own])
            assert record.due == {run: Due(1.0)}
            assert {at: lease.owner for at, lease in store.leases(run).items()} == {"2": run}
        assert store.delete(IDS[0])
        left = [store.read(run) is not None for run in IDS]
        assert left == [False] + [True] * (len(IDS) - 1), "delete forgets one run"

    # --- page -----------------------------------------------------------------------------

    def test_page(self, store: ResultStore) -> None:
        pages = {f"k{number}": odd for number, odd in enumerate(ODD)}
        store.create("r", b"", {**pages, "": b"empty key", "plan": b"plan"}, 1)
        assert {key: store.page("r", key) for key in pages} == pages
        assert (store.page("r", ""), store.page("r", "plan")) == (b"empty key", b"plan")
        assert store.page("r", "other") is Missing, "Missing when there is no such page"
        assert store.page("gone", "plan") is Missing, "Missing when there is no such run"

    def test_large_pages_and_many_of_them(self, store: ResultStore) -> None:
        large, meta = os.urandom(4 << 20), os.urandom(1 << 20)
        pages = {str(number): b"page %d" % number for number in range(1000)}
        store.create("r", meta, {**pages, "large": large}, 1)
        assert store.page("r", "large") == large
        assert [store.page("r", key) for key in ("0", "500", "999")] == [
            b"page 0",
            b"page 500",
            b"page 999",
        ]
        assert _read(store, "r").meta == meta

    # --- begin ----------------------------------------------------------------------------

    def test_begin_gives_a_lease(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        before = _read(store, "r").created_at
        assert _begun(store, "r", "0", owner="me", turn=3, page="1/2") == Begun(Verdict.RUN)
        lease = store.leases("r").pop("0")
        assert replace(lease, started_at=0.0) == Lease("me", 3, 0, 0.0, "1/2")
        assert before <= lease.started_at < before + 300

    def test_begin_drops_jobs_of_no_run_and_of_other_generations(self, store: ResultStore) -> None:
        assert _begin(store, "gone", "0") is Verdict.DROP, "no such run: DROP"
        assert store.read("gone") is None
        store.create("r", b"", {}, 2)
        assert _begin(store, "r", "0", 1) is Verdict.DROP, "another generation: DROP"
        assert store.leases("r") == {}
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert _begin(store, "r", "0", 0) is Verdict.DROP, "another generation: DROP"
        assert _begin(store, "r", "0", 1) is Verdict.RUN

    def test_begin_asks_in_order(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        _complete(store, "r", "0")
        _fail(store, "r", "0", final=True)
        assert _begin(store, "r", "0") is Verdict.DONE, "a result goes before a failure"
        assert store.checkpoint("r", "1", b"held", 0)
        assert _begun(store, "r", "1") == Begun(Verdict.RUN, b"held")
        assert store.leases("r") == {}, "RUN with held gives no lease"
        _fail(store, "r", "1", attempt=1)
        assert _begin(store, "r", "1") is Verdict.DROP, "a failed attempt goes before held"
        assert _begun(store, "r", "1", turn=TURNS) == Begun(Verdict.RUN, b"held")
        assert _begin(store, "r", "2", owner="one") is Verdict.RUN
        assert store.checkpoint("r", "2", b"two", 0)
        assert store.leases("r") == {}, "checkpoint: the lease is dropped"
        assert _begin(store, "r", "0", 7) is Verdict.DROP, "DROP goes before DONE"
        store.transition("r", [State.RUNNING, State.FAILED], State.CANCELLED, 0)
        assert _begin(store, "r", "0") is Verdict.DROP, "CANCELLED: DROP, before DONE"
        assert _begin(store, "r", "3") is Verdict.DROP

    def test_begin_takes_receipts(self, store: ResultStore) -> None:
        due = {"page 0": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0}
        store.create("r", b"", {}, 5, due=due)
        _begin(store, "r", "0", 1, receipts=["page 0"])
        _begin(store, "gone", "0", receipts=["page 0"])
        assert set(_due(store, "r")) == set(due), "DROP goes before the receipts"
        assert _begin(store, "r", "0", receipts=["page 0", "none"]) is Verdict.RUN
        assert _begin(store, "r", "0", owner="other", receipts=["b"]) is Verdict.BUSY
        _complete(store, "r", "1")
        assert _begin(store, "r", "1", receipts=["c"]) is Verdict.DONE
        _fail(store, "r", "2", final=True)
        assert _begin(store, "r", "2", receipts=["d"]) is Verdict.DROP
        assert _due(store, "r") == {"e": ""}, "otherwise receipts are no longer due"
        store.transition("r", [State.FAILED], State.CANCELLED, 0)
        store.remind("r", {"f": 1.0})
        assert _begin(store, "r", "3", receipts=["f"]) is Verdict.DROP
        assert "f" in _due(store, "r"), "CANCELLED: DROP, before the receipts"

    def test_begin_drops_attempts_that_have_failed(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        _fail(store, "r", "0", attempt=2)
        turns = [0, 1, TURNS, 2 * TURNS - 1, 2 * TURNS]
        verdicts = [_begin(store, "r", "0", turn=turn) for turn in turns]
        assert verdicts == [Verdict.DROP] * 4 + [Verdict.RUN], "of this attempt or a later one"
        _fail(store, "r", "1", attempt=1, final=True)
        assert _begin(store, "r", "1", turn=5 * TURNS) is Verdict.DROP, "a failure that was final"

    def test_begin_lets_a_failed_run_go_on(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _fail(store, "r", "0", final=True)
        assert _read(store, "r").state is State.FAILED
        assert _begin(store, "r", "1") is Verdict.RUN, "a FAILED run goes on"

    def test_begin_is_busy_while_another_has_it(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _begin(store, "r", "0", owner="one", turn=2) is Verdict.RUN
        busy = Begun(Verdict.BUSY, owner="one")
        for owner in ("two", "one"):
            assert _begun(store, "r", "0", owner=owner, turn=2) == busy
            assert _begun(store, "r", "0", owner=owner, turn=1) == busy
        assert _begun(store, "r", "0", owner="two", turn=2, lapsed="three") == busy
        assert store.leases("r")["0"].owner == "one"
        assert _begin(store, "r", "1", owner="two") is Verdict.RUN, "leases are by address"
        assert _begin(store, "r", "0", owner="two", turn=3) is Verdict.RUN, "of a lower turn: RUN"
        lease = store.leases("r")["0"]
        assert (lease.owner, lease.turn, lease.lapses) == ("two", 3, 0)

    def test_begin_gives_up_when_too_many_owners_have_died(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        assert _begin(store, "r", "0", owner="w0", limit=3) is Verdict.RUN
        for number in (1, 2):
            mine = {"owner": f"w{number}", "lapsed": f"w{number - 1}", "limit": 3}
            assert _begin(store, "r", "0", **mine) is Verdict.RUN
            lease = store.leases("r")["0"]
            assert (lease.owner, lease.lapses) == (f"w{number}", number)
            assert _begin(store, "r", "0", **mine) is Verdict.BUSY, "it is not the owner any more"
        assert _begin(store, "r", "0", owner="w3", lapsed="w2", limit=3) is Verdict.GIVE_UP
        assert store.leases("r")["0"].owner == "w2", "only RUN gives the lease"
        assert _begin(store, "r", "0", owner="w3", turn=1, limit=3) is Verdict.RUN
        assert store.leases("r")["0"].lapses == 2, "of the same job"
        _fail(store, "r", "0", attempt=1)
        assert _begin(store, "r", "0", turn=TURNS, limit=3) is Verdict.RUN
        assert store.leases("r")["0"].lapses == 0, "the lease of the job is dropped"
        assert _begin(store, "r", "1", owner="a", lapsed="a") is Verdict.RUN, "no lease: RUN"

    def test_leases_outlive_the_generation(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _begin(store, "r", "0", owner="one")
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert store.leases("r")["0"].owner == "one"
        assert _begun(store, "r", "0", 1, owner="two") == Begun(Verdict.BUSY, owner="one")
        store.transition("r", [State.RUNNING], State.CANCELLED, 1)
        assert store.leases("r")["0"].owner == "one"

    def test_one_of_many_gets_the_lease(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)
        calls = [_call(_begun, stores[i % 2], "r", "0", owner=f"w{i}") for i in range(12)]
        answers = _at_once(calls)
        owner = store.leases("r")["0"].owner
        expected = [Begun(Verdict.BUSY, owner=owner)] * 12
        expected[int(owner[1:])] = Begun(Verdict.RUN)
        assert answers == expected, "one lease"
        again = [_call(_begin, stores[i % 2], "r", "0", lapsed=owner) for i in range(8)]
        assert sorted(_at_once(again)) == [Verdict.RUN] + [Verdict.BUSY] * 7, "one takes it over"

    def test_release(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _begin(store, "r", "0", owner="one", turn=2)
        for run, at, owner, turn in (
            ("gone", "0", "one", 2),
            ("r", "1", "one", 2),
            ("r", "0", "two", 2),
            ("r", "0", "one", 1),
        ):
            store.release(run, at, owner, turn)
        assert store.leases("r")["0"].owner == "one", "if it is that of owner and turn"
        store.release("r", "0", "one", 2)
        assert store.leases("r")["0"].owner != "one"
        assert _begin(store, "r", "0", owner="two", limit=2) is Verdict.RUN
        assert store.leases("r")["0"].lapses == 1, "its owner counts as dead"
        assert store.read("gone") is None

    # --- owners ---------------------------------------------------------------------------

    def test_owners(self, store: ResultStore) -> None:
        one, two = self._two(store)
        assert one.owners() == {}
        one.renew(["a", "b: ü"], 100)
        two.renew(["c"], 0.05)
        found = two.owners()
        assert set(found) == {"a", "b: ü", "c"}, "every process that was said to live"
        assert 50 < found["a"] <= 101
        assert found["c"] <= 1
        one.renew(["c"], 200)
        assert 150 < two.owners()["c"] <= 201, "so many seconds from now"
        one.renew([], 5)
        one.retire(["a", "never"])
        two.retire([])
        assert set(two.owners()) == {"b: ü", "c"}, "forget these processes"
        one.retire(["b: ü", "c"])

    def test_an_owner_that_is_not_renewed_seems_to_have_died(self, store: ResultStore) -> None:
        store.renew(["a"], 0.05)
        deadline = time.monotonic() + LONG
        while store.owners().get("a", -1.0) >= 0:
            assert time.monotonic() < deadline, "below 0, or not listed: it has died"
            time.sleep(0.01)
        store.renew(["a"], 100)
        assert store.owners()["a"] > 50
        store.retire(["a"])

    # --- checkpoint and report ------------------------------------------------------------

    def test_checkpoint(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        for odd in ODD:
            assert store.checkpoint("r", "0", odd, 0) is True
            assert _begun(store, "r", "0") == Begun(Verdict.RUN, odd), "the last call wins"
        assert _begun(store, "r", "1").held is None
        assert store.checkpoint("r", "1", b"one", 0, ["start x"])
        assert _due(store, "r") == {"start x": "1"}, "due is due"
        assert store.leases("r") == {}, "the lease is dropped"
        assert _read(store, "r").held == {"0": ODD[-1], "1": b"one"}

    def test_checkpoints_that_are_of_no_use(self, store: ResultStore) -> None:
        assert store.checkpoint("gone", "0", b"held", 0, ["x"]) is False
        assert store.read("gone") is None
        store.create("r", b"", {}, 3)
        _begin(store, "r", "1")
        _complete(store, "r", "0")
        assert store.checkpoint("r", "0", b"held", 0, ["x"]) is False, "the job has a result"
        assert store.checkpoint("r", "1", b"held", 1, ["x"]) is False, "another generation"
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        assert store.checkpoint("r", "1", b"held", 0, ["x"]) is False, "CANCELLED"
        record = _read(store, "r")
        assert (record.held, record.due, set(store.leases("r"))) == ({}, {}, {"1"})

    def test_held_until_the_job_completes(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        store.checkpoint("r", "0", b"zero", 0)
        store.checkpoint("r", "1", b"one", 0)
        _fail(store, "r", "0", final=True)
        store.transition("r", [State.FAILED], State.RUNNING, 0)
        assert _begun(store, "r", "0", 1).held == b"zero", "whatever the generation it is of"
        _complete(store, "r", "0", generation=1)
        assert _read(store, "r").held == {"1": b"one"}, "the checkpoint of the job is dropped"

    def test_report(self, store: ResultStore) -> None:
        assert store.report("gone", "0", "child", b"x") is None
        store.create("r", b"", {}, 4)
        assert store.report("r", "0", "child", b"x") is None, "no such checkpoint"
        for at in ("0", "0.1"):
            store.checkpoint("r", at, at.encode(), 0)
        assert store.report("r", "0", "a", ODD[-1]) == (b"0", {"a": ODD[-1]})
        assert store.report("r", "0", "a", b"other") == (b"0", {"a": ODD[-1]}), "the first counts"
        assert store.report("r", "0.1", "b", b"own") == (b"0.1", {"b": b"own"})
        seen = store.report("r", "0", "", b"nobody")
        assert seen == (b"0", {"a": ODD[-1]}), "with an empty child nothing is noted"
        store.checkpoint("r", "0", b"again", 0)
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        seen = store.report("r", "0", "c/d", b"")
        assert seen == (b"again", {"a": ODD[-1], "c/d": b""}), "it lasts until the job completes"
        _complete(store, "r", "0", generation=1)
        assert store.report("r", "0", "a", b"x") is None
        assert store.report("r", "0.1", "b", b"x") == (b"0.1", {"b": b"own"})

    def test_the_last_of_many_reports_sees_them_all(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)
        store.checkpoint("r", "0", b"held", 0)
        calls = [_call(stores[i % 2].report, "r", "0", f"c{i}", b"x") for i in range(8)]
        assert sorted(len(seen[1]) for seen in _at_once(calls)) == list(range(1, 9))

    # --- complete: the result ---------------------------------------------------------------

    def test_complete_counts(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _begin(store, "r", "0")
        assert _complete(store, "r", "0") == Completed(1, fresh=True)
        assert store.leases("r") == {}, "lease and checkpoint of the job are dropped"
        record = _read(store, "r")
        assert (record.remaining, record.done, record.state) == (1, 1, State.RUNNING)
        assert _complete(store, "r", "1") == Completed(0, fresh=True, succeeded=True)
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "at remaining == 0 a RUNNING run is SUCCEEDED"
        assert record.ended_at is not None
        assert record.updated_at >= record.created_at

    def test_the_first_value_wins(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        assert _complete(store, "r", "0", b"first").fresh
        again = _complete(store, "r", "0", b"second", next=("job 1", 1.0))
        assert again == Completed(1, fresh=False), "the first value of an address wins"
        assert store.values("r", ["0"]) == [b"first"]
        assert (_read(store, "r").remaining, _due(store, "r")) == (1, {})

    def test_complete_of_no_run(self, store: ResultStore) -> None:
        assert _complete(store, "gone", "0") == Completed(-1), "-1 when there is no such run"
        assert store.read("gone") is None
        store.create("gone", b"", {}, 1)
        assert store.values("gone", ["0"]) == [Missing]

    def test_finished_work_is_never_thrown_away(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        store.transition("r", [State.RUNNING], State.RUNNING, 0)
        for at, generation in (("0", 0), ("1", 7)):
            done = _complete(store, "r", at, at.encode(), generation=generation)
            assert (done.fresh, done.generation) == (True, 1), "from every generation"
        _fail(store, "r", "4", generation=1, final=True)
        assert _complete(store, "r", "2", b"2", generation=1).fresh, "in every state"
        assert _read(store, "r").state is State.FAILED
        store.transition("r", [State.FAILED], State.CANCELLED, 1)
        assert _complete(store, "r", "3", b"3", generation=1).fresh, "in every state"
        last = _complete(store, "r", "4", b"4", generation=1)
        assert last == Completed(0, fresh=True, generation=1), "only a RUNNING run is SUCCEEDED"
        assert _read(store, "r").state is State.CANCELLED
        assert store.values("r", list("01234")) == [b"0", b"1", b"2", b"3", b"4"]

    def test_failures_a_few_at_a_time(self, store: ResultStore) -> None:
        store.create("r", b"meta", {}, 30)
        for index in range(25):
            _fail(store, "r", str(index), failure=b"oops %d" % index)
        _complete(store, "r", "3")
        found = sorted(store.failures("r", count=4))
        record = _read(store, "r")
        assert found == sorted(
            (address, failure, address in record.finished)
            for address, failure in record.failures.items()
        ), "as read has them"
        assert ("3", b"oops 3", True) in found, "whether the job has a result since"
        assert list(store.failures("gone")) == [], "none of a run that is not there"

    def test_the_record_in_brief(self, store: ResultStore) -> None:
        assert store.brief("r") is None
        store.create("r", b"meta", {"0": b"page"}, 2)
        _fail(store, "r", "0", failure=b"oops", final=True)
        store.checkpoint("r", "1", b"held", 0, ["something"])
        record, nothing = _read(store, "r"), frozenset[str]()
        brief = replace(record, failures={}, finished=nothing, held={}, due={})
        assert store.brief("r") == brief, "all but failures, finished, held and due"

    def test_a_job_that_recovers_no_longer_counts(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _fail(store, "r", "0", failure=b"oops")
        assert _counts(store, "r") == (0, 1, 0)
        _complete(store, "r", "0")
        assert _counts(store, "r") == (1, 0, 0), "it no longer counts as failing"
        record = _read(store, "r")
        assert record.failures == {"0": b"oops"}, "failures of jobs that have completed are kept"
        assert record.finished == {"0"}, "finished: those among failures whose job has a result"

    def test_a_failed_run_runs_again_when_no_job_is_dead(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        _fail(store, "r", "0", final=True)
        _fail(store, "r", "1", final=True)
        _complete(store, "r", "0")
        record = _read(store, "r")
        assert (record.state, record.dead) == (State.FAILED, 1), "one job is still dead"
        assert not _complete(store, "r", "1").succeeded
        record = _read(store, "r")
        assert (record.state, record.dead) == (State.RUNNING, 0), "no dead job: RUNNING again"
        assert record.ended_at is None, "ended_at is None while running"
        assert _complete(store, "r", "2").succeeded

    def test_the_last_result_of_a_dead_job_ends_the_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1, ends=[State.SUCCEEDED])
        _fail(store, "r", "0", final=True)
        done = _complete(store, "r", "0")
        assert done.succeeded, "RUNNING, and at remaining == 0 SUCCEEDED"
        assert done.due == ("end SUCCEEDED",)
        assert _read(store, "r").state is State.SUCCEEDED

    def test_a_final_failure_stays(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        _fail(store, "r", "0", attempt=1, final=True, failure=b"final")
        late = _fail(store, "r", "0", attempt=2, final=False, retry=("job 0", 1.0))
        assert late == Failed(), "a final one is recorded already"
        record = _read(store, "r")
        assert (record.state, record.failing, record.dead) == (State.FAILED, 0, 1)
        assert (record.failures, record.due) == ({"0": b"final"}, {})
        assert _fail(store, "r", "0", attempt=2, final=True, failure=b"later").recorded
        assert _read(store, "r").failures == {"0": b"later"}
        assert _counts(store, "r") == (0, 0, 1)
        assert _complete(store, "r", "0").succeeded, "no dead job is left: RUNNING, then SUCCEEDED"

    def test_every_result_of_many_writers_counts_once(self, store: ResultStore) -> None:
        stores, jobs = self._two(store), 40
        store.create("r", b"", {}, jobs)

        def work(number: int) -> list[Completed]:
            places = [str((number * 7 + i) % jobs) for i in range(jobs)]
            return [_complete(stores[number % 2], "r", at, b"%d" % number) for at in places]

        answers = [done for each in _at_once([_call(work, i) for i in range(4)]) for done in each]
        fresh = [done.remaining for done in answers if done.fresh]
        assert sorted(fresh) == list(range(jobs)), "remaining falls by one for each fresh value"
        assert sum(done.succeeded for done in answers) == 1, "one call ends the run"
        record = _read(store, "r")
        assert (record.remaining, record.done, record.state) == (0, jobs, State.SUCCEEDED)

    def test_one_of_many_values_wins(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 9)
        values = [b"%d" % i for i in range(8)]
        calls = [_call(_complete, stores[i % 2], "r", "0", v) for i, v in enumerate(values)]
        answers = _at_once(calls)
        winner = [value for value, done in zip(values, answers) if done.fresh]
        assert len(winner) == 1, "the first value of a slot wins, and only its writer is told so"
        assert store.values("r", ["0"]) == winner
        assert {done.remaining for done in answers} == {8}

    def test_a_token_repeats_the_end(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1, ends=[State.SUCCEEDED])
        first = _complete(store, "r", "0", token="me")
        assert first == Completed(0, fresh=True, succeeded=True, due=("end SUCCEEDED",))
        again = _complete(store, "r", "0", token="me")
        assert again == replace(first, fresh=False), "told to the token, however often it asks"
        other = _complete(store, "r", "0", token="other")
        assert other == replace(again, succeeded=False)
        store.published("r", ["end SUCCEEDED"])
        assert _complete(store, "r", "0", token="me") == Completed(0, succeeded=True)

    # --- complete: what is due ----------------------------------------------------------------

    def test_what_is_next_is_due(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3, due={"job 0": 5.0})
        assert _complete(store, "r", "0", next=("job 1", 12345.5)).due == ("job 1",)
        assert _read(store, "r").due["job 1"] == Due(12345.5, 0, "0"), "from when, and its cause"
        assert _complete(store, "r", "0").due == ("job 1",), "what is still due with this cause"
        assert _begin(store, "r", "1", receipts=["job 1"]) is Verdict.RUN
        assert _complete(store, "r", "0").due == ()
        assert _complete(store, "r", "1", next=("job 2", 1.0)).due == ("job 2",)
        assert _due(store, "r") == {"job 0": "", "job 2": "1"}

    def test_a_repeated_call_gets_what_is_still_due(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"one", "p": b"x"}, 9, due={"page p": 1.0})
        opens: dict[str, Any] = {"barriers": [Barrier("b", 1, "page 1")], "next": ("job 8", 1.0)}
        first = _complete(store, "r", "0", **opens)
        assert (first.due, first.pages) == (("job 8", "page 1"), {"1": b"one"})
        again = _complete(store, "r", "0", **opens)
        assert again == replace(first, fresh=False), "its pages, too"
        store.published("r", ["page 1"])
        again = _complete(store, "r", "0", **opens)
        assert (again.due, again.pages) == (("job 8",), {})
        store.published("r", ["job 8"])
        assert _complete(store, "r", "0", **opens).due == (), "what has been sent is not due again"
        assert _due(store, "r") == {"page p": ""}

    def test_pages_that_are_not_there(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        done = _complete(store, "r", "0", barriers=[Barrier("b", 1, "page 9")])
        assert (done.due, done.pages) == (("page 9",), {})

    # --- barriers -----------------------------------------------------------------------------

    def test_a_barrier_opens_once(self, store: ResultStore) -> None:
        store.create("r", b"", {"2": b"two"}, 6)
        barrier = Barrier("b", 3, "page 2")
        assert store.counts("r", ["b", "c"]) == [0, 0]
        assert _complete(store, "r", "1.0", barriers=[barrier]).due == ()
        assert _complete(store, "r", "1.0", barriers=[barrier]).due == (), "each job counts once"
        assert _complete(store, "r", "3", barriers=[Barrier("c", 2, "page 4")]).due == ()
        assert _complete(store, "r", "1.1", barriers=[barrier]).due == ()
        assert store.counts("r", ["c", "b", "x"]) == [1, 2, 0]
        last = _complete(store, "r", "1.2", barriers=[barrier])
        assert (last.due, last.pages) == (("page 2",), {"2": b"two"}), "its then is due"
        assert _due(store, "r") == {"page 2": "1.2"}
        assert _complete(store, "r", "1.1", barriers=[barrier]).due == ()
        store.published("r", ["page 2"])
        assert _complete(store, "r", "5", barriers=[barrier]).due == (), "it has opened before"
        assert store.counts("r", ["b"]) == [4]
        assert store.counts("r", []) == []
        assert store.counts("gone", ["b"]) == [0]

    def test_a_job_counts_towards_several_barriers(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        barriers = [Barrier("a", 2, "page a"), Barrier("b", 3, "page b"), Barrier("c", 1)]
        assert _complete(store, "r", "0", barriers=barriers).due == ()
        assert _complete(store, "r", "1", barriers=barriers).due == ("page a",)
        assert store.counts("r", ["a", "b"]) == [2, 2]
        assert _complete(store, "r", "2", barriers=barriers).due == ("page b",)

    def test_a_barrier_counts_over_all_generations(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 6)
        barrier = Barrier("b", 3, "page 2")
        _complete(store, "r", "1.0", barriers=[barrier])
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert store.counts("r", ["b"]) == [1]
        late = _complete(store, "r", "1.1", barriers=[barrier], generation=0)
        assert (late.fresh, late.generation, late.due) == (True, 1, ())
        late = _complete(store, "r", "1.2", barriers=[barrier], generation=0)
        assert (late.generation, late.due) == (1, ("page 2",)), "late results count, and open"

    def test_a_barrier_of_one(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        turn = Turn("0", "0/0", 1, 3)
        only = Barrier("b", 1, "page 2", Settles("0", "0.0", 1), turn)
        done = _complete(store, "r", "0.0", barriers=[only])
        assert (done.due, done.settled) == (("page 0/1", "page 2"), ("0",))

    def test_a_barrier_settles_its_member(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 6)
        inner = Barrier("0.0", 2, "", Settles("0", "0.0", 2))
        assert _complete(store, "r", "0.0.0", barriers=[inner]).settled == ()
        assert _complete(store, "r", "0.1", settles=Settles("0", "0.1", 2)).settled == ()
        done = _complete(store, "r", "0.0.1", barriers=[inner])
        assert (done.settled, done.due) == (("0",), ()), "its member settles when it opens"

    def test_one_of_many_opens_a_barrier(self, store: ResultStore) -> None:
        stores, width = self._two(store), 16
        store.create("r", b"", {"2": b"two"}, width + 1)
        barrier = Barrier("b", width, "page 2", Settles("1", "all", 1))
        calls = [
            _call(_complete, stores[(i + copy) % 2], "r", f"1.{i}", barriers=[barrier])
            for i in range(width)
            for copy in range(2)
        ]
        answers = _at_once(calls)
        opened = [done for done in answers if done.fresh and done.due]
        assert len(opened) == 1, "exactly one fresh completion gets the page"
        assert (opened[0].due, opened[0].pages) == (("page 2",), {"2": b"two"})
        assert [done.settled for done in answers if done.settled] == [("1",)]
        fresh = sorted(done.remaining for done in answers if done.fresh)
        assert fresh == list(range(1, width + 1)), "remaining falls by one for each fresh value"
        assert store.counts("r", ["b"]) == [width]
        again = [_complete(store, "r", f"1.{i}", barriers=[barrier]).due for i in range(width)]
        assert [due for due in again if due] == [("page 2",)], "repeated to the one that opened it"

    # --- turns ----------------------------------------------------------------------------------

    def test_the_next_branch_is_due_when_one_is_over(self, store: ResultStore) -> None:
        store.create("r", b"", {"1/2": b"two"}, 8)

        def over(number: int) -> tuple[str, ...]:
            turn = Turn("1", f"1.{number}", 2, 5)
            barrier = Barrier("b", 1, turn=turn)
            return _complete(store, "r", f"1.{number}", barriers=[barrier]).due

        first = _complete(
            store, "r", "1.1", barriers=[Barrier("b", 1, turn=Turn("1", "1.1", 2, 5))]
        )
        assert (first.due, first.pages) == (("page 1/2",), {"1/2": b"two"}), "limit the first time"
        assert over(0) == ("page 1/3",), "then one more each time"
        assert over(0) == ("page 1/3",), "a repeated call"
        assert over(2) == ("page 1/4",)
        assert [over(number) for number in (3, 4)] == [(), ()], "if there is such a branch"
        assert _due(store, "r")["page 1/4"] == "1.2"

    def test_a_branch_is_over_once(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 8)
        turn = Turn("1", "1.0", 1, 9)
        dead = _fail(store, "r", "1.0", final=True, turns=[turn])
        assert dead.due == ("page 1/1",)
        done = _complete(store, "r", "1.0", barriers=[Barrier("b", 1, turn=turn)])
        assert done.due == (), "over for the first time only"
        again = _complete(store, "r", "1.0", barriers=[Barrier("b", 1, turn=turn)])
        assert again.due == ("page 1/1",), "still due"
        assert store.transition("r", list(State), State.RUNNING, 0)
        done = _complete(store, "r", "1.0.1", barriers=[Barrier("c", 1, turn=turn)])
        assert done.due == ("page 1/1",), "in this generation"

    def test_turns_of_a_failure(self, store: ResultStore) -> None:
        store.create("r", b"", {"2/1": b"page"}, 8)
        turns = [Turn("1", "1.0", 2, 9), Turn("2", "2.0", 1, 9)]
        assert _fail(store, "r", "0", attempt=1, turns=turns).due == (), "if the failure is final"
        dead = _fail(store, "r", "0", attempt=2, final=True, turns=turns)
        assert (dead.due, dead.pages) == (("page 1/2", "page 2/1"), {"2/1": b"page"})
        again = _fail(store, "r", "0", attempt=2, final=True, turns=turns)
        assert (again.recorded, again.due, again.pages) == (False, dead.due, dead.pages)

    def test_skip(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 9)
        store.skip("gone", "1", 4, 0)
        assert store.read("gone") is None

        def over(number: int, generation: int = 0) -> tuple[str, ...]:
            at = f"{generation}.{number}"
            barrier = Barrier("b", 1, turn=Turn("1", at, 2, 9))
            return _complete(store, "r", at, generation=generation, barriers=[barrier]).due

        store.skip("r", "1", 8, 1)
        store.skip("r", "2", 8, 0)
        assert over(0) == ("page 1/2",), "nothing happens in another generation"
        store.skip("r", "1", 5, 0)
        assert over(1) == ("page 1/5",), "at least this number"
        store.skip("r", "1", 3, 0)
        assert over(2) == ("page 1/6",)
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        store.skip("r", "1", 4, 1)
        assert over(0, 1) == ("page 1/4",)

    def test_branches_that_are_over_have_no_turn_after_a_resume(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 300)

        def over(number: int, generation: int) -> tuple[str, ...]:
            at = f"1.{number}"
            barrier = Barrier("b", 1, turn=Turn("1", at, 1, 299))
            return _complete(store, "r", at, generation=generation, barriers=[barrier]).due

        for number in (0, 3, 5, 7):
            _fail(store, "r", f"1.{number}", final=True, turns=[Turn("1", f"1.{number}", 1, 299)])
        for number in (1, 2, 4):
            over(number, 0)
        assert store.transition("r", list(State), State.CANCELLED, 0)
        assert over(6, 0) == (), "nothing is due in a cancelled run"
        for number in range(8, 298):
            over(number, 0)
        for generation in (0, 1):
            assert store.transition("r", list(State), State.RUNNING, generation)
        assert over(0, 2) == ("page 1/3",), "the first that is not over"
        dead = _fail(store, "r", "1.3", generation=2, final=True, turns=[Turn("1", "1.3", 1, 299)])
        assert dead.due == ("page 1/5",)
        assert over(5, 2) == ("page 1/7",)
        assert over(7, 2) == ("page 1/298",)
        assert over(298, 2) == ()

    def test_many_branches_take_each_number_once(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 13)

        def work(number: int) -> tuple[str, ...]:
            barrier = Barrier("b", 1, turn=Turn("1", f"1.{number}", 3, 100))
            return _complete(stores[number % 2], "r", f"1.{number}", barriers=[barrier]).due

        taken = [key for due in _at_once([_call(work, i) for i in range(12)]) for key in due]
        assert sorted(taken) == sorted(f"page 1/{number}" for number in range(3, 15))

    # --- fail -------------------------------------------------------------------------------

    def test_fail_counts_a_job_once(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _fail(store, "r", "0", attempt=1, failure=b"one") == Failed(recorded=True)
        assert _fail(store, "r", "0", attempt=2, failure=b"two") == Failed(recorded=True)
        assert _counts(store, "r") == (0, 1, 0), "a job is counted once"
        assert _read(store, "r").failures == {"0": b"two"}, "failures: the last of each address"
        _fail(store, "r", "1", attempt=1)
        assert _counts(store, "r") == (0, 2, 0)
        _fail(store, "r", "0", attempt=3, final=True)
        assert _counts(store, "r") == (0, 1, 1), "failing, or if final, dead"

    def test_an_attempt_is_recorded_once(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        assert _fail(store, "r", "0", attempt=2, failure=b"two").recorded
        assert _fail(store, "r", "0", attempt=2) == Failed(), "this attempt is recorded already"
        assert _fail(store, "r", "0", attempt=1, final=True) == Failed(), "a later one is recorded"
        assert _read(store, "r").failures == {"0": b"two"}
        assert _fail(store, "r", "0", attempt=2, final=True, failure=b"final").recorded, (
            "a final record replaces one of the same attempt that was not"
        )
        assert _fail(store, "r", "0", attempt=2, final=True) == Failed()
        assert _fail(store, "r", "0", attempt=2, final=False) == Failed()
        assert _read(store, "r").failures == {"0": b"final"}
        assert _counts(store, "r") == (0, 0, 1)

    def test_attempts_are_numbers(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        assert _fail(store, "r", "0", attempt=9, failure=b"nine").recorded
        assert _fail(store, "r", "0", attempt=10, failure=b"ten").recorded
        assert not _fail(store, "r", "0", attempt=9, final=True).recorded
        assert _fail(store, "r", "0", attempt=100, failure=b"hundred").recorded
        assert _read(store, "r").failures == {"0": b"hundred"}

    def test_fail_keeps_odd_bytes(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        for attempt, odd in enumerate(ODD, 1):
            _fail(store, "r", "0", attempt=attempt, failure=odd)
            assert _read(store, "r").failures == {"0": odd}

    def test_fail_of_no_run_or_another_generation(self, store: ResultStore) -> None:
        more: dict[str, Any] = {"settles": [Settles("0", "0", 1)], "turns": [Turn("0", "a", 1, 9)]}
        assert _fail(store, "gone", "0", final=True, **more) == Failed()
        assert store.read("gone") is None
        store.create("r", b"", {}, 1, ends=[State.FAILED])
        for generation in (1, -1):
            _begin(store, "r", "0")
            failed = _fail(store, "r", "0", generation=generation, final=True, **more)
            assert failed == Failed(), "nothing else happens when it is of another generation"
            assert store.leases("r") == {}, "the lease is dropped, also of another generation"
        record = _read(store, "r")
        assert (record.state, record.failures, record.due) == (State.RUNNING, {}, {})

    def test_fail_drops_the_lease(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        for _ in range(2):
            assert _begin(store, "r", "0", turn=TURNS) is Verdict.RUN
            _fail(store, "r", "0", attempt=1)
            assert store.leases("r") == {}, "also when the attempt is recorded already"

    def test_the_first_dead_job_fails_the_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3, ends=[State.FAILED])
        first = _fail(store, "r", "0", final=True)
        assert first == Failed(recorded=True, died=True, due=("death 0",))
        record = _read(store, "r")
        assert (record.state, record.ended_at is None) == (State.FAILED, False)
        again = _fail(store, "r", "1", final=True)
        assert again == Failed(recorded=True), "died: it took the run from RUNNING to FAILED"
        assert _counts(store, "r") == (0, 0, 2)
        assert _due(store, "r") == {"death 0": "0"}

    def test_a_death_that_nobody_asked_for_is_not_due(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2, ends=[State.SUCCEEDED, State.CANCELLED])
        assert _fail(store, "r", "0", final=True) == Failed(recorded=True, died=True)
        assert _due(store, "r") == {}, "due if the run was created so"

    def test_nothing_is_due_in_a_cancelled_run(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"page"}, 6, ends=list(State))
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        expected = {"end CANCELLED": ""}
        assert _due(store, "r") == expected
        turn, step = Turn("3", "3.0", 1, 9), Settles("0", "0", 1)
        failed = _fail(
            store, "r", "0", final=True, settles=[step], turns=[turn], retry=("job 0", 1.0)
        )
        assert failed == Failed(recorded=True, settled=("0",))
        assert _fail(store, "r", "1", retry=("job 1", 1.0)) == Failed(recorded=True)
        assert _read(store, "r").state is State.CANCELLED
        assert _counts(store, "r") == (0, 1, 1)
        barriers = [Barrier("b", 2, "page 1"), Barrier("c", 1, "page 1", None, turn)]
        for at in ("2", "3"):
            done = _complete(store, "r", at, barriers=barriers, next=("job 9", 1.0))
            assert (done.fresh, done.due, done.pages) == (True, (), {})
        assert store.counts("r", ["b"]) == [2], "barriers count, and nothing is due"
        assert _due(store, "r") == expected

    def test_a_late_failure_changes_nothing_for_the_job(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2, ends=[State.FAILED])
        _complete(store, "r", "0", b"value")
        assert _fail(store, "r", "0", attempt=1, retry=("job 0", 1.0)).recorded
        assert (_counts(store, "r"), _due(store, "r")) == ((1, 0, 0), {}), "it has a result"
        turn = Turn("0", "0.0", 1, 9)
        late = _fail(store, "r", "0", attempt=2, final=True, failure=b"late", turns=[turn])
        assert late == Failed(recorded=True), "a job that has a result does not die"
        record = _read(store, "r")
        assert _counts(store, "r") == (1, 0, 0), "a job that has a result is not counted"
        assert record.state is State.RUNNING
        assert (record.failures, record.finished) == ({"0": b"late"}, frozenset("0"))

    def test_one_of_many_deaths_fails_the_run(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 8)
        calls = [_call(_fail, stores[i % 2], "r", str(i), final=True) for i in range(8)]
        answers = _at_once(calls)
        assert sum(failed.died for failed in answers) == 1, "the first dead job, and only it"
        assert _counts(store, "r") == (0, 0, 8)

    def test_a_token_repeats_the_death(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2, ends=[State.FAILED])
        step = [Settles("0", "0", 1)]
        first = _fail(store, "r", "0", final=True, token="me", settles=step)
        assert first == Failed(True, True, ("0",), ("death 0", "failure 0"))
        again = _fail(store, "r", "0", final=True, token="me", settles=step)
        assert again == Failed(False, True, (), first.due), "died is told to the token again"
        other = _fail(store, "r", "0", final=True, token="other", settles=step)
        assert other == Failed(due=first.due), "what is still due is told to everybody"
        store.published("r", first.due)
        assert _fail(store, "r", "0", final=True, token="other", settles=step) == Failed()

    def test_a_retry_is_due(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        failed = _fail(store, "r", "0", attempt=1, retry=("job 0 1", 12345.5))
        assert failed == Failed(recorded=True), "not its own next attempt"
        assert _read(store, "r").due == {"job 0 1": Due(12345.5, 0, "0")}
        again = _fail(store, "r", "0", attempt=1, retry=("job 0 1", 99.0))
        assert again == Failed()
        assert _read(store, "r").due == {"job 0 1": Due(12345.5, 0, "0")}
        assert _begin(store, "r", "0", turn=TURNS, receipts=["job 0 1"]) is Verdict.RUN
        _fail(store, "r", "0", attempt=2, final=True, retry=("job 0 2", 1.0))
        assert _due(store, "r") == {}, "due if it is not final"

    # --- settling ---------------------------------------------------------------------------

    def test_a_step_reports_when_all_have_settled(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        first = [Settles("1", "1.0", 3)]
        assert _fail(store, "r", "1.0", settles=first) == Failed(recorded=True)
        assert _fail(store, "r", "1.0", attempt=2, settles=first) == Failed(recorded=True)
        assert _settled(store, "1.0", *first) == ((), ()), "a member is counted once"
        assert _settled(store, "1.1", Settles("1", "1.1", 3)) == ((), ())
        last = _settled(store, "1.2", Settles("1", "1.2", 3))
        assert last == (("1",), ("failure 1",)), "width have settled and one has failed"
        assert _due(store, "r") == {"failure 1": "1.2"}
        store.published("r", ["failure 1"])
        late = _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 3)])
        assert late == Failed(recorded=True), "once for each step and generation"

    def test_a_failure_can_be_the_last_to_settle(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _settled(store, "1.0", Settles("1", "1.0", 2)) == ((), ())
        last = _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 2)])
        assert (last.settled, last.due) == (("1",), ("failure 1",))

    def test_a_step_without_failure_reports_nothing(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _settled(store, "1.0", Settles("1", "1.0", 2)) == ((), ())
        assert _settled(store, "1.1", Settles("1", "1.1", 2)) == (("1",), ())
        assert _settled(store, "1.1", Settles("1", "1.1", 2)) == ((), ()), "settled once"

    def test_a_quiet_failure_settles_without_a_sound(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        quiet = Settles("1", "1.0", 2, loud=False)
        inner = _fail(store, "r", "1.0.0", settles=[Settles("1.0.0", "1.0.0", 1), quiet])
        assert inner.due == ("failure 1.0.0",), "the inner step reports, the outer one does not"
        assert _settled(store, "1.1", Settles("1", "1.1", 2)) == (("1",), ())

    def test_a_quiet_failure_can_settle_a_loud_step(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        quiet = Settles("1", "1.1", 2, loud=False)
        failed = _fail(store, "r", "1.1.0", settles=[Settles("1.1.0", "1.1.0", 1), quiet])
        assert sorted(failed.due) == ["failure 1", "failure 1.1.0"]
        assert sorted(failed.settled) == ["1", "1.1.0"]

    def test_a_late_loud_failure_still_reports(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        for at in ("1.0", "1.1"):
            _settled(store, at, Settles("1", at, 2))
        late = _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        assert late.due == ("failure 1",), "even when the job's own retry has completed before"
        assert late.settled == ()

    def test_what_completed_in_an_earlier_generation_stays_settled(
        self, store: ResultStore
    ) -> None:
        store.create("r", b"", {}, 4)
        _settled(store, "1.0", Settles("1", "1.0", 3))
        _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 3)])
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        late = _settled(store, "1.2", Settles("1", "1.2", 3))
        assert late == ((), ()), "completed, in any generation, or failed in this one"
        last = _fail(store, "r", "1.1", generation=1, settles=[Settles("1", "1.1", 3)])
        assert (last.settled, last.due) == (("1",), ("failure 1",))
        assert store.transition("r", [State.RUNNING], State.RUNNING, 1)
        last = _fail(store, "r", "1.1", generation=2, settles=[Settles("1", "1.1", 3)])
        assert (last.settled, last.due) == (("1",), ("failure 1",)), "for each generation"
        assert store.transition("r", [State.RUNNING], State.RUNNING, 2)
        done = _complete(store, "r", "1.1", generation=3, settles=Settles("1", "1.1", 3))
        assert (done.settled, done.due) == (("1",), ()), "no member has failed in this generation"

    def test_each_report_is_due_once(self, store: ResultStore) -> None:
        stores, width = self._two(store), 6
        for number in range(5):
            run = f"r{number}"
            store.create(run, b"", {}, width + 1)

            def work(member: int, run: str = run) -> list[str]:
                own, at = stores[member % 2], f"1.{member}"
                step = Settles("1", at, width)
                failed = _fail(own, run, at, settles=[step]) if member % 3 else Failed()
                return [*failed.settled, *_complete(own, run, at, settles=step).settled]

            answers = _at_once([_call(work, member) for member in range(width)])
            told = [step for each in answers for step in each]
            assert told == ["1"], "told to the call that settled the last member"
            record = _read(store, run)
            assert set(record.due) == {"failure 1"}, "whoever settles last"
            assert (record.failing, record.remaining) == (0, 1)

    # --- data -----------------------------------------------------------------------------------

    def test_data(self, store: ResultStore) -> None:
        assert store.data("gone") is None
        store.create("none", b"", {}, 1)
        assert store.data("none") == {}
        odd = {f"k{number}": value for number, value in enumerate(ODD)}
        odd |= {"ü: \u2713": b"odd", "K0": b"case", "k0 ": b"blank"}
        store.create("r", b"", {}, 5, data=odd)
        assert store.data("r") == odd, "what create was given"
        _complete(store, "r", "0", changes={"k0": b"changed", "k1": None, "new": b"", "no": None})
        expected = {**odd, "k0": b"changed", "new": b""}
        del expected["k1"]
        assert store.data("r") == expected, "a key is set, or deleted where it is None"
        _complete(store, "r", "0", changes={"k0": b"again"})
        assert store.data("r") == expected, "with the value, and only then"
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert store.data("r") == expected
        _complete(store, "r", "1", changes={"k0": b"late"}, generation=0)
        assert store.data("r") == {**expected, "k0": b"late"}
        assert store.data("none") == {}
        store.delete("r")
        assert store.data("r") is None
        store.create("r", b"", {}, 5)
        assert store.data("r") == {}

    def test_keys_of_data(self, store: ResultStore) -> None:
        keys = [*_KEYS, "\U0001f600" * 255, "k" * 255, "k" * 254 + "K", "k" * 254]
        first = {key: b"first %d" % number for number, key in enumerate(keys)}
        store.create("r", b"", {}, 3, data=first)
        assert store.data("r") == first, "a key is itself only if every character is"
        second = {key: b"second %d" % number for number, key in enumerate(keys)}
        _complete(store, "r", "0", changes=second)
        assert store.data("r") == second
        for number, key in enumerate(keys):
            _complete(store, "r", f"1.{number}", changes={key: None})
            del second[key]
            assert store.data("r") == second, f"{key!r} alone is deleted"

    def test_no_change_is_lost(self, store: ResultStore) -> None:
        stores, writers = self._two(store), 12
        store.create("r", b"", {}, writers, data={"shared": b"0"})

        def work(number: int) -> None:
            changes = {f"own {number}": b"%d" % number, "shared": b"%d" % number}
            _complete(stores[number % 2], "r", f"1.{number}", changes=changes)

        _at_once([_call(work, number) for number in range(writers)])
        found = store.data("r") or {}
        assert found.pop("shared") in {b"%d" % number for number in range(writers)}
        assert found == {f"own {number}": b"%d" % number for number in range(writers)}

    def test_large_data(self, store: ResultStore) -> None:
        large = os.urandom(1 << 20)
        store.create("r", b"", {}, 1, data={"large": large})
        _complete(store, "r", "0", changes={"larger": large + large})
        assert store.data("r") == {"large": large, "larger": large + large}

    # --- executions -----------------------------------------------------------------------------

    def test_executions(self, store: ResultStore) -> None:
        assert (store.executions("gone"), store.leases("gone"), store.infos("gone")) == ({}, {}, {})
        store.create("r", b"", {}, 5)
        assert store.executions("r") == {}
        for address in ("0", "1.10", "2"):
            _begin(store, "r", address)
        leases = store.leases("r")
        assert set(leases) == {"0", "1.10", "2"}
        running = {address: Execution(lease) for address, lease in leases.items()}
        assert store.executions("r") == running
        assert running["2"].started_at == leases["2"].started_at
        _complete(store, "r", "0", info=b"\xff info")
        _complete(store, "r", "0", info=b"other")
        _complete(store, "r", "3")
        _fail(store, "r", "2")
        assert store.infos("r") == {"0": b"\xff info", "3": b""}, "of every job that has a result"
        ran = {"0": Execution(info=b"\xff info"), "3": Execution(info=b"")}
        assert store.executions("r") == {**ran, "1.10": running["1.10"]}
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert store.executions("r") == {**ran, "1.10": running["1.10"]}, "in any generation"

    # --- values -----------------------------------------------------------------------------

    def test_values_keeps_every_byte(self, store: ResultStore) -> None:
        slots = [f"0.{number}" for number in range(len(ODD))]
        store.create("r", b"", {}, len(ODD))
        for slot, odd in zip(slots, ODD):
            _complete(store, "r", slot, odd)
        assert store.values("r", slots) == ODD
        assert store.values("r", slots[::-1]) == ODD[::-1], "in the order of the slots"

    def test_missing_is_not_null(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        _complete(store, "r", "0", b"null")
        _complete(store, "r", "1", b"")
        assert store.values("r", ["2", "0", "1", "0"]) == [Missing, b"null", b"", b"null"]
        assert store.values("r", []) == []
        assert store.values("gone", ["0", "1"]) == [Missing, Missing]
        assert store.finished("r", ["2", "0", "1", "0"]) == {"0", "1"}
        assert store.finished("r", []) == set()
        assert store.finished("gone", ["0"]) == set()

    def test_many_values_and_large_ones(self, store: ResultStore) -> None:
        large = os.urandom(1 << 20)
        store.create("r", b"", {}, 4)
        _complete(store, "r", "1.0", large)
        _complete(store, "r", "1.19999", b"last")
        slots = [f"1.{number}" for number in range(20_000)]
        found = store.values("r", slots)
        assert (found[0], found[-1], len(found)) == (large, b"last", 20_000)
        assert all(value is Missing for value in found[1:-1])
        assert store.finished("r", slots) == {"1.0", "1.19999"}

    # --- transition -------------------------------------------------------------------------

    def test_transition_compares(self, store: ResultStore) -> None:
        assert not store.transition("gone", list(State), State.CANCELLED, 0)
        store.create("r", b"", {}, 1, ends=list(State), due={"page 0": 1.0})
        before = _read(store, "r")
        others = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
        assert not store.transition("r", others, State.RUNNING, 0), "not one of the sources"
        assert not store.transition("r", [], State.CANCELLED, 0)
        assert not store.transition("r", [State.RUNNING], State.CANCELLED, 1), "another generation"
        assert _read(store, "r") == before, "nothing happens where it does not move"

    def test_transition_sets(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        assert store.transition("r", iter([State.FAILED, State.RUNNING]), State.CANCELLED, 0)
        record = _read(store, "r")
        assert (record.state, record.generation, record.remaining) == (State.CANCELLED, 0, 1)
        assert record.ended_at is not None
        assert store.peek("r") == (State.CANCELLED, 0)

    @pytest.mark.parametrize("target", [State.SUCCEEDED, State.FAILED])
    def test_only_jobs_let_a_run_succeed_or_fail(self, store: ResultStore, target: State) -> None:
        store.create("r", b"", {}, 1, ends=list(State))
        before = _read(store, "r")
        with pytest.raises(ValueError, match=target.value):
            store.transition("r", [State.RUNNING], target, 0)
        assert _read(store, "r") == before

    def test_cancel_forgets_messages(self, store: ResultStore) -> None:
        told = ["failure 1", "success 1", "death 3", "end SUCCEEDED"]
        due = dict.fromkeys(["page 0", "job 1", "job 2 1", "start x", *told], 1.0)
        store.create("r", b"", {}, 2, ends=[State.CANCELLED], due=due)
        assert store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        assert set(_due(store, "r")) == {*told, "end CANCELLED"}, "those are of what has happened"

    def test_cancelling_what_has_failed_is_no_other_end(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2, ends=list(State))
        _fail(store, "r", "0", final=True)
        assert store.transition("r", [State.FAILED], State.CANCELLED, 0)
        assert _due(store, "r") == {"death 0": "0"}, "end CANCELLED unless the run was FAILED"

    def test_resume_clears_failures_and_keeps_results(self, store: ResultStore) -> None:
        store.create("r", b"meta", {"0": b"page"}, 4, ends=[State.FAILED])
        _complete(store, "r", "0", b"value", next=("job 3", 1.0), barriers=[Barrier("b", 2)])
        _fail(store, "r", "0")
        _fail(store, "r", "1", retry=("job 1", 1.0))
        _fail(store, "r", "2", attempt=7, final=True)
        store.checkpoint("r", "2", b"held", 0, ["start x"])
        before = _read(store, "r").created_at
        assert store.transition("r", [State.FAILED], State.RUNNING, 0)
        record = _read(store, "r")
        assert (record.state, record.generation) == (State.RUNNING, 1), "the generation rises"
        assert record.ended_at is None
        assert (record.failures, record.finished) == ({}, frozenset()), "failures are forgotten"
        assert _due(store, "r") == {"page 0": "", "death 2": "2"}, "nothing that was due before"
        assert before <= record.due["page 0"].since < before + 300
        assert _counts(store, "r") == (1, 0, 0)
        assert (record.meta, record.remaining, record.held) == (b"meta", 3, {"2": b"held"})
        assert (store.page("r", "0"), store.values("r", ["0"])) == (b"page", [b"value"])
        assert store.counts("r", ["b"]) == [1]
        assert _begin(store, "r", "0", 1) is Verdict.DONE
        again = _fail(store, "r", "2", attempt=1, final=True, generation=1)
        assert (again.recorded, again.died) == (True, True), "attempts count afresh"

    def test_resume_of_a_run_with_nothing_remaining(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1, ends=[State.SUCCEEDED])
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        _complete(store, "r", "0")
        assert store.transition("r", [State.CANCELLED], State.RUNNING, 0)
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "nothing remaining: SUCCEEDED instead"
        assert (record.generation, record.ended_at is None) == (1, False)
        assert _due(store, "r") == {"end SUCCEEDED": ""}
        assert store.wait("r", LONG) is State.SUCCEEDED

    def test_one_of_many_transitions_moves(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)
        for generation in range(3):
            args = ("r", [State.RUNNING], State.RUNNING, generation)
            moved = _at_once([_call(stores[i % 2].transition, *args) for i in range(6)])
            assert sum(moved) == 1, "compare and set: one moves it"
            assert store.peek("r") == (State.RUNNING, generation + 1)

    # --- what is due --------------------------------------------------------------------------

    def test_remind_tried_and_published(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3, due={"a": 5.0})
        _complete(store, "r", "0", next=("b", 6.0))
        before = _read(store, "r").created_at
        store.tried("r", ["a", "b", "none"])
        store.tried("r", ["b"])
        due = _read(store, "r").due
        assert {key: (each.tries, each.cause) for key, each in due.items()} == {
            "a": (1, ""),
            "b": (2, "0"),
        }, "one more of tries"
        assert all(before <= each.since < before + 300 for each in due.values()), "since is now"
        store.remind("r", {"b": 70.5, "c": 8.0})
        due = _read(store, "r").due
        assert (due["b"], due["c"]) == (Due(70.5, 2, "0"), Due(8.0)), "it gets that time"
        store.published("r", ["a", "b", "none"])
        assert _read(store, "r").due == {"c": Due(8.0)}, "due no longer"
        for call in (store.tried, store.published):
            call("r", [])
            call("gone", ["a"])
        store.remind("r", {})
        store.remind("gone", {"a": 1.0})
        assert store.read("gone") is None
        assert _read(store, "r").due == {"c": Due(8.0)}

    def test_unfinished(self, store: ResultStore) -> None:
        for run in ("running", "over", "due", "failed"):
            store.create(run, b"", {}, 1)
        for run in ("over", "due"):
            _complete(store, run, "0")
        _fail(store, "failed", "0", final=True)
        store.remind("due", {"end SUCCEEDED": 1.0})
        found: list[Summary] = []
        cursor, more = "", True
        while more:
            page, cursor = store.unfinished(cursor, 2)
            found += page
            more = bool(cursor)
        assert {each.run: each.due for each in found} == {"running": 0, "due": 1}, (
            "RUNNING, or something is due"
        )
        assert len(found) == 2

    # --- read, peek, delete ------------------------------------------------------------------

    def test_read_and_peek_of_no_run(self, store: ResultStore) -> None:
        assert store.read("gone") is None
        assert store.peek("gone") is None

    def test_read_is_consistent_while_others_write(self, store: ResultStore) -> None:
        reader, writer = self._two(store)
        jobs = 60
        store.create("r", b"", {}, jobs)

        def write() -> None:
            for number in range(jobs):
                _fail(writer, "r", str(number), final=not number % 2)
                _complete(writer, "r", str(number))

        def read() -> list[Record]:
            seen: list[Record] = []
            while not seen or seen[-1].remaining:
                seen.append(_read(reader, "r"))
            return seen

        _, seen = _at_once([write, read])
        for record in seen:
            assert record.failing + record.dead == len(record.failures) - len(record.finished)
            assert (record.state is State.FAILED) == (record.dead > 0)
            assert (record.ended_at is None) == (record.state is State.RUNNING)
        counts = [record.remaining for record in seen]
        assert counts == sorted(counts, reverse=True), "what was read once is not taken back"

    def test_updated_at_follows_events(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        seen = [_read(store, "r").updated_at]
        for event in (
            _call(_complete, store, "r", "0"),
            _call(_fail, store, "r", "1", final=True),
            _call(store.transition, "r", [State.FAILED], State.RUNNING, 0),
        ):
            event()
            seen.append(_read(store, "r").updated_at)
        assert seen == sorted(seen)
        assert _read(store, "r").created_at <= seen[-1]

    def test_delete_forgets_everything(self, store: ResultStore) -> None:
        store.create("r", b"old", {"0": b"page"}, 9, name="old", due={"page 0": 1.0})
        self._fill(store, "r")
        _complete(store, "r", "0", barriers=[Barrier("b", 2, "page 1")])
        assert store.delete("r") is True, "returns whether there was one"
        assert store.delete("r") is False
        assert (store.read("r"), store.peek("r"), _scan(store)) == (None, None, [])
        assert (store.page("r", "0"), store.values("r", ["0"])) == (Missing, [Missing])
        assert _begin(store, "r", "0") is Verdict.DROP
        assert not store.transition("r", list(State), State.RUNNING, 0)
        assert _complete(store, "r", "0") == Completed(-1)
        assert store.delete("r") is False
        self._assert_clean(store, "r")

    def _fill(self, store: ResultStore, run: str) -> None:
        """Write something of every kind."""
        step, turn = Settles("1", "1", 2), Turn("1", "1.0", 1, 9)
        _fail(store, run, "1", attempt=5, final=True, settles=[step], turns=[turn])
        store.checkpoint(run, "2", b"held", 0, ["start x"])
        store.report(run, "2", "child", b"outcome")
        _begin(store, run, "3")
        more: dict[str, Any] = {"changes": {"k": b"v"}, "next": ("job 1", 1.0)}
        _complete(store, run, "4", barriers=[Barrier("b", 2)], **more)

    def _assert_clean(self, store: ResultStore, run: str) -> None:
        """A new run of an id that was used before has nothing of the old one."""
        store.create(run, b"new", {}, 5, name="new")
        record = _read(store, run)
        assert (record.meta, record.remaining, record.failures, record.held) == (b"new", 5, {}, {})
        assert (record.due, store.counts(run, ["b"]), store.data(run)) == ({}, [0], {})
        assert (store.page(run, "0"), store.values(run, ["0", "4"])) == (Missing, [Missing] * 2)
        assert store.executions(run) == {}
        assert _begin(store, run, "3", limit=1) is Verdict.RUN
        store.checkpoint(run, "2", b"held", 0)
        assert store.report(run, "2", "new", b"") == (b"held", {"new": b""})
        step, turn = Settles("1", "1", 2), Turn("1", "1.0", 1, 9)
        failed = _fail(store, run, "1", attempt=1, settles=[step])
        assert failed == Failed(recorded=True)
        barriers = [Barrier("b", 2, "page 2"), Barrier("c", 1, turn=turn)]
        done = _complete(store, run, "2", settles=Settles("1", "2", 2), barriers=barriers)
        assert done.fresh
        assert sorted(done.due) == ["failure 1", "page 1/1"]

    # --- scan -------------------------------------------------------------------------------

    def test_scan_tells_of_each_run(self, store: ResultStore) -> None:
        assert store.scan() == ([], "")
        given = ["x", "", "y z", "ü"]
        store.create("a", b"", {}, 9, name="näme: \u2713\n", tags=given)
        store.create("b", b"", {}, 5, due={"page 0": 1.0, "x": 2.0})
        store.create("c", b"", {}, 0)
        _complete(store, "b", "0")
        _fail(store, "b", "1")
        _fail(store, "b", "2", final=True)
        found = {summary.run: summary for summary in _scan(store)}
        for run, name, tags in (
            ("a", "näme: \u2713\n", tuple(given)),
            ("b", None, ()),
            ("c", None, ()),
        ):
            assert found.pop(run) == _summary(_read(store, run), name, tags)
        assert not found

    def test_scan_leaves_out_what_does_not_match(self, store: ResultStore) -> None:
        for number in range(12):
            name, tags = f"n{number % 2}", ["all", f"t{number % 3}"]
            store.create(f"r{number}", b"", {}, 1, name=name, tags=tags)
            if number % 4 == 0:
                store.transition(f"r{number}", [State.RUNNING], State.CANCELLED, 0)

        def found(**filters: Any) -> set[int]:
            seen, cursor = [], ""
            for _ in range(100):
                page, cursor = store.scan(cursor, 5, **filters)
                seen += [int(summary.run[1:]) for summary in page]
                if not cursor:
                    break
            assert len(seen) == len(set(seen))
            return set(seen)

        everything = set(range(12))
        assert found(state=State.CANCELLED) == {0, 4, 8}
        assert found(state=State.RUNNING) == everything - {0, 4, 8}
        assert found(state=State.FAILED) == set()
        assert found(name="n1") == {1, 3, 5, 7, 9, 11}
        assert found(tag="t2") == {2, 5, 8, 11}
        assert found(tag="all") == everything
        assert found(tag="t") == found(name="n") == set(), "a tag or name is matched as a whole"
        assert found(state=State.CANCELLED, name="n0", tag="t1") == {4}

    def test_scan_goes_through_pages_newest_first(self, store: ResultStore) -> None:
        runs = [f"run {n}" if n % 2 else f"r:{n}" for n in range(23)]
        for run in runs:
            store.create(run, b"", {}, 1)
        first, cursor = store.scan(count=5)
        assert len(first) < len(runs), "about count runs"
        assert cursor, "the cursor for the next call"
        for count in (1, 5, 23, 100):
            seen = _scan(store, count)
            names = [summary.run for summary in seen]
            assert sorted(names) == sorted(runs), "every run exactly once"
            times = [summary.created_at for summary in seen]
            assert times == sorted(times, reverse=True), "newest first"

    def test_scan_while_runs_come_and_go(self, store: ResultStore) -> None:
        runs = [f"r{number}" for number in range(20)]
        for run in runs:
            store.create(run, b"", {}, 1)
        page, cursor = store.scan(count=4)
        seen = [summary.run for summary in page]
        store.delete(seen[-1])
        gone = [run for run in runs if run not in seen][:3]
        for number, run in enumerate(gone):
            store.delete(run)
            store.create(f"new{number}", b"", {}, 1)
        seen += [summary.run for summary in _scan(store, 4, cursor)]
        assert len(seen) == len(set(seen)), "no run is seen twice"
        assert set(runs) - set(gone) <= set(seen), "every run that stays is seen"
        assert set(seen) <= {*runs, "new0", "new1", "new2"}

    # --- waiting ----------------------------------------------------------------------------

    def test_wait_for_what_has_ended(self, store: ResultStore) -> None:
        assert store.wait("gone", LONG) is None
        for state in (State.FAILED, State.CANCELLED):
            store.create(state.value, b"", {}, 1)
            if state is State.FAILED:
                _fail(store, state.value, "0", final=True)
            else:
                store.transition(state.value, [State.RUNNING], state, 0)
            assert store.wait(state.value) is state
            assert store.wait(state.value, 0) is state

    def test_wait_returns_the_state_when_time_is_over(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        started = time.monotonic()
        assert store.wait("r", 0.2) is State.RUNNING, "returns its state, also when time is over"
        assert 0.15 < time.monotonic() - started < LONG
        assert store.wait("r", 0) is State.RUNNING

    def test_wait_wakes_up_at_every_end(self, store: ResultStore) -> None:
        ends: dict[str, tuple[Callable[[ResultStore, str], Any], State | None]] = {
            "complete": (lambda s, run: _complete(s, run, "0"), State.SUCCEEDED),
            "fail": (lambda s, run: _fail(s, run, "0", final=True), State.FAILED),
            "cancel": (
                lambda s, run: s.transition(run, [State.RUNNING], State.CANCELLED, 0),
                State.CANCELLED,
            ),
            "delete": (lambda s, run: s.delete(run), None),
        }
        waiter, other = self._two(store)
        with ThreadPoolExecutor(2 * len(ends)) as pool:
            for run in ends:
                store.create(run, b"", {}, 1)
            waiting = {run: [pool.submit(waiter.wait, run, LONG * 3) for _ in "ab"] for run in ends}
            with pytest.raises(NotYet):
                raise_if_done = waiting["complete"][0].result(0.2)
                pytest.fail(f"wait returned {raise_if_done} before the run had ended")
            for run, (end, state) in ends.items():
                end(other, run)
                for future in waiting[run]:
                    assert future.result(PROMPT) is state, f"wait wakes up at {run}"

    def test_wait_goes_on_over_events_that_end_nothing(self, store: ResultStore) -> None:
        waiter, other = self._two(store)
        store.create("r", b"", {}, 2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(waiter.wait, "r", LONG * 3)
            _fail(other, "r", "0")
            other.transition("r", [State.RUNNING], State.RUNNING, 0)
            _complete(other, "r", "0", generation=1)
            with pytest.raises(NotYet):
                waiting.result(0.1)
            _complete(other, "r", "1", generation=1)
            assert waiting.result(PROMPT) is State.SUCCEEDED

    def test_wait_async(self, store: ResultStore) -> None:
        waiter, other = self._two(store)
        for run in ("done", "gone", "late"):
            store.create(run, b"", {}, 1)

        async def waits() -> list[State | None]:
            async def end() -> None:
                # Only a loop that is not blocked comes to this.
                await asyncio.sleep(0.1)
                await asyncio.to_thread(_complete, other, "done", "0")
                await asyncio.to_thread(other.delete, "gone")

            found = await asyncio.gather(
                waiter.wait_async("done", PROMPT),
                waiter.wait_async("gone", PROMPT),
                waiter.wait_async("late", 0.2),
                waiter.wait_async("late", 0),
                waiter.wait_async("never was", LONG),
                end(),
            )
            return list(found[:-1])

        expected = [State.SUCCEEDED, None, State.RUNNING, State.RUNNING, None]
        assert asyncio.run(waits()) == expected, "wait, without blocking the event loop"

    def test_watch_tells_of_changes(self, store: ResultStore) -> None:
        watcher, other = self._two(store)
        store.create("r", b"", {}, 60)
        told, stop = threading.Event(), threading.Event()

        def watch() -> int:
            seen = 0
            for changed in watcher.watch("r"):
                seen += changed
                if changed:
                    told.set()
                if stop.is_set():
                    return seen
            raise AssertionError("watch goes on until it is closed")

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            assert told.wait(PROMPT), "watch yields at once"
            try:
                for number in range(3):
                    told.clear()
                    _complete(other, "r", str(number))
                    assert told.wait(PROMPT), "watch yields when the run may have changed"
            finally:
                stop.set()
                _complete(other, "r", "9")
            assert watching.result(LONG) >= 4

    def test_watch_async(self, store: ResultStore) -> None:
        watcher, other = self._two(store)
        store.create("r", b"", {}, 9)

        async def watch() -> int:
            seen = 0
            async for changed in watcher.watch_async("r"):
                if not changed:
                    continue
                seen += 1
                if seen > 3:
                    break
                await asyncio.to_thread(_complete, other, "r", str(seen))
            return seen

        async def bounded() -> int:
            return await asyncio.wait_for(watch(), LONG)

        assert asyncio.run(bounded()) == 4

    # --- upkeep ---------------------------------------------------------------------------------

    def test_migrate_again_changes_nothing(self, store: ResultStore) -> None:
        store.create("r", b"", {"0": b"page"}, 1)
        store.migrate()
        assert store.migrate() == [], "there is nothing left to do"
        assert (store.page("r", "0"), _complete(store, "r", "0").succeeded) == (b"page", True)

    def test_prune_leaves_what_lives(self, store: ResultStore) -> None:
        for number in range(3):
            store.create(f"r{number}", b"", {}, number)
        store.prune()
        assert len(_scan(store)) == 3, "only expired runs are deleted"

    # --- times to live ------------------------------------------------------------------------

    def test_a_run_is_kept_after_its_last_event(self) -> None:
        step = [Settles("1", "1", 2)]
        events: dict[str, Callable[[ResultStore, str], Any]] = {
            "create": lambda store, run: store.create(run, b"new", {"0": b"page"}, 3),
            "begin": lambda store, run: _begin(store, run, "3"),
            "complete": lambda store, run: _complete(store, run, "0"),
            "fail": lambda store, run: _fail(store, run, "1", settles=step),
            "checkpoint": lambda store, run: store.checkpoint(run, "2", b"held", 0, ["start x"]),
            "resume": lambda store, run: store.transition(run, [State.RUNNING], State.RUNNING, 0),
        }
        for scale in (1, 2, 4, 8):  # a machine that is held up for long gets more time
            with self._opened(ttl=self.ttl * scale * 2, result_ttl=3600) as store:
                if self._renewed(store, events):
                    return
        pytest.fail("a run expires before its time to live is over")  # pragma: no cover

    def _renewed(
        self, store: ResultStore, events: Mapping[str, Callable[[ResultStore, str], Any]]
    ) -> bool:
        ttl, started = store.options.ttl, time.monotonic()
        for run in events:
            if run != "create":
                events["create"](store, run)
        _until(started + ttl / 2)
        last = {}
        for run, event in events.items():
            last[run] = time.monotonic()
            event(store, run)
        if time.monotonic() - started > ttl * 0.9:
            return False
        for run, ended in _gone(store, last, ttl).items():
            assert ended - last[run] > ttl * 0.9, f"{run} renews the time a run is kept"
        for run in events:
            assert store.page(run, "0") is Missing, "a run that has expired is gone altogether"
            assert store.values(run, ["0"]) == [Missing]
            assert (store.data(run), store.executions(run)) == (None, {})
            assert _begin(store, run, "0") is Verdict.DROP
            self._assert_clean(store, run)
        return True

    def test_a_run_that_has_ended_is_kept_for_result_ttl(self) -> None:
        with self._opened(ttl=3600, result_ttl=self.ttl, failed_ttl=self.ttl) as store:
            ended = {}
            for run in ("empty", "SUCCEEDED", "FAILED", "CANCELLED"):
                ended[run] = time.monotonic()
                store.create(run, b"", {}, int(run != "empty"))
            _complete(store, "SUCCEEDED", "0")
            _fail(store, "FAILED", "0", final=True)
            store.transition("CANCELLED", [State.RUNNING], State.CANCELLED, 0)
            for run, gone in _gone(store, ended, self.ttl).items():
                assert gone - ended[run] > self.ttl * 0.9, f"{run} is kept for result_ttl"
            assert _scan(store) == []
            assert store.prune(limit=1) <= 1
            store.prune()
            assert store.prune() == 0, "what has expired is deleted"

    def test_a_run_that_failed_or_was_cancelled_is_kept_for_failed_ttl(self) -> None:
        options = {"ttl": self.ttl, "result_ttl": self.ttl, "failed_ttl": self.ttl * 3}
        with self._opened(**options) as store:
            last = {}
            for run in ("FAILED", "CANCELLED", "failed again", "late"):
                store.create(run, b"", {}, 3)
                last[run] = time.monotonic()
                if run != "CANCELLED":
                    _fail(store, run, "0", final=True)
            store.transition("CANCELLED", [State.RUNNING], State.CANCELLED, 0)
            store.transition("failed again", [State.FAILED], State.RUNNING, 0)
            _fail(store, "failed again", "0", generation=1, final=True)
            _complete(store, "late", "1")
            kept = store.options.kept(State.FAILED)
            for run, gone in _gone(store, last, kept).items():
                assert gone - last[run] > kept * 0.9, f"{run} is kept for failed_ttl"

    def test_a_run_that_succeeded_after_it_failed_is_kept_for_result_ttl(self) -> None:
        with self._opened(ttl=3600, result_ttl=self.ttl, failed_ttl=3600) as store:
            last = {}
            for run in ("resumed", "recovered"):
                store.create(run, b"", {}, 1)
                _fail(store, run, "0", final=True)
                last[run] = time.monotonic()
            store.transition("resumed", [State.FAILED], State.RUNNING, 0)
            for run in last:
                assert _complete(store, run, "0").remaining == 0
            for run, gone in _gone(store, last, self.ttl).items():
                assert gone - last[run] > self.ttl * 0.9, f"{run} is kept for result_ttl"

    def test_the_last_event_of_a_run_that_failed_or_was_cancelled_is_its_end(
        self, store: ResultStore
    ) -> None:
        for run in ("complete", "fail", "cancelled"):
            store.create(run, b"", {}, 4)
        for run in ("complete", "fail"):
            _fail(store, run, "0", final=True)
        store.transition("cancelled", [State.RUNNING], State.CANCELLED, 0)
        before = {run: _read(store, run).ended_at or 0 for run in ("complete", "fail", "cancelled")}
        time.sleep(0.01)  # clocks have steps
        _complete(store, "complete", "1")
        _fail(store, "fail", "1")
        _complete(store, "cancelled", "1")
        for run, ended in before.items():
            record = _read(store, run)
            assert record.ended_at == record.updated_at, f"{run} moves the end of the run"
            assert record.ended_at > ended, f"{run} moves the end of the run"

    def test_what_comes_after_a_success_does_not_move_its_end(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        _complete(store, "r", "0")
        ended = _read(store, "r").ended_at
        time.sleep(0.01)
        _complete(store, "r", "0")
        _fail(store, "r", "0")
        assert _read(store, "r").ended_at == ended

    def test_a_run_that_runs_again_is_kept_for_ttl(self) -> None:
        options = {"ttl": self.ttl * 3, "result_ttl": self.ttl, "failed_ttl": self.ttl}
        with self._opened(**options) as store:
            last = {}
            for run in ("resumed", "recovered"):
                store.create(run, b"", {}, 2)
                _fail(store, run, "0", final=True)
                last[run] = time.monotonic()
            store.transition("resumed", [State.FAILED], State.RUNNING, 0)
            _complete(store, "recovered", "0")
            for run, gone in _gone(store, last, store.options.ttl).items():
                assert gone - last[run] > store.options.ttl * 0.9, f"{run}: kept for ttl again"

    def test_events_do_not_shorten_the_time_after_the_end(self) -> None:
        options = {"ttl": self.ttl, "result_ttl": self.ttl, "failed_ttl": self.ttl * 3}
        with self._opened(**options) as store:
            last = {}
            events: dict[str, Callable[[], Any]] = {
                "begin": lambda: _begin(store, "begin", "1"),
                "complete": lambda: _complete(store, "complete", "1"),
                "fail": lambda: _fail(store, "fail", "1"),
                "checkpoint": lambda: store.checkpoint("checkpoint", "1", b"", 0),
                "remind": lambda: store.remind("remind", {"a": 1.0}),
                "published": lambda: store.published("published", ["a"]),
            }
            for run in events:
                store.create(run, b"", {}, 3)
                _fail(store, run, "0", final=True)
                last[run] = time.monotonic()
            for event in events.values():
                event()
            kept = store.options.kept(State.FAILED)
            for run, gone in _gone(store, last, kept).items():
                assert gone - last[run] > kept * 0.9, f"{run} in a FAILED run keeps to failed_ttl"

    # --- the store object --------------------------------------------------------------------

    def test_close_lets_the_store_be_used_again(self, store: ResultStore) -> None:
        store.close()
        store.create("r", b"", {}, 1)
        store.close()
        store.close()
        assert self.shared is False or _complete(store, "r", "0").succeeded

    def test_two_stores_see_the_same_runs(self, store: ResultStore) -> None:
        if not self.shared:
            pytest.skip("this store lives in one object")
        _, other = self._two(store)
        store.create("r", b"meta", {"0": b"page"}, 1)
        assert _read(other, "r") == _read(store, "r")
        assert _complete(other, "r", "0").succeeded
        assert store.wait("r", LONG) is State.SUCCEEDED
        elsewhere = self.make_store(replace(store.options, prefix=f"{store.options.prefix}-2"))
        self._others.append(elsewhere)
        assert elsewhere.read("r") is None, "prefix: names of keys or tables start with it"
        assert _scan(elsewhere) == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_it_survives_a_fork(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 50)
        _complete(store, "r", "0")  # connections are open now

        def child() -> None:
            store.create("child", b"", {}, 24)
            for number in range(24):
                _complete(store, "child", str(number), b"%d" % number)
                _complete(store, "r", f"child {number}")
            assert store.peek("child") == (State.SUCCEEDED, 0)
            assert store.values("child", ["7"]) == [b"7"]

        forked = _Child(child)
        for number in range(24):
            done = _complete(store, "r", f"parent {number}", b"%d" % number)
            assert done.fresh, "the parent's own connection still answers"
        assert forked.status() == 0, "the store is used by parent and child after a fork"
        assert store.values("r", ["parent 7"]) == [b"7"]
        if self.shared and self.processes:
            assert _read(store, "r").remaining == 1
            assert store.peek("child") == (State.SUCCEEDED, 0)

    def test_check_answers_sentences(self, store: ResultStore) -> None:
        assert all(isinstance(sentence, str) and sentence for sentence in store.check())

    def test_a_store_that_cannot_be_reached(self) -> None:
        store = self.make_unreachable(StoreOptions())
        if store is None:
            pytest.skip("make_unreachable offers no store whose server is away")
        started = time.monotonic()
        calls = _primitives(store)
        if isinstance(store, Buckets):
            calls["add_counts"] = _call(store.add_counts, {"60.1": {"a": 1}}, 1.0)
            calls["read_counts"] = _call(store.read_counts, ["60.1"])
        for name, call in calls.items():
            with pytest.raises(StoreUnavailable):
                call()
                pytest.fail(f"{name} raises StoreUnavailable when the server cannot be reached")
        spent = time.monotonic() - started
        assert spent < LONG, f"primitives do not retry: a refused connection took {spent:.1f} s"
        assert store.check() == []

    # --- decisions --------------------------------------------------------------------------

    def test_a_gate_lets_one_result_through(self, store: ResultStore) -> None:
        store.create("r", b"", {"2": b"page"}, 5)
        outer = Barrier("all", 2, then="page 2", gate="b")
        inner = (Barrier("b", 2), outer)
        assert _complete(store, "r", "0.0", barriers=inner).due == ()
        assert store.counts("r", ["b", "all"]) == [1, 0]
        assert _complete(store, "r", "0.1", barriers=inner).due == ()
        assert store.counts("r", ["b", "all"]) == [2, 1]
        alone = (Barrier("c", 1), replace(outer, gate="c"))
        assert _complete(store, "r", "1", barriers=alone).due == ("page 2",)

    def test_the_last_barrier_ends_the_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3, ends=[State.SUCCEEDED])
        done = _complete(store, "r", "0", token="t", barriers=[Barrier("end", 1, then=END)])
        assert (done.succeeded, done.remaining, done.due) == (True, 0, ("end SUCCEEDED",))
        assert store.counts("r", ["skipped"]) == [2]
        assert _begin(store, "r", "1") is Verdict.DROP
        assert _complete(store, "r", "2").fresh, "what was running is kept"
        record = _read(store, "r")
        assert (record.state, record.done) == (State.SUCCEEDED, 3)
        assert store.counts("r", ["skipped"]) == [1]

    def test_a_run_that_was_cancelled_meanwhile_ends_when_resumed(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        _complete(store, "r", "0", barriers=[Barrier("end", 1, then=END)])
        assert _state(store, "r") is State.CANCELLED
        assert store.transition("r", [State.CANCELLED], State.RUNNING, 0)
        assert _state(store, "r") is State.SUCCEEDED

    def test_a_stop_is_the_result_of_the_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4, ends=[State.SUCCEEDED])
        done = _complete(store, "r", "0", b"1", stop=b"2", token="t")
        assert (done.succeeded, done.due) == (True, ("end SUCCEEDED",))
        assert store.values("r", ["0", STOPPED]) == [b"1", b"2"]
        assert store.counts("r", ["skipped"]) == [3]
        assert not _complete(store, "r", "0", b"1", stop=b"3", token="u").fresh
        assert store.values("r", [STOPPED]) == [b"2"]

    def test_nothing_follows_from_a_failure_after_a_stop(self, store: ResultStore) -> None:
        store.create("r", b"", {"0/2": b"page"}, 4)
        _complete(store, "r", "1", stop=b"2")
        assert _fail(store, "r", "0.0", retry=("job 0.0", 5.0)).due == ()
        turns = [Turn("0", "0.1", 2, 3)]
        assert _fail(store, "r", "0.1", final=True, turns=turns).due == ()
        assert _due(store, "r") == {}

    def test_what_is_decided_changes_how_many_jobs_there_are(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        answer = _complete(store, "r", "1", jobs=9, counts=0)
        assert (answer.remaining, _read(store, "r").jobs) == (12, 12)
        assert _complete(store, "r", "0", skips=4).remaining == 7
        assert store.counts("r", ["skipped"]) == [4]
        again = _complete(store, "r", "0", skips=4)
        assert (again.fresh, again.remaining) == (False, 7)
        assert _complete(store, "r", "2", skips=6, token="t").succeeded

    def test_a_tolerated_death_is_a_result(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"page"}, 4, ends=[State.FAILED])
        counts = (Barrier("0#", 3, then="page 1", gate="0.1", grows=True),)
        tolerance = Tolerance("0#", "0.1", 1, barriers=counts)
        answer = _fail(store, "r", "0.1.0", final=True, tolerances=[tolerance])
        assert (answer.tolerated, answer.died, answer.due) == (True, False, ())
        record = _read(store, "r")
        assert (record.state, record.dead, record.remaining) == (State.RUNNING, 0, 3)
        assert record.tolerated == record.finished == {"0.1.0"}
        assert store.values("r", ["0.1"]) == [b"gone"]
        assert store.counts("r", ["0#"]) == [1]
        again = _fail(store, "r", "0.1.0", final=True, tolerances=[tolerance])
        assert (again.recorded, again.tolerated, store.counts("r", ["0#"])) == (False, True, [1])
        beside = replace(tolerance, member="0.1")
        _fail(store, "r", "0.1.1", final=True, tolerances=[beside])
        assert store.counts("r", ["0#", "dead 0#"]) == [1, 1], "a branch dies once"
        other = Tolerance("0#", "0.2", 1, barriers=(replace(counts[0], gate="0.2"),))
        answer = _fail(store, "r", "0.2", final=True, tolerances=[other], token="t")
        assert (answer.tolerated, answer.died, answer.due) == (False, True, ("death 0.2",))

    def test_what_a_tolerated_death_opens_is_due(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"page"}, 3)
        opens = Barrier("0#", 2, then="page 1", grows=True)
        _complete(store, "r", "0.0", barriers=[opens])
        tolerance = Tolerance("0#", "0.1", 1, barriers=(opens,))
        answer = _fail(store, "r", "0.1", final=True, tolerances=[tolerance])
        assert (answer.due, answer.pages) == (("page 1",), {"1": b"page"})
        again = _fail(store, "r", "0.1", final=True, tolerances=[tolerance])
        assert again.due == ("page 1",), "until it is known to have been sent"

    def test_a_branch_that_has_died_does_not_count_again(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 9)
        counts = Barrier("0#", 2, then="page 1", gate="0.1", grows=True)
        tolerance = Tolerance("0#", "0.1", 1, barriers=(counts,))
        _fail(store, "r", "0.1.0", final=True, tolerances=[tolerance])
        before = _read(store, "r").remaining
        assert _complete(store, "r", "0.1.0").remaining == before, "it counted as done"
        late = (Barrier("0.1", 1, closes=True), counts)
        assert _complete(store, "r", "0.1.1", barriers=late).due == ()
        assert store.counts("r", ["0#"]) == [1]

    def test_the_parallel_around_tolerates_what_the_inner_one_does_not(
        self, store: ResultStore
    ) -> None:
        store.create("r", b"", {}, 9)
        inner = Tolerance("0.0#", "0.0.1", 0)
        outer = Tolerance("0#", "0.0", 1, barriers=(Barrier("0#", 2, "page 1", gate="0.0"),))
        answer = _fail(store, "r", "0.0.1", final=True, tolerances=[inner, outer])
        assert answer.tolerated
        assert store.values("r", ["0.0", "0.0.1"]) == [b"gone", Missing]

    def test_what_is_needed_no_more_does_not_start(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"page"}, 9)
        enough = Barrier("0#", 1, then="page 1", grows=True)
        unless = (("0#", 1),)
        assert _begin(store, "r", "0.1", unless=unless) is Verdict.RUN
        assert _complete(store, "r", "0.0", barriers=[enough]).due == ("page 1",)
        assert _begin(store, "r", "0.2", unless=unless) is Verdict.DROP
        need = Tolerance("0#", "0.1", 0, need=1)
        answer = _fail(store, "r", "0.1", final=True, tolerances=[need])
        assert (answer.tolerated, _state(store, "r")) == (True, State.RUNNING)

    def test_tolerated_deaths_are_forgotten_where_that_is_asked_for(
        self, store: ResultStore
    ) -> None:
        store.create("r", b"", {}, 4)
        counts = Barrier("0#", 3, then="page 1", grows=True)
        for member in ("0.0", "0.1"):
            tolerance = Tolerance("0#", member, 1, barriers=(counts,))
            _fail(store, "r", member, final=True, tolerances=[tolerance])
        assert _state(store, "r") is State.FAILED
        assert store.transition("r", [State.FAILED], State.RUNNING, 0)
        assert store.values("r", ["0.0"]) == [b"gone"], "else it is a result"
        assert _read(store, "r").tolerated == {"0.0"}
        assert _complete(store, "r", "9").remaining == 2
        assert store.transition("r", [State.RUNNING], State.RUNNING, 1, retry_tolerated=True)
        assert store.values("r", ["0.0"]) == [Missing]
        record = _read(store, "r")
        assert (store.counts("r", ["0#", "dead 0#"]), record.remaining) == ([0, 0], 3)
        assert record.tolerated == set()
        passed = Barrier("1#", 1, then="page 2", grows=True)
        dies = Tolerance("1#", "1.0", 1, barriers=(passed,))
        _fail(store, "r", "1.0", final=True, generation=2, tolerances=[dies])
        assert store.transition("r", [State.RUNNING], State.RUNNING, 2, retry_tolerated=True)
        assert store.values("r", ["1.0"]) == [b"gone"], "the run has gone on without it"

    def test_branches_are_added(self, store: ResultStore) -> None:
        store.create("r", b"", {"1": b"page"}, 3)
        opens = [Barrier("0", 2, then="page 1")]
        growth = Growth("0", (("0+0", "0.0+0"),), {"0": 1}, 1, {"a": b"added"}, due=("a",))
        answer = _complete(store, "r", "0.0", barriers=opens, growth=growth)
        assert (answer.due, answer.pages, answer.remaining) == (("page a",), {"a": b"added"}, 3)
        assert _read(store, "r").jobs == 4
        assert not _complete(store, "r", "0.0", barriers=opens, growth=growth).fresh
        again = _complete(store, "r", "0.0", barriers=opens)
        assert again.unusual, "whoever sends what is still due has to know of the branches, too"
        assert _complete(store, "r", "0.1", barriers=opens).due == ()
        assert _complete(store, "r", "0.0+0", barriers=opens).due == ("page 1",)

    def test_added_branches_take_their_turns(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        turns = [Turn("0", f"0.{number}", 2, 2) for number in range(2)]
        over = [Barrier(turn.member, 1, turn=turn) for turn in turns]
        _complete(store, "r", "0.0", barriers=over[:1])  # nothing is left to start
        branches = tuple((f"1+{number}", f"0.1+{number}") for number in range(3))
        growth = Growth("0", branches, {}, 3, {}, limit=2, width=2)
        answer = _complete(store, "r", "0.1", barriers=over[1:], growth=growth)
        assert answer.due == ("page 0/1+0", "page 0/1+1")
        turn = Turn("0", "0.1+0", 2, 2)
        answer = _complete(store, "r", "0.1+0", barriers=[Barrier("0.1+0", 1, turn=turn)])
        assert answer.due == ("page 0/1+2",)

    def test_added_branches_have_the_room_that_there_was(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        turns = [Turn("0", f"0.{number}", 4, 2) for number in range(2)]
        over = [Barrier(turn.member, 1, turn=turn) for turn in turns]
        _complete(store, "r", "0.0", barriers=over[:1])  # only "0.1" is left, and might be four
        branches = tuple((f"1+{number}", f"0.1+{number}") for number in range(5))
        growth = Growth("0", branches, {}, 5, {}, limit=4, width=2)
        answer = _complete(store, "r", "0.1", barriers=over[1:], growth=growth)
        assert answer.due == tuple(f"page 0/1+{number}" for number in range(4))
        turn = Turn("0", "0.1+0", 4, 2)
        answer = _complete(store, "r", "0.1+0", barriers=[Barrier("0.1+0", 1, turn=turn)])
        assert answer.due == ("page 0/1+4",)

    @pytest.mark.parametrize(
        ("number", "idle", "due"),
        [
            (4, -2, ((), ("page 0/1+2",), ("page 0/2+0",))),
            (5, -1, (("page 0/2+0",), (), ())),
            (5, -2, ((), ("page 0/2+0",), ())),
            (4, 0, ((), ("page 0/1+2",), ("page 0/2+0",))),
        ],
        ids=["one has to wait", "there is room", "all are under way", "it was not told"],
    )
    def test_added_branches_have_the_room_that_there_is_after_a_resume(
        self, store: ResultStore, number: int, idle: int, due: tuple[tuple[str, ...], ...]
    ) -> None:
        store.create("r", b"", {}, 9)
        turns = [Turn("0", f"0.{each}", 4, 2) for each in range(2)]
        first, second = ([Barrier(turn.member, 1, turn=turn)] for turn in turns)
        added = tuple((f"1+{each}", f"0.1+{each}") for each in range(3))
        growth = Growth("0", added, {}, 3, {}, limit=4, width=2)
        answer = _complete(store, "r", "0.1.0", growth=growth)
        assert answer.due == ("page 0/1+0", "page 0/1+1")
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        store.skip("r", "0", number, 1, idle)
        store.skip("r", "0", number, 1, idle)
        growth = Growth("0", (("2+0", "0.2+0"),), {}, 1, {}, limit=4, width=2)
        found = [
            _complete(store, "r", "0.1.1", generation=1, growth=growth),
            _complete(store, "r", "0.0", generation=1, barriers=first),
            _complete(store, "r", "0.1.2", generation=1, barriers=second),
        ]
        assert tuple(each.due for each in found) == due

    # --- counts by time -------------------------------------------------------------------------

    @pytest.fixture
    def buckets(self, store: ResultStore) -> Buckets:
        """The store, if it counts."""
        if not isinstance(store, Buckets):
            pytest.skip("the store keeps no counts")
        return store

    def test_counts_add_up_by_bucket_and_name(self, buckets: Buckets) -> None:
        odd = "time -3 shop.résumé:*?"
        assert buckets.read_counts(["60.1", "60.2"]) == [{}, {}], "nothing was counted before"
        buckets.add_counts({"60.1": {"a": 1, odd: 2}, "60.2": {"a": 5}}, LONG)
        buckets.add_counts({"60.1": {"a": 3}, "60.3": {"b": 2**40}}, LONG)
        counted = buckets.read_counts(["60.3", "60.1", "60.9", "60.2"])
        assert counted == [{"b": 2**40}, {"a": 4, odd: 2}, {}, {"a": 5}]
        assert buckets.read_counts([]) == []
        buckets.add_counts({}, LONG)

    def test_counts_have_a_time_to_live(self, buckets: Buckets) -> None:
        buckets.add_counts({"short": {"a": 1}, "renewed": {"a": 1}}, self.ttl)
        buckets.add_counts({"renewed": {"a": 1}}, LONG)
        deadline = time.monotonic() + LONG
        while buckets.read_counts(["short"]) != [{}]:
            assert time.monotonic() < deadline, "a bucket is kept for so many seconds"
            time.sleep(0.05)
        assert buckets.read_counts(["renewed"]) == [{"a": 2}], "from the last call on"
        buckets.add_counts({"short": {"a": 1}}, LONG)
        assert buckets.read_counts(["short"]) == [{"a": 1}], "what was forgotten counts no more"

    def test_counts_of_many_at_once_are_whole(self, store: ResultStore, buckets: Buckets) -> None:
        def add(store: Any) -> None:
            for _ in range(20):
                store.add_counts({"60.1": {"a": 1, "b": 2}, "60.2": {"a": 3}}, LONG)

        stores = self._two(store)
        _at_once([_call(add, stores[i % 2]) for i in range(6)])
        assert buckets.read_counts(["60.1", "60.2"]) == [{"a": 120, "b": 240}, {"a": 360}]

    def test_counts_belong_to_a_prefix(self, buckets: Buckets) -> None:
        with self._opened() as other:
            assert isinstance(other, Buckets)
            buckets.add_counts({"60.1": {"a": 1}}, LONG)
            assert other.read_counts(["60.1"]) == [{}]

    # --- random histories -----------------------------------------------------------------------

    def test_random_histories_agree_with_the_rules(self, store: ResultStore) -> None:
        self._live(_machine(store, _USUAL))

    def test_random_histories_of_runs_that_decide_agree_with_the_rules(
        self, store: ResultStore
    ) -> None:
        self._live(_machine(store, _DECIDING))

    def _live(self, machine: type[hypothesis.stateful.RuleBasedStateMachine]) -> None:
        settings = hypothesis.settings(
            max_examples=self.examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)


# --- random histories ----------------------------------------------------------------------------

_RUNS = ["a", "a:b"]
_LIMIT = 2
_WORKERS = ["w0", "w1", "w2"]
_DUE = ["page 0", "page 3", "job 1", "job 0 1", "death 0", "end SUCCEEDED"]
_TIMES = [1.5, 2_000_000_000.25]
_PAGES = {"0": b"page", "2": b"two", "3": b"three", "2/1": b"", "2/3": b"\xff\x00", "1/2": b"x"}


@dataclass(frozen=True)
class _Plan:
    """A run, as random histories have it.

    Attributes:
        completes: what each job says when it completes, as arguments of `Completion`.
        fails: what it says when it fails, as arguments of `Attempted`.
        unless: what makes it superfluous, if anything does; see `Claim`.
        branches: the branches of the narrow parallel, which are jobs.
        counted: what barriers count.
        others: results that are not those of jobs.
        decisions: what a completion may say besides.
        size: how many of the jobs there are from the start.
    """

    completes: Mapping[str, Mapping[str, Any]]
    fails: Mapping[str, Mapping[str, Any]]
    branches: Sequence[str]
    counted: Sequence[str]
    size: int
    unless: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    others: Sequence[str] = ()
    decisions: Sequence[Mapping[str, Any]] = (NOTHING,)

    @property
    def jobs(self) -> list[str]:
        return list(self.completes)

    @property
    def narrow(self) -> str:
        """The address of the narrow parallel."""
        return self.branches[0].partition(".")[0]


def _usual() -> _Plan:
    """A job, a step of two where one is a branch of two jobs, and a narrow parallel whose branches
    are jobs."""
    wide = Barrier("1", 3, "page 3", Settles("0", "1", 1))
    inner = Barrier("1.1", 2, "", Settles("1", "1.1", 2))
    quiet = Settles("1", "1.1", 2, loud=False)
    completes: dict[str, dict[str, Any]] = {
        "0": {"settles": Settles("root", "0", 1), "barriers": (Barrier("0", 1, "page 1"),)},
        "1.0": {"settles": Settles("1", "1.0", 2), "barriers": (wide,), "next": ("job 1", 1.5)},
        "1.1.0": {"barriers": (inner, wide)},
        "1.1.1": {"barriers": (inner, wide)},
    }
    fails: dict[str, dict[str, Any]] = {
        "0": {"settles": (Settles("root", "0", 1),), "retry": ("job 0 1", 2_000_000_000.25)},
        "1.0": {"settles": (Settles("1", "1.0", 2),), "retry": ("job 1.0 1", 1.5)},
        "1.1.0": {"settles": (Settles("1.1.0", "1.1.0", 1), quiet)},
        "1.1.1": {
            "settles": (Settles("1.1.1", "1.1.1", 1), quiet),
            "turns": (Turn("2", "x", 1, 4),),
        },
    }
    branches = ["2.0", "2.1", "2.2"]
    for at in branches:
        turn, settles = Turn("2", at, 1, 4), Settles("2", at, 3)
        over = Barrier(at, 1, turn=turn, settles=settles)
        completes[at] = {"barriers": (over, Barrier("2", 3, "page 3"))}
        fails[at] = {"settles": (settles,), "turns": (turn,)}
    return _Plan(completes, fails, branches, ["1", "1.1", "2"], len(completes))


def _deciding() -> _Plan:
    """A choice, with an option of two jobs of which one has to succeed. A narrow parallel that goes
    on without one of its branches: two are jobs, of which one is added; one is two jobs; one is a
    parallel of two of which one has to succeed. Then a step of two jobs, the last of the run,
    which has room for one more.

    What a job decides is drawn for any of them."""
    many = Barrier("1#", 3, grows=True)
    after = Barrier("1", 1, "page 2", gate="1#")
    either = Barrier("1.2#", 1, grows=True)

    def around(branch: str, ends: int) -> tuple[tuple[Barrier, ...], dict[str, Any]]:
        """What the jobs of a branch count towards, and what they say when they fail."""
        turn, settles = Turn("1", branch, 1, 3), Settles("1", branch, 3)
        counts = (replace(many, gate=branch), after)
        over = Barrier(branch, ends, "", settles, turn, closes=branch in ("1.1", "1.2"))
        outer = counts if over.closes else (many, after)
        says = {"settles": (settles,), "turns": (turn,)}
        return (over, *outer), {
            **says,
            "tolerances": (Tolerance("1#", branch, 1, 0, True, counts),),
        }

    option = (
        Barrier("0.1#", 1, grows=True),
        Barrier("0", 1, "page 1", Settles("root", "0", 1), gate="0.1#"),
    )
    completes: dict[str, dict[str, Any]] = {
        "0.0": {"barriers": (Barrier("0.0", 1, "page 0"),)},
        "0.1.0": {"barriers": option},
        "0.1.1": {"barriers": option},
    }
    fails: dict[str, dict[str, Any]] = {
        "0.0": {"settles": (Settles("root", "0", 1),)},
        "0.1.0": {"tolerances": (Tolerance("0.1#", "0.1.0", 0, 1, True),)},
        "0.1.1": {"tolerances": (Tolerance("0.1#", "0.1.1", 1, 1, True),)},
    }
    unless: dict[str, tuple[tuple[str, int], ...]] = {
        "0.1.0": (("0.1#", 1),),
        "0.1.1": (("0.1#", 1),),
    }
    for at in ("1.0", "1.0+0"):
        barriers, says = around(at, 1)
        completes[at] = {"barriers": barriers}
        fails[at] = {**says, "retry": (f"job {at} 1", 2_000_000_000.25)}
    barriers, says = around("1.1", 2)
    for at in ("1.1.0", "1.1.1"):
        completes[at] = {"barriers": barriers}
        fails[at] = {**says, "settles": (Settles(at, at, 1), *says["settles"])}
    barriers, says = around("1.2", 1)
    outer = tuple(replace(each, gate=each.gate or "1.2#") for each in barriers)
    for at in ("1.2.0", "1.2.1"):
        completes[at] = {"barriers": (either, *outer)}
        dies = Tolerance("1.2#", at, 1, 1, True)
        fails[at] = {**says, "tolerances": (dies, *says["tolerances"])}
        unless[at] = (("1.2#", 1), ("1#", 3))
    for at in ("2.0", "2.1"):
        turn, settles = Turn("2", at, 3, 2), Settles("2", at, 2)
        over = Barrier(at, 1, turn=turn, settles=settles)
        completes[at] = {"barriers": (over, Barrier("all", 2, END))}
        fails[at] = {"settles": (settles,), "turns": (turn,), "retry": (f"job {at} 1", 1.5)}
    added = (("0+0", "1.0+0"),)
    pages = {"1/0+0": b"added"}
    takes_turns = Growth("1", added, {"1#": 1}, 1, pages, limit=1, width=3)
    has_room = Growth("2", added, {}, 1, pages, limit=3, width=2)
    at_once = Growth("1", added, {"1#": 1}, 1, pages, due=("1/0+0",))
    decisions: list[dict[str, Any]] = [
        *[{}] * 8,
        *({"skips": 1}, {"skips": 2, "jobs": 1}, {"jobs": 2}, {"jobs": 1, "counts": 0}),
        *(
            {"growth": takes_turns},
            {"growth": has_room},
            {"growth": at_once},
            {"growth": takes_turns, "skips": 1},
        ),
        {"stop": b"stopped"},
    ]
    return _Plan(
        completes,
        fails,
        branches=["1.0", "1.0+0"],
        counted=[
            *("0.1#", "0", "1#", "1", "1.1", "1.2#", "1.2", "all"),
            *("dead 1#", "dead 1.2#", "more 1#", "skipped", "end", "unusual"),
        ],
        size=len(completes) - 1,
        unless=unless,
        others=["1.1", "1.2", STOPPED],
        decisions=decisions,
    )


_USUAL = _usual()
_DECIDING = _deciding()


_KEYS = [
    *("k", "K", "k ", " k", " ", "  ", "k\xa0", "\u0131", "I", "i", "\u0130"),  # case and blanks
    *("\u00e9", "e\u0301", "e", "\u00df", "ss", "\ufb01", "fi", "\u212b", "\u00c5"),  # forms
    *("k\u200b", "\u200d", "\ufeff", "\u202e", "\uffff", "\U0010ffff"),  # nothing to see
    *("1", "01", "\u0661", "null", "None", "%", "_", "\\", "'", '"', "a:b", "a/b", "{r}", "$", "?"),
]
"""Keys of data that some database or other takes for the same, or for more than text."""


def _machine(store: ResultStore, plan: _Plan) -> type[hypothesis.stateful.RuleBasedStateMachine]:
    """A state machine that does the same to *store* and to a `MemoryStore`, and compares them."""
    # Mostly one run, the job that something was last done to (None), and the generation that the
    # run is in: what stores get wrong are sequences of events for one job.
    rule = hypothesis.stateful.rule
    runs = st.sampled_from([*_RUNS[:1] * 6, *_RUNS])
    jobs = st.sampled_from([*[None] * 5, *plan.jobs])
    ages = st.sampled_from([*[0] * 5, -1, 1])
    values = st.sampled_from([b"null", b"", b"\xff\x00", b"1"])
    keys = st.lists(st.sampled_from(_DUE), max_size=3, unique=True)
    owners = st.sampled_from(_WORKERS)
    turns = st.sampled_from([0, 0, 1, TURNS, TURNS + 1, 2 * TURNS])
    idles = st.sampled_from([0, 0, -1, -2, 1, 2])
    states = st.sets(st.sampled_from(State), min_size=1)
    grows = [each for each in plan.decisions if "growth" in each]

    class Machine(hypothesis.stateful.RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model = MemoryStore("memory://", store.options)
            self.calls: list[Callable[[], None]] = []
            self.touched: set[str] = set()
            self.last = plan.jobs[0]
            self.tokens = 0

        def teardown(self) -> None:
            try:
                self.compare(_RUNS)  # nothing has happened to a run beside that of a call
                assert {each.run for each in _scan(store, 1)} == {
                    each.run for each in _scan(self.model)
                }
            finally:
                for run in _RUNS:
                    store.delete(run)

        def job(self, job: str | None) -> str:
            self.last = job or self.last
            return self.last

        def generation(self, run: str, age: int) -> int:
            return (self.model.peek(run) or (State.RUNNING, 0))[1] + age

        def token(self) -> str:
            self.tokens += 1
            return f"token {self.tokens}"

        def does(self, name: str, /, *args: Any, **more: Any) -> None:
            """Call the method *name* of both, and compare the answers."""

            def call() -> None:
                self.touched.add(args[0] if isinstance(args[0], str) else args[0].run)
                answer = _plain(getattr(store, name)(*args, **more))
                expected = _plain(getattr(self.model, name)(*args, **more))
                assert answer == expected, f"{name}: {answer}, the rules say {expected}"

            call()
            self.calls = [*self.calls[-5:], call]

        @hypothesis.stateful.initialize(ends=st.sets(st.sampled_from(State)), due=keys)
        def start(self, ends: set[State], due: list[str]) -> None:
            self.create(_RUNS[0], ends, due)

        @rule(run=runs, ends=st.sets(st.sampled_from(State)), due=keys)
        def create(self, run: str, ends: set[State], due: list[str]) -> None:
            more: dict[str, Any] = {"data": {"first": b"1"}, "ends": ends, "name": run}
            more["due"] = dict.fromkeys(due, 1.5)
            if self.model.peek(run):
                with pytest.raises(AlreadyEngaged):
                    store.create(run, b"other", {}, 0, **more)
            else:
                self.does("create", run, b"meta", _PAGES, plan.size, **more)
                self.calls.clear()  # it is not to be called again

        @rule(
            run=runs,
            job=jobs,
            age=ages,
            owner=owners,
            turn=turns,
            receipts=keys,
            died=st.booleans(),
        )
        def begin(
            self,
            run: str,
            job: str | None,
            age: int,
            owner: str,
            turn: int,
            receipts: list[str],
            died: bool,
        ) -> None:
            at = self.job(job)
            lease = self.model.leases(run).get(at)
            lapsed = lease.owner if died and lease else ""
            where = run, at, self.generation(run, age)
            claim = Claim(*where, owner, _LIMIT, turn, "0", tuple(receipts), lapsed)
            claim = replace(claim, unless=plan.unless.get(at, ()))
            self.does("begin", claim)

        @rule(run=runs, job=jobs, value=values, age=ages, decides=st.sampled_from(plan.decisions))
        def complete(
            self,
            run: str,
            job: str | None,
            value: bytes,
            age: int,
            decides: Mapping[str, Any] = NOTHING,
        ) -> None:
            at, generation = self.job(job), self.generation(run, age)
            more = {"token": self.token(), "info": value, **plan.completes[at], **decides}
            if "skips" in more:
                record = self.model.read(run)
                left = record.remaining - 1 if record else 0
                more["skips"] = min(more["skips"], max(left, 0))
            changes = {"last": value, at: value, "first": None}
            self.does("complete", Completion(run, at, generation, value, changes=changes, **more))

        @rule(
            run=runs,
            job=jobs,
            value=values,
            attempt=st.integers(1, 3),
            final=st.booleans(),
            age=ages,
        )
        def fail(
            self, run: str, job: str | None, value: bytes, attempt: int, final: bool, age: int
        ) -> None:
            at, generation = self.job(job), self.generation(run, age)
            more = {"token": self.token(), "stand_in": b"gone", **plan.fails[at]}
            self.does("fail", Attempted(run, at, generation, value, attempt, final, **more))

        @rule(
            run=runs,
            order=st.lists(st.sampled_from(plan.jobs), min_size=2, unique=True),
            fails=st.sets(st.sampled_from(plan.jobs), max_size=2),
            age=ages,
        )
        def work(self, run: str, order: list[str], fails: set[str], age: int) -> None:
            for at in order:
                if at in fails:
                    self.fail(run, at, b"1", 1, len(order) % 2 == 0, age)
                else:
                    self.complete(run, at, b"1", age)

        @rule(run=runs, missing=st.sampled_from([None, *plan.jobs]))
        def all_but_one_complete(self, run: str, missing: str | None) -> None:
            for at in plan.jobs:
                if at != missing:
                    self.complete(run, at, b"1", 0)

        @rule(run=runs, job=jobs, age=ages)
        def begin_and_fail(self, run: str, job: str | None, age: int) -> None:
            at = self.job(job)
            self.begin(run, at, 0, "w0", 2 * TURNS, [], False)
            self.fail(run, at, b"1", 3, False, age)

        @rule(run=runs, job=jobs, again=st.sampled_from([True, True, False]))
        def die_and_resume(self, run: str, job: str | None, again: bool) -> None:
            self.fail(run, job, b"1", 3, True, 0)
            self.transition(run, set(State), State.RUNNING, 0, again)

        @rule(run=runs, owner=owners)
        def begin_all(self, run: str, owner: str) -> None:
            for at in plan.jobs:
                self.begin(run, at, 0, owner, 0, [], False)

        @hypothesis.stateful.precondition(lambda self: plan is _DECIDING)
        @rule(run=runs, job=jobs, owner=owners)
        def stop(self, run: str, job: str | None, owner: str) -> None:
            self.complete(run, job, b"1", 0, {"stop": b"stopped"})
            self.begin_all(run, owner)

        @rule(last=st.integers(1, 5))
        def never_saw_the_answer(self, last: int) -> None:
            if len(self.calls) >= last:
                self.calls[-last]()

        @rule(run=runs, job=jobs, value=values, age=ages, due=keys)
        def checkpoint(
            self, run: str, job: str | None, value: bytes, age: int, due: list[str]
        ) -> None:
            self.does("checkpoint", run, self.job(job), value, self.generation(run, age), due)

        @rule(run=runs, job=jobs, child=st.sampled_from(["x", "y/z"]), value=values)
        def report(self, run: str, job: str | None, child: str, value: bytes) -> None:
            self.does("report", run, self.job(job), child, value)

        @rule(run=runs, job=jobs, owner=owners, turn=turns)
        def release(self, run: str, job: str | None, owner: str, turn: int) -> None:
            self.does("release", run, self.job(job), owner, turn)

        @rule(
            run=runs,
            number=st.integers(1, 4),
            age=ages,
            idle=idles,
            over=st.sampled_from(plan.branches),
        )
        def skip(self, run: str, number: int, age: int, idle: int, over: str) -> None:
            self.does("skip", run, plan.narrow, number, self.generation(run, age), idle)
            self.complete(run, over, b"1", 0)

        @hypothesis.stateful.precondition(lambda self: bool(grows))
        @rule(
            run=runs,
            job=jobs,
            number=st.integers(1, 4),
            idle=idles,
            decides=st.sampled_from(grows or [NOTHING]),
        )
        def skip_and_grow(
            self, run: str, job: str | None, number: int, idle: int, decides: Mapping[str, Any]
        ) -> None:
            """What is idle says how many of the branches that are added start."""
            step = decides["growth"].step
            self.does("skip", run, step, number, self.generation(run, 0), idle)
            self.complete(run, job, b"1", 0, decides)

        @rule(run=runs, keys=keys, since=st.sampled_from(_TIMES))
        def remind(self, run: str, keys: list[str], since: float) -> None:
            self.does("remind", run, dict.fromkeys(keys, since))

        @rule(run=runs, keys=keys)
        def tried(self, run: str, keys: list[str]) -> None:
            self.does("tried", run, keys)

        @rule(run=runs, keys=keys)
        def published(self, run: str, keys: list[str]) -> None:
            self.does("published", run, keys)

        @rule(
            run=runs,
            sources=states,
            to=st.sampled_from([State.RUNNING, State.RUNNING, State.CANCELLED]),
            age=ages,
            again=st.booleans(),
        )
        def transition(
            self, run: str, sources: set[State], to: State, age: int, again: bool
        ) -> None:
            generation = self.generation(run, age)
            self.does("transition", run, sources, to, generation, retry_tolerated=again)

        @rule(run=runs, sure=st.integers(0, 4))
        def delete(self, run: str, sure: int) -> None:
            if not sure:  # a history that is deleted all the time is a short one
                self.does("delete", run)

        @hypothesis.stateful.invariant()
        def agrees(self) -> None:
            touched, self.touched = self.touched, set()
            self.compare(touched)

        def compare(self, runs: Iterable[str]) -> None:
            for run in runs:
                found, expected = (_all_of(each, run, plan) for each in (store, self.model))
                assert found == expected, f"the store has {found}, the rules say {expected}"

    return Machine


def _plain(answer: Any) -> Any:
    """*answer* for comparison: what is told in no order is sorted."""
    if isinstance(answer, Completed | Failed):
        return replace(
            answer,
            settled=tuple(sorted(answer.settled)),
            due=tuple(sorted(answer.due)),
            pages=dict(answer.pages),
        )
    return answer


def _all_of(store: ResultStore, run: str, plan: _Plan) -> dict[str, Any] | None:
    """All that can be read of a run, but for the times at which it was written."""
    record = store.read(run)
    if record is None:
        assert (store.peek(run), store.data(run), store.executions(run)) == (None, None, {})
        assert store.outline(run) is None
        return None
    assert store.peek(run) == (record.state, record.generation)
    assert store.outline(run) == (record.state, record.meta)
    assert (record.ended_at is None) == (record.state is State.RUNNING)
    plain = replace(
        record,
        created_at=0.0,
        updated_at=0.0,
        ended_at=None,
        failures=dict(record.failures),
        held=dict(record.held),
        due={key: replace(due, since=_given(due.since)) for key, due in record.due.items()},
    )
    return {
        "record": plain,
        "values": store.values(run, [*plan.jobs, *plan.others]),
        "counts": store.counts(run, plan.counted),
        "data": store.data(run),
        "leases": {at: replace(each, started_at=0.0) for at, each in store.leases(run).items()},
        "infos": store.infos(run),
        "added": store.added(run) if plan is _DECIDING else {},
    }


def _given(since: float) -> float:
    """A time that a history gave, or 0 for the moment at which something was done."""
    return next((given for given in _TIMES if abs(since - given) < 0.001), 0.0)


# --- helpers ------------------------------------------------------------------------------------


class _Child:
    """A forked process that runs a function; it ends with 0 if that raised nothing."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                function()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def status(self) -> int:
        """Its exit status, or -9 for a process that had to be killed."""
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, 9)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _read(store: ResultStore, run: str) -> Record:
    record = store.read(run)
    assert record is not None, f"run {run!r} is not in the store"
    return record


def _summary(record: Record, name: str | None, tags: tuple[str, ...]) -> Summary:
    """What `ResultStore.scan` tells of *record*."""
    return Summary(
        run=record.run,
        name=name,
        tags=tags,
        state=record.state,
        jobs=record.jobs,
        done=record.done,
        failing=record.failing,
        dead=record.dead,
        created_at=record.created_at,
        updated_at=record.updated_at,
        ended_at=record.ended_at,
        due=len(record.due),
    )


def _counts(store: ResultStore, run: str) -> tuple[int, int, int]:
    """Done, failing, dead."""
    record = _read(store, run)
    return record.done, record.failing, record.dead


def _due(store: ResultStore, run: str) -> dict[str, str]:
    """What is due, and its cause."""
    return {key: due.cause for key, due in _read(store, run).due.items()}


def _scan(store: ResultStore, count: int = 100, cursor: str = "") -> list[Summary]:
    """Everything from *cursor* on."""
    seen: list[Summary] = []
    for _ in range(1000):
        page, cursor = store.scan(cursor, count)
        seen += page
        if not cursor:
            return seen
    raise AssertionError("scan comes to an end: the last cursor is empty")


def _state(store: ResultStore, run: str) -> State:
    return _read(store, run).state


def _begun(
    store: ResultStore,
    run: str,
    address: str,
    generation: int = 0,
    *,
    owner: str = "worker",
    limit: int = 5,
    **more: Any,
) -> Begun:
    receipts = tuple(more.pop("receipts", ()))
    claim = Claim(run, address, generation, owner, limit, receipts=receipts, **more)
    return store.begin(claim)


def _begin(store: ResultStore, run: str, address: str, *args: Any, **more: Any) -> Verdict:
    return _begun(store, run, address, *args, **more).verdict


def _complete(
    store: ResultStore,
    run: str,
    address: str,
    value: bytes = b"1",
    *,
    generation: int = 0,
    token: str = "",
    barriers: Sequence[Barrier] = (),
    **more: Any,
) -> Completed:
    """What `ResultStore.complete` says; ``due`` in the order of its keys."""
    token = token or uuid.uuid4().hex
    done = Completion(run, address, generation, value, token, barriers=tuple(barriers), **more)
    found = store.complete(done)
    return replace(found, due=tuple(sorted(found.due)), pages=dict(found.pages))


def _settled(
    store: ResultStore, address: str, settles: Settles
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The steps that have settled with a completion in run ``r``, and what is due then."""
    done = _complete(store, "r", address, settles=settles)
    return done.settled, done.due


def _fail(
    store: ResultStore,
    run: str,
    address: str,
    *,
    failure: bytes = b"{}",
    attempt: int = 1,
    final: bool = False,
    generation: int = 0,
    token: str = "",
    settles: Sequence[Settles] = (),
    turns: Sequence[Turn] = (),
    retry: tuple[str, float] | None = None,
    tolerances: Sequence[Tolerance] = (),
    stand_in: bytes = b"gone",
) -> Failed:
    """What `ResultStore.fail` says; ``due`` in the order of its keys."""
    token = token or uuid.uuid4().hex
    failed = Attempted(
        run,
        address,
        generation,
        failure,
        attempt,
        final,
        token,
        settles=tuple(settles),
        turns=tuple(turns),
        retry=retry,
        tolerances=tuple(tolerances),
        stand_in=stand_in,
    )
    found = store.fail(failed)
    return replace(found, due=tuple(sorted(found.due)), pages=dict(found.pages))


def _primitives(store: ResultStore) -> dict[str, Callable[[], Any]]:
    """Every call that needs the server."""
    return {
        "create": lambda: store.create("r", b"", {}, 1),
        "begin": lambda: _begin(store, "r", "0"),
        "complete": lambda: _complete(store, "r", "0"),
        "fail": lambda: _fail(store, "r", "0"),
        "checkpoint": lambda: store.checkpoint("r", "0", b"", 0),
        "report": lambda: store.report("r", "0", "child", b""),
        "release": lambda: store.release("r", "0", "me", 0),
        "transition": lambda: store.transition("r", [State.RUNNING], State.CANCELLED, 0),
        "skip": lambda: store.skip("r", "0", 1, 0),
        "remind": lambda: store.remind("r", {"a": 1.0}),
        "tried": lambda: store.tried("r", ["a"]),
        "published": lambda: store.published("r", ["a"]),
        "renew": lambda: store.renew(["me"], 1),
        "owners": store.owners,
        "retire": lambda: store.retire(["me"]),
        "page": lambda: store.page("r", "0"),
        "values": lambda: store.values("r", ["0"]),
        "counts": lambda: store.counts("r", ["b"]),
        "data": lambda: store.data("r"),
        "leases": lambda: store.leases("r"),
        "infos": lambda: store.infos("r"),
        "read": lambda: store.read("r"),
        "scan": store.scan,
        "delete": lambda: store.delete("r"),
        "peek": lambda: store.peek("r"),
        "outline": lambda: store.outline("r"),
        "finished": lambda: store.finished("r", ["0"]),
        "executions": lambda: store.executions("r"),
        "unfinished": store.unfinished,
        "wait": lambda: store.wait("r", 5),
        "wait_async": lambda: asyncio.run(store.wait_async("r", 5)),
    }


def _call(function: Callable[..., T], *args: Any, **kwargs: Any) -> Callable[[], T]:
    return lambda: function(*args, **kwargs)


def _at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What *calls* return, each made in a thread of its own, all at the same moment."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait(LONG)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(start, call) for call in calls]
        return [future.result(LONG * 3) for future in futures]


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _gone(store: ResultStore, runs: Iterable[str], ttl: float) -> dict[str, float]:
    """When each of *runs* was first not to be found; that it is gone in the end is asserted."""
    left, gone = set(runs), {}
    deadline = time.monotonic() + ttl + LONG
    while left:
        for run in [run for run in left if store.read(run) is None]:
            gone[run] = time.monotonic()
            left.remove(run)
        assert time.monotonic() < deadline, f"{left} should have expired after {ttl} s"
        time.sleep(0.01)
    return gone
