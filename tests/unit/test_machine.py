"""What holds of a run after any history: the rules of `stores/machine.py`, on `MemoryStore`."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from celery_clutch.model.status import State
from celery_clutch.stores.base import (
    ENDED,
    TURNS,
    Attempted,
    Barrier,
    Claim,
    Completion,
    Missing,
    Settles,
    Turn,
    Verdict,
)
from celery_clutch.stores.memory import MemoryStore

RUN = "r"
JOBS = ["0", "1.0", "1.1", "2.0", "2.1", "2.2"]
WIDE, NARROW = Barrier("1", 2, "page 2"), Barrier("2", 3, "page 3")
JOIN = Barrier("all", 3, "page 4")
BARRIERS: dict[str, tuple[Barrier, ...]] = {"0": (JOIN,)}
BARRIERS |= {at: (WIDE, JOIN) for at in ("1.0", "1.1")}
BARRIERS |= {at: (NARROW,) for at in ("2.0", "2.1", "2.2")}
TURNED = {f"2.{number}": Turn("2", f"2.{number}", 1, 3) for number in range(3)}
WIDTHS = {"0": 1, "1": 2, "2": 3}

jobs = st.sampled_from(JOBS)
ages = st.sampled_from([0, 0, 0, 0, -1])


def settles(address: str) -> Settles:
    step = address[0]
    return Settles(step, address, WIDTHS[step])


class Histories(RuleBasedStateMachine):
    """One run, and what happens to it; the store is asked what the test remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.recorded: set[str] = set()
        self.pages: list[tuple[int, str]] = []
        self.reports: list[tuple[int, str]] = []
        self.opened: list[str] = []

    @initialize(ends=st.sets(st.sampled_from(State)))
    def create(self, ends: set[State]) -> None:
        self.store.create(RUN, b"", {}, len(JOBS), ends=ends, due={"page 0": 1.0})

    @property
    def generation(self) -> int:
        found = self.store.peek(RUN)
        assert found
        return found[1]

    def note(self, due: tuple[str, ...], *, fresh: bool) -> None:
        """What a call that recorded something made due; it is sent at once."""
        if fresh:
            keys = [key for key in due if key.startswith("page 2/")]
            self.pages += [(self.generation, key) for key in keys]
            keys = [key for key in due if key.startswith("failure ")]
            self.reports += [(self.generation, key) for key in keys]
            self.opened += [key for key in due if key in {"page 2", "page 3", "page 4"}]
        self.store.published(RUN, due)

    @rule(address=jobs, turn=st.sampled_from([0, 1, TURNS]))
    def begin(self, address: str, turn: int) -> None:
        begun = self.store.begin(
            Claim(RUN, address, self.generation, owner="w", limit=9, turn=turn)
        )
        if begun.verdict is Verdict.RUN:
            assert address not in self.recorded, "a job that has a result does not run"
            assert (address in self.store.leases(RUN)) == (begun.held is None)

    @rule(address=jobs, age=ages)
    def complete(self, address: str, age: int) -> None:
        barriers = list(BARRIERS[address])
        if address in TURNED:
            branch = Barrier(address, 1, settles=settles(address), turn=TURNED[address])
            barriers.append(branch)
        more: dict[str, Any] = {"barriers": tuple(barriers)}
        more["settles"] = None if address in TURNED else settles(address)
        done = self.store.complete(Completion(RUN, address, self.generation + age, b"1", **more))
        assert done.fresh == (address not in self.recorded)
        self.recorded.add(address)
        self.note(done.due, fresh=done.fresh)

    @rule(address=jobs, attempt=st.integers(1, 3), final=st.booleans(), age=ages)
    def fail(self, address: str, attempt: int, final: bool, age: int) -> None:
        turns = (TURNED[address],) if address in TURNED else ()
        failed = self.store.fail(
            Attempted(
                RUN,
                address,
                self.generation + age,
                b"{}",
                attempt,
                final,
                settles=(settles(address),),
                turns=turns,
                retry=(f"job {address}", 1.0),
            )
        )
        self.note(failed.due, fresh=failed.recorded)

    @rule(address=jobs)
    def checkpoint(self, address: str) -> None:
        if self.store.checkpoint(RUN, address, b"held", self.generation, ["start x"]):
            assert address not in self.recorded
            assert address not in self.store.leases(RUN)

    @rule()
    def resume(self) -> None:
        before = self.generation
        assert self.store.transition(RUN, State, State.RUNNING, before)
        record = self.store.read(RUN)
        assert record
        assert record.generation == before + 1
        kept = ("failure ", "success ", "death ", "end ")
        due = {key for key in record.due if not key.startswith(kept)}
        assert due == ({"page 0"} if record.remaining else set()), "nothing of before is due"
        assert not record.failures

    @precondition(lambda self: self.generation % 2)
    @rule()
    def cancel(self) -> None:
        self.store.transition(RUN, [State.RUNNING, State.FAILED], State.CANCELLED, self.generation)

    @invariant()
    def counts_are_right(self) -> None:
        record = self.store.read(RUN)
        if record is None:
            return
        assert min(record.remaining, record.done, record.failing, record.dead) >= 0
        assert record.done == len(self.recorded)
        unfinished = set(record.failures) - record.finished
        assert record.failing + record.dead == len(unfinished)
        assert record.finished <= self.recorded
        assert not unfinished & self.recorded
        values = dict(zip(JOBS, self.store.values(RUN, JOBS)))
        assert {at for at, value in values.items() if value is not Missing} == self.recorded

    @invariant()
    def the_state_says_how_it_stands(self) -> None:
        record = self.store.read(RUN)
        if record is None:
            return
        assert (record.ended_at is None) == (record.state not in ENDED)
        if record.state is State.SUCCEEDED:
            assert not record.remaining
        elif record.state is State.RUNNING:
            assert record.remaining
            assert not record.dead
        elif record.state is State.FAILED:
            assert record.dead > 0
            assert set(record.failures) - record.finished, "there is a failure to show"

    @invariant()
    def barriers_count_results(self) -> None:
        for barrier in (WIDE, NARROW, JOIN):
            members = [at for at in self.recorded if barrier in BARRIERS[at]]
            assert self.store.counts(RUN, [barrier.name]) == [len(members)]

    @invariant()
    def nothing_is_due_twice(self) -> None:
        for told in (self.pages, self.reports, self.opened):
            assert len(told) == len(set(told))


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.permutations([*JOBS, *JOBS]))
def test_every_order_of_results_opens_every_barrier_once(order: list[str]) -> None:
    store, opened = MemoryStore(), []
    store.create(RUN, b"", {}, len(JOBS), ends=[State.SUCCEEDED])
    ended = 0
    for number, address in enumerate(order):
        done = Completion(RUN, address, 0, b"1", f"t{number}", barriers=BARRIERS[address])
        found = store.complete(done)
        opened += found.due if found.fresh else ()
        ended += found.succeeded
    assert sorted(opened) == ["end SUCCEEDED", "page 2", "page 3", "page 4"]
    assert ended == 1


@given(st.lists(st.tuples(st.sampled_from(JOBS[3:]), st.booleans())))
def test_branches_that_are_over_take_turns(over: list[tuple[str, bool]]) -> None:
    store, pages = MemoryStore(), []
    store.create(RUN, b"", {}, 9)
    for address, dead in over:
        turn = TURNED[address]
        if dead:
            failed = Attempted(RUN, address, 0, b"", 1, True, turns=(turn,))
            pages += [key for key in store.fail(failed).due if key not in pages]
        else:
            done = Completion(RUN, address, 0, b"", barriers=(Barrier("b", 1, turn=turn),))
            pages += [key for key in store.complete(done).due if key not in pages]
    branches = len({address for address, _ in over})
    assert pages == [f"page 2/{number}" for number in range(1, 1 + min(branches, 2))]


def test_an_attempt_that_is_recorded_after_the_next_one_reports_nothing() -> None:
    store = MemoryStore()
    store.create(RUN, b"", {}, 1)
    alone = (Settles("0", "0", 1),)
    first, second = (Attempted(RUN, "0", 0, b"", n, False, settles=alone) for n in (1, 2))
    assert store.fail(second).due == ("failure 0",)
    assert store.fail(first).due == (), "whoever recorded the second attempt sends it"
    assert store.fail(second).due == ("failure 0",), "a copy finds what is still due"
