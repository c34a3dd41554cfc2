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
    ENDED,
    Begun,
    Completed,
    Execution,
    Failed,
    Joins,
    Missing,
    MissingType,
    Record,
    ResultStore,
    Settles,
    StoreOptions,
    Summary,
    Verdict,
)

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
        examples: how many random histories are compared with the model.
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
        assert record.remaining == 3, "remaining == units"
        assert (record.done, record.failing, record.dead) == (0, 0, 0)
        assert record.ended_at is None, "ended_at is None while running"
        assert (record.failures, record.finished, record.held) == ({}, frozenset(), {})
        assert abs(record.created_at - before) < 300, "created_at: seconds since the epoch"
        assert record.updated_at >= record.created_at

    def test_create_without_units_has_succeeded(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 0)
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "with units == 0 it is SUCCEEDED from the start"
        assert record.ended_at is not None
        assert store.wait("r", LONG) is State.SUCCEEDED

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
            store.create(run, run.encode(), {"0": run.encode()}, number + 1)
            _complete(store, run, "0", run.encode())
            _fail(store, run, "1", failure=run.encode())
            store.hold(run, "1", run.encode())
        for number, run in enumerate(IDS):
            record, own = _read(store, run), run.encode()
            assert (record.run, record.meta, record.remaining) == (run, own, number)
            assert (record.failures, record.held) == ({"1": own}, {"1": own})
            assert (store.page(run, "0"), store.values(run, ["0"])) == (own, [own])
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

    def test_begin_runs_a_job(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        assert store.begin("r", "0", "0", 0, 5) == Begun(Verdict.RUN)

    def test_begin_drops_jobs_of_no_run_and_of_other_generations(self, store: ResultStore) -> None:
        assert _begin(store, "gone", "0") is Verdict.DROP, "no such run: DROP"
        assert store.read("gone") is None
        store.create("r", b"", {}, 2)
        assert _begin(store, "r", "0", generation=1) is Verdict.DROP, "another generation: DROP"
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert _begin(store, "r", "0", generation=0) is Verdict.DROP, "another generation: DROP"
        assert _begin(store, "r", "0", generation=1) is Verdict.RUN

    def test_begin_asks_in_order(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert [_begin(store, "r", "0", limit=1) for _ in range(2)][1] is Verdict.GIVE_UP
        _complete(store, "r", "0")
        store.hold("r", "0", b"held")
        assert _begin(store, "r", "0", limit=1) is Verdict.DONE, "a result in slot: DONE"
        assert _begin(store, "r", "0", generation=7) is Verdict.DROP, "DROP goes before DONE"
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        assert _begin(store, "r", "0") is Verdict.DROP, "CANCELLED: DROP, before DONE"
        assert _begin(store, "r", "1") is Verdict.DROP

    def test_begin_looks_at_the_slot_not_the_address(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        _complete(store, "r", "0.1", slot="0")
        assert store.begin("r", "0.1", "0", 0, 5).verdict is Verdict.DONE
        assert store.begin("r", "0", "0.1", 0, 5).verdict is Verdict.RUN

    def test_begin_lets_a_failed_run_go_on(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _fail(store, "r", "0", final=True)
        assert _read(store, "r").state is State.FAILED
        assert _begin(store, "r", "1") is Verdict.RUN, "a FAILED run goes on"

    def test_begin_gives_up_after_the_limit(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        verdicts = [_begin(store, "r", "0", limit=3) for _ in range(5)]
        assert verdicts == [Verdict.RUN] * 3 + [Verdict.GIVE_UP] * 2, "limit starts, then GIVE_UP"
        assert _begin(store, "r", "1", limit=3) is Verdict.RUN, "starts are counted by address"
        _fail(store, "r", "0", attempt=1)
        verdicts = [_begin(store, "r", "0", limit=1) for _ in range(2)]
        assert verdicts == [Verdict.RUN, Verdict.GIVE_UP], "starts since the last outcome count"
        store.transition("r", [State.RUNNING], State.RUNNING, 0)
        verdict = _begin(store, "r", "0", generation=1, limit=1)
        assert verdict is Verdict.RUN, "starts are counted by generation"

    def test_begin_counts_every_one_of_many_starts(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)
        calls = [_call(_begin, stores[i % 2], "r", "0", limit=5) for i in range(12)]
        assert sorted(_at_once(calls)) == [Verdict.RUN] * 5 + [Verdict.GIVE_UP] * 7

    # --- hold -----------------------------------------------------------------------------

    def test_hold(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        for odd in ODD:
            store.hold("r", "0", odd)
            begun = store.begin("r", "0", "0", 0, 1)
            assert begun == Begun(Verdict.RUN, odd), "what was held; the last call wins"
        assert store.begin("r", "1", "1", 0, 1).held is None
        assert _read(store, "r").held == {"0": ODD[-1]}

    def test_a_held_job_is_never_given_up(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        assert [_begin(store, "r", "0", limit=1) for _ in range(2)][1] is Verdict.GIVE_UP
        store.hold("r", "0", b"held")
        begun = [store.begin("r", "0", "0", 0, 1) for _ in range(4)]
        assert begun == [Begun(Verdict.RUN, b"held")] * 4

    def test_held_until_the_job_completes(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        store.hold("r", "0", b"zero")
        store.hold("r", "1", b"one")
        _fail(store, "r", "0", final=True)
        store.transition("r", [State.FAILED], State.RUNNING, 0)
        begun = store.begin("r", "0", "0", 1, 5)
        assert begun.held == b"zero", "whatever the generation it was put away in"
        _complete(store, "r", "0", generation=1)
        assert _read(store, "r").held == {"1": b"one"}, "what was held is dropped"

    def test_hold_makes_no_run(self, store: ResultStore) -> None:
        store.hold("gone", "0", b"held")
        assert store.read("gone") is None
        store.create("gone", b"", {}, 1)
        assert store.begin("gone", "0", "0", 0, 5) == Begun(Verdict.RUN)

    # --- complete: the result ---------------------------------------------------------------

    def test_complete_counts(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _complete(store, "r", "0") == Completed(2, fresh=True)
        assert _complete(store, "r", "1", job=False) == Completed(1, fresh=True)
        record = _read(store, "r")
        assert (record.remaining, record.done) == (1, 1), "done rises by one if job"
        assert record.state is State.RUNNING
        done = _complete(store, "r", "2")
        assert done == Completed(0, fresh=True, succeeded=True)
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "at remaining == 0 a RUNNING run is SUCCEEDED"
        assert record.ended_at is not None
        assert record.updated_at >= record.created_at

    def test_the_first_value_wins(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        assert _complete(store, "r", "0", b"first").fresh
        again = _complete(store, "r", "0", b"second")
        assert again == Completed(1, fresh=False), "the first value of a slot wins"
        assert store.values("r", ["0"]) == [b"first"]
        assert (_read(store, "r").remaining, _read(store, "r").done) == (1, 1)

    def test_complete_of_no_run(self, store: ResultStore) -> None:
        assert _complete(store, "gone", "0") == Completed(-1), "-1 when there is no such run"
        assert store.read("gone") is None
        store.create("gone", b"", {}, 1)
        assert store.values("gone", ["0"]) == [Missing]

    def test_finished_work_is_never_thrown_away(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert _complete(store, "r", "0", b"0", generation=0).fresh, "from every generation"
        assert _complete(store, "r", "1", b"1", generation=7).fresh, "from every generation"
        _fail(store, "r", "4", generation=1, final=True)
        assert _complete(store, "r", "2", b"2", generation=1).fresh, "accepted in every state"
        assert _read(store, "r").state is State.FAILED
        store.transition("r", [State.FAILED], State.CANCELLED, 1)
        assert _complete(store, "r", "3", b"3", generation=1).fresh, "accepted in every state"
        last = _complete(store, "r", "4", b"4", generation=1)
        assert last == Completed(0, fresh=True), "only a RUNNING run becomes SUCCEEDED"
        assert _read(store, "r").state is State.CANCELLED
        assert store.values("r", list("01234")) == [b"0", b"1", b"2", b"3", b"4"]

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
        store.create("r", b"", {}, 1)
        _fail(store, "r", "0", final=True)
        assert _complete(store, "r", "0").succeeded, "RUNNING, and at remaining == 0 SUCCEEDED"
        assert _read(store, "r").state is State.SUCCEEDED

    def test_a_dead_job_may_live_on(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        _fail(store, "r", "0", attempt=1, final=True)
        _fail(store, "r", "0", attempt=2, final=False)
        assert _counts(store, "r") == (0, 1, 0), "a job is counted once, as its last failure says"
        assert _complete(store, "r", "0").succeeded, "no dead job is left: RUNNING, then SUCCEEDED"

    def test_every_result_of_many_writers_counts_once(self, store: ResultStore) -> None:
        stores, units = self._two(store), 40
        store.create("r", b"", {}, units)

        def work(number: int) -> list[Completed]:
            slots = [str((number * 7 + i) % units) for i in range(units)]
            return [_complete(stores[number % 2], "r", slot, b"%d" % number) for slot in slots]

        answers = [done for each in _at_once([_call(work, i) for i in range(4)]) for done in each]
        fresh = [done.remaining for done in answers if done.fresh]
        assert sorted(fresh) == list(range(units)), "remaining falls by one for each fresh value"
        assert sum(done.succeeded for done in answers) == 1, "one call ends the run"
        record = _read(store, "r")
        assert (record.remaining, record.done, record.state) == (0, units, State.SUCCEEDED)

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
        store.create("r", b"", {}, 1)
        assert _complete(store, "r", "0", token="me").succeeded
        again = _complete(store, "r", "0", token="me")
        assert (again.remaining, again.succeeded) == (0, True), "told again that it succeeded"
        assert not _complete(store, "r", "0", token="other").succeeded

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
        step = [Settles("0", "0", 1)]
        assert _fail(store, "gone", "0", final=True, settles=step) == Failed()
        assert store.read("gone") is None
        store.create("r", b"", {}, 1)
        for generation in (1, -1):
            failed = _fail(store, "r", "0", generation=generation, final=True, settles=step)
            assert failed == Failed(), "nothing happens when it is of another generation"
        record = _read(store, "r")
        assert (record.state, record.failures) == (State.RUNNING, {})

    def test_the_first_dead_job_fails_the_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert _fail(store, "r", "0", final=True) == Failed(recorded=True, died=True)
        record = _read(store, "r")
        assert (record.state, record.ended_at is None) == (State.FAILED, False)
        again = _fail(store, "r", "1", final=True)
        assert again == Failed(recorded=True), "died: this call took the run from RUNNING to FAILED"
        assert _counts(store, "r") == (0, 0, 2)

    def test_a_death_does_not_fail_a_cancelled_run(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        assert _fail(store, "r", "0", final=True) == Failed(recorded=True)
        assert _read(store, "r").state is State.CANCELLED
        assert _counts(store, "r") == (0, 0, 1)

    def test_a_late_failure_changes_nothing_for_the_job(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        _complete(store, "r", "0", b"value")
        late = _fail(store, "r", "0", attempt=1, final=True, failure=b"late")
        assert late == Failed(recorded=True), "a job that has a result does not die"
        record = _read(store, "r")
        assert _counts(store, "r") == (1, 0, 0), "a job that has a result is not counted as failing"
        assert record.state is State.RUNNING
        assert (record.failures, record.finished) == ({"0": b"late"}, frozenset("0"))
        assert _fail(store, "r", "0", attempt=2).recorded
        assert _counts(store, "r") == (1, 0, 0)

    def test_one_of_many_deaths_fails_the_run(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 8)
        calls = [_call(_fail, stores[i % 2], "r", str(i), final=True) for i in range(8)]
        answers = _at_once(calls)
        assert sum(failed.died for failed in answers) == 1, "the first dead job, and only it"
        assert _counts(store, "r") == (0, 0, 8)

    def test_a_token_repeats_the_death(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 2)
        step = [Settles("0", "0", 1)]
        first = _fail(store, "r", "0", final=True, token="me", settles=step)
        assert (first.died, first.reports) == (True, ("0",))
        again = _fail(store, "r", "0", final=True, token="me", settles=step)
        assert (again.died, again.reports) == (True, ("0",)), "told again that it died"
        other = _fail(store, "r", "0", final=True, token="other", settles=step)
        assert other == Failed(), "another execution is told nothing"

    # --- settling ---------------------------------------------------------------------------

    def test_a_step_reports_when_all_have_settled(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        assert _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 3)]).reports == ()
        assert _fail(store, "r", "1.0", attempt=2, settles=[Settles("1", "1.0", 3)]).reports == ()
        assert _complete(store, "r", "1.0", settles=Settles("1", "1.0", 3)).report == "", (
            "a member is counted once, whether it completed or failed"
        )
        assert _complete(store, "r", "1.1", settles=Settles("1", "1.1", 3)).report == ""
        assert _complete(store, "r", "1.2", settles=Settles("1", "1.2", 3)).report == "1", (
            "width members have settled and one has failed"
        )
        late = _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 3)])
        assert late.reports == (), "once for each step and generation"

    def test_a_failure_can_be_the_last_to_settle(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        _complete(store, "r", "1.0", settles=Settles("1", "1.0", 2))
        assert _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 2)]).reports == ("1",)

    def test_a_step_without_failure_reports_nothing(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        for slot in ("1.0", "1.1"):
            assert _complete(store, "r", slot, settles=Settles("1", slot, 2)).report == ""

    def test_a_quiet_failure_settles_without_a_sound(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        quiet = Settles("1", "1.0", 2, loud=False)
        inner = _fail(store, "r", "1.0.0", settles=[Settles("1.0.0", "1.0.0", 1), quiet])
        assert inner.reports == ("1.0.0",), "the inner step reports, the outer one does not"
        done = _complete(store, "r", "1.1", settles=Settles("1", "1.1", 2))
        assert done.report == "", "no member has failed loudly"

    def test_a_quiet_failure_can_settle_a_loud_step(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        quiet = Settles("1", "1.1", 2, loud=False)
        failed = _fail(store, "r", "1.1.0", settles=[Settles("1.1.0", "1.1.0", 1), quiet])
        assert failed.reports == ("1.1.0", "1")

    def test_a_late_loud_failure_still_reports(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        for slot in ("1.0", "1.1"):
            _complete(store, "r", slot, settles=Settles("1", slot, 2))
        late = _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        assert late.reports == ("1",), "failed from now on, even when the retry completed before"

    def test_other_generations_do_not_settle(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        late = _complete(store, "r", "1.1", generation=7, settles=Settles("1", "1.1", 2))
        assert (late.fresh, late.report) == (True, ""), "only if generation is the run's"
        again = _complete(store, "r", "1.1", settles=Settles("1", "1.1", 2))
        assert (again.fresh, again.report) == (False, "1"), "settles without being fresh"

    def test_each_generation_reports_for_itself(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 4)
        for generation in range(3):
            step = [Settles("1", "1.0", 2)]
            assert _fail(store, "r", "1.0", generation=generation, settles=step).reports == ()
            step = [Settles("1", "1.1", 2)]
            assert _fail(store, "r", "1.1", generation=generation, settles=step).reports == ("1",)
            assert store.transition("r", [State.RUNNING], State.RUNNING, generation)

    def test_a_token_repeats_the_report(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        step = Settles("1", "1.1", 2)
        _fail(store, "r", "1.0", settles=[Settles("1", "1.0", 2)])
        assert _complete(store, "r", "1.1", token="me", settles=step).report == "1"
        assert _complete(store, "r", "1.1", token="me", settles=step).report == "1", "told again"
        assert _complete(store, "r", "1.1", token="other", settles=step).report == ""

    def test_each_report_is_returned_once(self, store: ResultStore) -> None:
        stores, width = self._two(store), 6
        for number in range(5):
            run = f"r{number}"
            store.create(run, b"", {}, width + 1)

            def work(member: int, run: str = run) -> list[str]:
                own, at = stores[member % 2], f"1.{member}"
                step = Settles("1", at, width)
                failed = _fail(own, run, at, settles=[step]) if member % 3 else Failed()
                return [*failed.reports, _complete(own, run, at, settles=step).report]

            answers = _at_once([_call(work, member) for member in range(width)])
            reports = [step for each in answers for step in each if step]
            assert reports == ["1"], "each report is returned once, whoever settles last"

    def test_a_step_is_settled_once(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        first = _complete(store, "r", "1.0", settles=Settles("1", "1.0", 2))
        assert first.settled == ""
        last = _fail(store, "r", "1.1", settles=[Settles("1", "1.1", 2), Settles("0", "0", 9)])
        assert last.settled == ("1",), "the last of width members, failed or not"
        again = _complete(store, "r", "1.1", settles=Settles("1", "1.1", 2))
        assert (again.fresh, again.settled) == (True, "")
        quiet = _complete(store, "r", "2.0", token="me", settles=Settles("2", "2.0", 1))
        assert (quiet.settled, quiet.report) == ("2", ""), "settled without a failure"
        step = Settles("2", "2.0", 1)
        assert _complete(store, "r", "2.0", token="me", settles=step).settled == "2", "told again"
        assert _complete(store, "r", "2.0", token="other", settles=step).settled == ""

    def test_each_step_is_settled_once_by_many(self, store: ResultStore) -> None:
        stores, width = self._two(store), 16
        store.create("r", b"", {}, width)

        def work(member: int) -> str:
            step = Settles("1", f"1.{member}", width)
            return _complete(stores[member % 2], "r", f"1.{member}", settles=step).settled

        answers = _at_once([_call(work, member) for member in range(width)])
        assert sorted(answers)[-2:] == ["", "1"], "one call settles the last member"

    # --- barriers -----------------------------------------------------------------------------

    def test_a_barrier_opens_once(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 6)
        joins = Joins("page 3", 3)
        assert not _complete(store, "r", "1.0", joins=joins).joined
        assert not _complete(store, "r", "1.0", joins=joins).joined, "each slot counts once"
        assert not _complete(store, "r", "2.0", joins=Joins("page 4", 2)).joined
        assert not _complete(store, "r", "1.1", joins=joins).joined
        assert _complete(store, "r", "1.2", joins=joins).joined, "the call that makes it width"
        assert _complete(store, "r", "1.2", joins=joins).joined, "and later ones of the address"
        assert not _complete(store, "r", "1.1", joins=joins).joined

    def test_a_barrier_belongs_to_its_generation(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 6)
        joins = Joins("b", 2)
        _complete(store, "r", "1.0", joins=joins)
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        late = _complete(store, "r", "1.1", joins=joins, generation=0)
        assert (late.fresh, late.joined) == (True, False), "only if generation is the run's"
        done = _complete(store, "r", "1.0", joins=joins, generation=1)
        assert (done.fresh, done.joined) == (False, False), "barriers are forgotten"
        done = _complete(store, "r", "1.1", joins=joins, generation=1)
        assert (done.fresh, done.joined) == (False, True), "counts slots that have a value already"

    def test_one_of_many_opens_a_barrier(self, store: ResultStore) -> None:
        stores, width = self._two(store), 16
        store.create("r", b"", {}, width)
        joins = Joins("b", width)
        calls = [
            _call(_complete, stores[i % 2], "r", f"1.{i}", joins=joins)
            for i in range(width)
            for _ in "ab"
        ]
        joined = _at_once(calls)
        assert sum(done.joined and done.fresh for done in joined) <= 1
        assert 1 <= sum(done.joined for done in joined) <= 2, "one address opens it"
        again = [_complete(store, "r", f"1.{i}", joins=joins).joined for i in range(width)]
        assert sum(again) == 1

    # --- counters ------------------------------------------------------------------------------

    def test_take(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 3)
        assert [store.take("r", "1", "a", after, 0) for after in (-1, 0, 1)] == [0, 1, 2]
        assert store.take("r", "1", "b", -1, 0) == 3, "each number is taken once"
        assert store.take("r", "1", "a", 1, 0) == 2, "a call that is repeated"
        assert store.take("r", "1", "b", -1, 0) == 3, "a call that is repeated"
        assert store.take("r", "1", "a", 0, 0) == -1, "a call that is older than that"
        assert store.take("r", "1", "a", 7, 0) == -1
        assert store.take("r", "2", "a", -1, 0) == 0, "each key counts for itself"
        assert store.take("r", "1", "a", 2, 0) == 4
        assert store.take("r", "1", "a", -1, 0) == -1
        assert store.take("gone", "1", "a", -1, 0) == -1
        assert store.take("r", "1", "a", 4, 1) == -1, "another generation"
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        assert store.take("r", "1", "a", -1, 1) == 0, "counters are forgotten"
        store.transition("r", [State.RUNNING], State.CANCELLED, 1)
        assert store.take("r", "1", "a", 0, 1) == -1, "as begin says DROP"

    def test_many_take_each_number_once(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)

        def work(lane: int) -> list[int]:
            own, taken = stores[lane % 2], [-1]
            for _ in range(5):
                taken.append(own.take("r", "1", str(lane), taken[-1], 0))
            return taken[1:]

        taken = [number for each in _at_once([_call(work, i) for i in range(6)]) for number in each]
        assert sorted(taken) == list(range(30))

    # --- data -----------------------------------------------------------------------------------

    def test_data(self, store: ResultStore) -> None:
        assert store.data("gone") is None
        store.create("none", b"", {}, 1)
        assert store.data("none") == {}
        odd = {f"k{number}": value for number, value in enumerate(ODD)}
        odd |= {"": b"empty", "ü: \u2713\n": b"odd", "K0": b"case", "k0 ": b"blank"}
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
        assert store.executions("gone") == {}
        store.create("r", b"", {}, 5)
        assert store.executions("r") == {}
        before = _read(store, "r").created_at
        for address in ("0", "1.10", "2", "2"):
            _begin(store, "r", address)
        found = store.executions("r")
        assert {at: each.starts for at, each in found.items()} == {"0": 1, "1.10": 1, "2": 2}
        assert all(before <= (each.started_at or 0) < before + 300 for each in found.values())
        assert all(each.info is None for each in found.values())
        _complete(store, "r", "0", info=b"\xff info")
        _complete(store, "r", "0", info=b"other")
        _complete(store, "r", "3")
        _fail(store, "r", "2")
        store.hold("r", "1.10", b"held")
        ran = {at: each for at, each in store.executions("r").items() if each != Execution()}
        assert ran == {"0": Execution(info=b"\xff info"), "3": Execution(info=b"")}, (
            "info is what complete was given with the result; an outcome forgets the starts"
        )

    def test_executions_of_an_older_generation(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 5)
        _begin(store, "r", "0")
        _begin(store, "r", "1")
        _complete(store, "r", "0", info=b"info")
        assert store.transition("r", [State.RUNNING], State.RUNNING, 0)
        ran = {at: each for at, each in store.executions("r").items() if each != Execution()}
        assert ran == {"0": Execution(info=b"info")}, "starts are forgotten, what completed is not"

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
        store.create("r", b"", {}, 1)
        before = _read(store, "r")
        others = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
        assert not store.transition("r", others, State.RUNNING, 0), "not one of the sources"
        assert not store.transition("r", [], State.CANCELLED, 0)
        assert not store.transition("r", [State.RUNNING], State.CANCELLED, 1), "another generation"
        assert _read(store, "r") == before, "nothing happens where it does not move"

    @pytest.mark.parametrize("target", [State.CANCELLED, State.FAILED])
    def test_transition_sets(self, store: ResultStore, target: State) -> None:
        store.create("r", b"", {}, 1)
        assert store.transition("r", iter([State.FAILED, State.RUNNING]), target, 0)
        record = _read(store, "r")
        assert (record.state, record.generation, record.remaining) == (target, 0, 1)
        assert record.ended_at is not None
        assert store.peek("r") == (target, 0)

    def test_resume_clears_failures_and_keeps_results(self, store: ResultStore) -> None:
        store.create("r", b"meta", {"0": b"page"}, 4)
        _complete(store, "r", "0", b"value")
        _fail(store, "r", "0")
        _fail(store, "r", "1")
        _fail(store, "r", "2", attempt=7, final=True)
        store.hold("r", "2", b"held")
        assert store.transition("r", [State.FAILED], State.RUNNING, 0)
        record = _read(store, "r")
        assert (record.state, record.generation) == (State.RUNNING, 1), "the generation rises"
        assert record.ended_at is None
        assert (record.failures, record.finished) == ({}, frozenset()), "failures are forgotten"
        assert _counts(store, "r") == (1, 0, 0)
        assert (record.meta, record.remaining, record.held) == (b"meta", 3, {"2": b"held"})
        assert (store.page("r", "0"), store.values("r", ["0"])) == (b"page", [b"value"])
        assert _begin(store, "r", "0", generation=1) is Verdict.DONE
        again = _fail(store, "r", "2", attempt=1, final=True, generation=1)
        assert again == Failed(recorded=True, died=True), "attempts count afresh"

    def test_resume_of_a_run_with_nothing_remaining(self, store: ResultStore) -> None:
        store.create("r", b"", {}, 1)
        store.transition("r", [State.RUNNING], State.CANCELLED, 0)
        _complete(store, "r", "0")
        assert store.transition("r", [State.CANCELLED], State.RUNNING, 0)
        record = _read(store, "r")
        assert record.state is State.SUCCEEDED, "nothing remaining: SUCCEEDED instead"
        assert (record.generation, record.ended_at is None) == (1, False)
        assert store.wait("r", LONG) is State.SUCCEEDED

    def test_one_of_many_transitions_moves(self, store: ResultStore) -> None:
        stores = self._two(store)
        store.create("r", b"", {}, 1)
        for generation in range(3):
            args = ("r", [State.RUNNING], State.RUNNING, generation)
            moved = _at_once([_call(stores[i % 2].transition, *args) for i in range(6)])
            assert sum(moved) == 1, "compare and set: one moves it"
            assert store.peek("r") == (State.RUNNING, generation + 1)

    # --- read, peek, delete ------------------------------------------------------------------

    def test_read_and_peek_of_no_run(self, store: ResultStore) -> None:
        assert store.read("gone") is None
        assert store.peek("gone") is None

    def test_read_is_consistent_while_others_write(self, store: ResultStore) -> None:
        reader, writer = self._two(store)
        units = 60
        store.create("r", b"", {}, units)

        def write() -> None:
            for number in range(units):
                _fail(writer, "r", str(number), final=not number % 2)
                _complete(writer, "r", str(number))

        def read() -> list[Record]:
            seen: list[Record] = []
            while not seen or seen[-1].remaining:
                seen.append(_read(reader, "r"))
            return seen

        _, seen = _at_once([write, read])
        for record in seen:
            assert record.remaining + record.done == units, "consistent in itself"
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
        store.create("r", b"old", {"0": b"page"}, 3, name="old")
        _complete(store, "r", "0")
        _fail(store, "r", "1", attempt=5, final=True, settles=[Settles("1", "1", 2)])
        store.hold("r", "2", b"held")
        _begin(store, "r", "3")
        assert store.delete("r") is True, "returns whether there was one"
        assert store.delete("r") is False
        assert (store.read("r"), store.peek("r"), _scan(store)) == (None, None, [])
        assert (store.page("r", "0"), store.values("r", ["0"])) == (Missing, [Missing])
        assert _begin(store, "r", "0") is Verdict.DROP
        assert not store.transition("r", list(State), State.RUNNING, 0)
        assert _complete(store, "r", "0") == Completed(-1)
        assert store.delete("r") is False
        self._assert_clean(store, "r")

    def _assert_clean(self, store: ResultStore, run: str) -> None:
        """A new run of an id that was used before has nothing of the old one."""
        store.create(run, b"new", {}, 2, name="new")
        record = _read(store, run)
        assert (record.meta, record.remaining, record.failures, record.held) == (b"new", 2, {}, {})
        assert (store.page(run, "0"), store.values(run, ["0"])) == (Missing, [Missing])
        assert _begin(store, run, "3", limit=1) is Verdict.RUN
        failed = _fail(store, run, "1", attempt=1, settles=[Settles("1", "1", 2)])
        assert failed == Failed(recorded=True)
        done = _complete(store, run, "2", settles=Settles("1", "2", 2))
        assert (done.fresh, done.report) == (True, "1")

    # --- scan -------------------------------------------------------------------------------

    def test_scan_tells_of_each_run(self, store: ResultStore) -> None:
        assert store.scan() == ([], "")
        given = ["x", "", "y z", "ü"]
        store.create("a", b"", {}, 9, jobs=7, name="näme: \u2713\n", tags=given)
        store.create("b", b"", {}, 5, jobs=4)
        store.create("c", b"", {}, 0)
        _complete(store, "b", "0", job=False)
        _fail(store, "b", "1")
        _fail(store, "b", "2", final=True)
        found = {summary.run: summary for summary in _scan(store)}
        for run, jobs, name, tags in (
            ("a", 7, "näme: \u2713\n", tuple(given)),
            ("b", 4, None, ()),
            ("c", 0, None, ()),
        ):
            assert found.pop(run) == _summary(_read(store, run), jobs, name, tags)
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

    def test_a_page_that_is_added_is_there(self, store: ResultStore) -> None:
        store.create("r", b"", {"0": b"first"}, 1)
        for page in (b"one", b"two"):
            added = store.add_page("r", "more", page)
            assert store.page("r", "more") == (page if added else Missing), "as it has said"
        assert store.page("r", "0") == b"first"
        store.delete("r")
        assert store.add_page("r", "more", b"page") is False, "there is no such run"
        assert store.page("r", "more") is Missing

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
        events: dict[str, Callable[[ResultStore, str], Any]] = {
            "create": lambda store, run: store.create(run, b"new", {"0": b"page"}, 3),
            "begin": lambda store, run: _begin(store, run, "3"),
            "complete": lambda store, run: _complete(store, run, "0"),
            "fail": lambda store, run: _fail(store, run, "1", settles=[Settles("1", "1", 2)]),
            "hold": lambda store, run: store.hold(run, "2", b"held"),
            "take": lambda store, run: store.take(run, "1", "lane", -1, 0),
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
        with self._opened(ttl=3600, result_ttl=self.ttl) as store:
            ended = {}
            for run in ("empty", "SUCCEEDED", "FAILED", "CANCELLED"):
                store.create(run, b"", {}, int(run != "empty"))
                ended[run] = time.monotonic()
            _complete(store, "SUCCEEDED", "0")
            _fail(store, "FAILED", "0", final=True)
            store.transition("CANCELLED", [State.RUNNING], State.CANCELLED, 0)
            for run, gone in _gone(store, ended, self.ttl).items():
                assert gone - ended[run] > self.ttl * 0.9, f"{run} is kept for result_ttl"
            assert _scan(store) == []
            assert store.prune(limit=1) <= 1
            store.prune()
            assert store.prune() == 0, "what has expired is deleted"

    def test_a_run_that_runs_again_is_kept_for_ttl(self) -> None:
        with self._opened(ttl=self.ttl * 3, result_ttl=self.ttl) as store:
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
        with self._opened(ttl=self.ttl, result_ttl=self.ttl * 3) as store:
            last = {}
            for run in ("begin", "complete", "fail", "hold"):
                store.create(run, b"", {}, 3)
                _fail(store, run, "0", final=True)
                last[run] = time.monotonic()
            _begin(store, "begin", "1")
            _complete(store, "complete", "1")
            _fail(store, "fail", "1")
            store.hold("hold", "1", b"")
            kept = store.options.result_ttl
            for run, gone in _gone(store, last, kept).items():
                assert gone - last[run] > kept * 0.9, f"{run} in a FAILED run keeps to result_ttl"

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
        for name, call in _primitives(store).items():
            with pytest.raises(StoreUnavailable):
                call()
                pytest.fail(f"{name} raises StoreUnavailable when the server cannot be reached")
        spent = time.monotonic() - started
        assert spent < LONG, f"primitives do not retry: a refused connection took {spent:.1f} s"
        assert store.check() == []

    # --- the model ----------------------------------------------------------------------------

    def test_random_histories_agree_with_the_model(self, store: ResultStore) -> None:
        machine = _machine(store)
        settings = hypothesis.settings(
            max_examples=self.examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)


# --- the model -------------------------------------------------------------------------------


@dataclass
class _Model:
    """One run, as the docstrings of `ResultStore` describe it; no thought of speed or processes."""

    meta: bytes
    remaining: int
    state: State = State.RUNNING
    generation: int = 0
    done: int = 0
    results: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, tuple[int, bool, bytes]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    held: dict[str, bytes] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    settled: dict[str, set[str]] = field(default_factory=dict)
    loud: set[str] = field(default_factory=set)
    reported: dict[str, str] = field(default_factory=dict)  # step -> the token that was told
    full: dict[str, str] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    opener: str = ""
    data: dict[str, bytes] = field(default_factory=dict)
    infos: dict[str, bytes] = field(default_factory=dict)
    ended_by: str = ""

    def count(self, *, final: bool) -> int:
        unfinished = [f for at, f in self.failures.items() if at not in self.finished]
        return sum(failure[1] is final for failure in unfinished)

    def begin(self, job: _Job, generation: int, limit: int) -> Begun:
        if self.state is State.CANCELLED or generation != self.generation:
            return Begun(Verdict.DROP)
        if job.slot in self.results:
            return Begun(Verdict.DONE)
        if job.address in self.held:
            return Begun(Verdict.RUN, self.held[job.address])
        if self.starts.get(job.address, 0) == limit:
            return Begun(Verdict.GIVE_UP)
        self.starts[job.address] = self.starts.get(job.address, 0) + 1
        return Begun(Verdict.RUN)

    def complete(self, job: _Job, value: bytes, generation: int, token: str) -> Completed:
        fresh = job.slot not in self.results
        if fresh:
            self.record(job, value)
            self.data["last"] = self.data[job.address] = value
            self.infos[job.address] = value
            self.data.pop("first", None)
            if self.remaining == 0 and self.state is State.RUNNING:
                self.state, self.ended_by = State.SUCCEEDED, token
        report = settled = ""
        joined = False
        if generation == self.generation:
            if job.completes:
                self.settle(job.completes)
                report = job.completes.step if self.tells(job.completes, token) else ""
                settled = job.completes.step if self.fills(job.completes, token) else ""
            joined = self.join(job)
        succeeded = self.state is State.SUCCEEDED and self.ended_by == token
        return Completed(self.remaining, fresh, succeeded, report, settled, joined)

    def join(self, job: _Job) -> bool:
        self.joined.add(job.slot)
        if len(self.joined) >= _JOINS.width and not self.opener:
            self.opener = job.address
        return self.opener == job.address

    def fills(self, settles: Settles, token: str) -> bool:
        if len(self.settled[settles.step]) < settles.width:
            return False
        return self.full.setdefault(settles.step, token) == token

    def record(self, job: _Job, value: bytes) -> None:
        self.results[job.slot] = value
        self.remaining -= 1
        self.done += job.counts
        self.held.pop(job.address, None)
        self.starts.pop(job.address, None)
        if job.address in self.failures:
            self.finished.add(job.address)
            if self.state is State.FAILED and not self.count(final=True):
                self.state = State.RUNNING

    def fail(
        self, job: _Job, failure: bytes, attempt: int, final: bool, generation: int, token: str
    ) -> Failed:
        if generation != self.generation:
            return Failed()
        news = (attempt, final) > self.failures.get(job.address, (0, False))[:2]
        if news:
            self.failures[job.address] = attempt, final, failure
            self.starts.pop(job.address, None)
            if job.slot in self.results:
                self.finished.add(job.address)
            elif final and self.state is State.RUNNING:
                self.state, self.ended_by = State.FAILED, token
        for settles in job.fails:
            self.settle(settles)
            self.loud |= {settles.step} if settles.loud else set()
        died = self.state is State.FAILED and self.ended_by == token
        reports = [settles.step for settles in job.fails if self.tells(settles, token)]
        full = [settles.step for settles in job.fails if self.fills(settles, token)]
        return Failed(news, died, tuple(reports), tuple(full))

    def settle(self, settles: Settles) -> None:
        self.settled.setdefault(settles.step, set()).add(settles.member)

    def tells(self, settles: Settles, token: str) -> bool:
        if len(self.settled[settles.step]) < settles.width or settles.step not in self.loud:
            return False
        return self.reported.setdefault(settles.step, token) == token

    def transition(self, sources: Iterable[State], target: State, generation: int) -> bool:
        if generation != self.generation or self.state not in sources:
            return False
        self.state, self.ended_by = target, ""
        if target is State.RUNNING:
            self.generation += 1
            for forgotten in (self.failures, self.finished, self.starts, self.settled):
                forgotten.clear()
            self.opener = ""
            for marks in (self.loud, self.reported, self.full, self.joined):
                marks.clear()
            self.state = State.RUNNING if self.remaining else State.SUCCEEDED
        return True

    def record_of(self, run: str, like: Record) -> Record:
        """This run as `ResultStore.read` gives it, with the times of *like*."""
        return Record(
            run=run,
            meta=self.meta,
            state=self.state,
            generation=self.generation,
            remaining=self.remaining,
            done=self.done,
            failing=self.count(final=False),
            dead=self.count(final=True),
            created_at=like.created_at,
            updated_at=like.updated_at,
            ended_at=like.ended_at if self.state in ENDED else None,
            failures={at: failure for at, (_, _, failure) in self.failures.items()},
            finished=frozenset(self.finished),
            held=dict(self.held),
        )


@dataclass(frozen=True)
class _Job:
    """A job of the plan that the model plays: a, then b beside (c, d), then what closes those."""

    address: str
    slot: str
    completes: Settles | None = None
    fails: tuple[Settles, ...] = ()
    counts: bool = True


def _loud(step: str) -> Settles:
    return Settles(step, step, 1)


_JOINS = Joins("barrier", 3)
_BRANCH = Settles("1", "1.1", 2, loud=False)
_JOBS = [
    _Job("0", "0", None, (_loud("0"),)),
    _Job("1.0", "1.0", Settles("1", "1.0", 2), (Settles("1", "1.0", 2),)),
    _Job("1.1.0", "1.1.0", None, (_loud("1.1.0"), _BRANCH)),
    _Job("1.1.1", "1.1", Settles("1", "1.1", 2), (_loud("1.1.1"), _BRANCH)),
    _Job("1", "1!", counts=False),
]
_RUNS = ["a", "a:b"]
_LIMIT = 2


def _machine(store: ResultStore) -> type[hypothesis.stateful.RuleBasedStateMachine]:
    """A state machine that does the same to *store* and to models, and compares their answers."""
    # Mostly one run, the job that something was last done to (None), and the generation that the
    # run is in: what stores get wrong are sequences of events for one job.
    runs = st.sampled_from([*_RUNS[:1] * 4, *_RUNS])
    jobs = st.sampled_from([*[None] * 5, *_JOBS])
    ages = st.sampled_from([*[0] * 8, -1, 1])
    attempts = st.integers(1, 3)
    values = st.sampled_from([b"null", b"", b"\xff\x00", b"1"])

    class Machine(hypothesis.stateful.RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.models: dict[str, _Model] = {}
            self.calls: list[Callable[[], None]] = []
            self.tokens = 0
            self.last = _JOBS[0]

        def teardown(self) -> None:
            try:
                assert {summary.run for summary in _scan(store, 1)} == set(self.models)
            finally:
                for run in _RUNS:
                    store.delete(run)

        def generation(self, run: str, age: int) -> int:
            return (self.models[run].generation if run in self.models else 0) + age

        def token(self) -> str:
            self.tokens += 1
            return f"token {self.tokens}"

        def job(self, job: _Job | None) -> _Job:
            self.last = job or self.last
            return self.last

        def does(self, call: Callable[[], None]) -> None:
            call()
            self.calls = [*self.calls[-5:], call]

        @hypothesis.stateful.initialize()
        def start(self) -> None:
            self.create(_RUNS[0])

        @hypothesis.stateful.rule(run=runs)
        def create(self, run: str) -> None:
            if run in self.models:
                with pytest.raises(AlreadyEngaged):
                    store.create(run, b"other", {}, 0)
                return
            data = {"first": b"1"}
            store.create(run, b"meta", {"0": b"page"}, len(_JOBS), name=run, data=data)
            self.models[run] = _Model(b"meta", len(_JOBS), data=data)

        @hypothesis.stateful.rule(run=runs, job=jobs, age=ages)
        def begin(self, run: str, job: _Job | None, age: int) -> None:
            job, generation = self.job(job), self.generation(run, age)
            answer = store.begin(run, job.address, job.slot, generation, _LIMIT)
            model = self.models.get(run)
            expected = model.begin(job, generation, _LIMIT) if model else Begun(Verdict.DROP)
            assert answer == expected, f"begin: {answer}, the model says {expected}"

        @hypothesis.stateful.rule(run=runs, job=jobs, value=values, age=ages)
        def complete(self, run: str, job: _Job | None, value: bytes, age: int) -> None:
            at, generation, token = self.job(job), self.generation(run, age), self.token()

            def call() -> None:
                answer = store.complete(
                    run,
                    at.address,
                    at.slot,
                    value,
                    generation=generation,
                    token=token,
                    job=at.counts,
                    settles=at.completes,
                    joins=_JOINS,
                    changes={"last": value, at.address: value, "first": None},
                    info=value,
                )
                model = self.models.get(run)
                expected = Completed(-1)
                if model:
                    expected = model.complete(at, value, generation, token)
                assert answer == expected, f"complete: {answer}, the model says {expected}"

            self.does(call)

        @hypothesis.stateful.rule(
            run=runs, job=jobs, value=values, attempt=attempts, final=st.booleans(), age=ages
        )
        def fail(
            self, run: str, job: _Job | None, value: bytes, attempt: int, final: bool, age: int
        ) -> None:
            at, generation, token = self.job(job), self.generation(run, age), self.token()

            def call() -> None:
                answer = store.fail(
                    run,
                    at.address,
                    at.slot,
                    value,
                    attempt=attempt,
                    final=final,
                    generation=generation,
                    token=token,
                    settles=at.fails,
                )
                model = self.models.get(run)
                expected = Failed()
                if model:
                    expected = model.fail(at, value, attempt, final, generation, token)
                assert answer == expected, f"fail: {answer}, the model says {expected}"

            self.does(call)

        @hypothesis.stateful.rule(last=st.integers(1, 5))
        def never_saw_the_answer(self, last: int) -> None:
            if len(self.calls) >= last:
                self.calls[-last]()

        @hypothesis.stateful.rule(run=runs, job=jobs, value=values)
        def hold(self, run: str, job: _Job | None, value: bytes) -> None:
            address = self.job(job).address
            store.hold(run, address, value)
            if model := self.models.get(run):
                model.held[address] = value
                model.starts.pop(address, None)

        @hypothesis.stateful.rule(
            run=runs,
            sources=st.sets(st.sampled_from(State)),
            to=st.sampled_from([State.RUNNING, State.CANCELLED]),
            age=ages,
        )
        def transition(self, run: str, sources: set[State], to: State, age: int) -> None:
            generation = self.generation(run, age)
            moved = store.transition(run, sources, to, generation)
            model = self.models.get(run)
            expected = model.transition(sources, to, generation) if model else False
            assert moved is expected, f"transition: {moved}, the model says {expected}"

        @hypothesis.stateful.rule(run=runs, sure=st.integers(0, 4))
        def delete(self, run: str, sure: int) -> None:
            if sure:
                return  # a history that is deleted all the time is a short one
            existed = self.models.pop(run, None) is not None
            assert store.delete(run) is existed

        @hypothesis.stateful.invariant()
        def agrees(self) -> None:
            slots = [job.slot for job in _JOBS]
            for run in _RUNS:
                model, record = self.models.get(run), store.read(run)
                if model is None or record is None:
                    assert (model, record) == (None, None)
                    continue
                assert record == model.record_of(run, record)
                assert (record.ended_at is None) == (record.state is State.RUNNING)
                results: list[bytes | MissingType] = [model.results.get(s, Missing) for s in slots]
                assert store.values(run, slots) == results
                assert store.data(run) == model.data
                executions = store.executions(run)
                starts = {at: each.starts for at, each in executions.items() if each.starts}
                assert starts == model.starts
                infos = {at: e.info for at, e in executions.items() if e.info is not None}
                assert infos == model.infos

    return Machine


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


def _summary(record: Record, jobs: int, name: str | None, tags: tuple[str, ...]) -> Summary:
    """What `ResultStore.scan` tells of *record*."""
    return Summary(
        run=record.run,
        name=name,
        tags=tags,
        state=record.state,
        jobs=jobs,
        done=record.done,
        failing=record.failing,
        dead=record.dead,
        created_at=record.created_at,
        updated_at=record.updated_at,
        ended_at=record.ended_at,
    )


def _counts(store: ResultStore, run: str) -> tuple[int, int, int]:
    """Done, failing, dead."""
    record = _read(store, run)
    return record.done, record.failing, record.dead


def _scan(store: ResultStore, count: int = 100, cursor: str = "") -> list[Summary]:
    """Everything from *cursor* on."""
    seen: list[Summary] = []
    for _ in range(1000):
        page, cursor = store.scan(cursor, count)
        seen += page
        if not cursor:
            return seen
    raise AssertionError("scan comes to an end: the last cursor is empty")


def _begin(
    store: ResultStore, run: str, address: str, generation: int = 0, limit: int = 5
) -> Verdict:
    return store.begin(run, address, address, generation, limit).verdict


def _complete(
    store: ResultStore,
    run: str,
    address: str,
    value: bytes = b"1",
    *,
    slot: str = "",
    generation: int = 0,
    token: str = "",
    **more: Any,
) -> Completed:
    token = token or uuid.uuid4().hex
    return store.complete(
        run,
        address,
        slot or address,
        value,
        generation=generation,
        token=token,
        **more,
    )


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
) -> Failed:
    token = token or uuid.uuid4().hex
    return store.fail(
        run,
        address,
        address,
        failure,
        attempt=attempt,
        final=final,
        generation=generation,
        token=token,
        settles=settles,
    )


def _primitives(store: ResultStore) -> dict[str, Callable[[], Any]]:
    """Every call that needs the server."""
    return {
        "create": lambda: store.create("r", b"", {}, 1),
        "page": lambda: store.page("r", "0"),
        "begin": lambda: _begin(store, "r", "0"),
        "complete": lambda: _complete(store, "r", "0"),
        "fail": lambda: _fail(store, "r", "0"),
        "values": lambda: store.values("r", ["0"]),
        "hold": lambda: store.hold("r", "0", b""),
        "transition": lambda: store.transition("r", [State.RUNNING], State.CANCELLED, 0),
        "read": lambda: store.read("r"),
        "take": lambda: store.take("r", "1", "lane", -1, 0),
        "data": lambda: store.data("r"),
        "executions": lambda: store.executions("r"),
        "scan": store.scan,
        "delete": lambda: store.delete("r"),
        "peek": lambda: store.peek("r"),
        "finished": lambda: store.finished("r", ["0"]),
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
