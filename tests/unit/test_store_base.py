"""What every store inherits from `ResultStore`: waiting, patience, a repr without secrets."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.errors import ClutchError, StoreUnavailable
from celery_clutch.extend.plugins import forget_runtime, runtime
from celery_clutch.model.status import State
from celery_clutch.stores.base import Due, Lease, Missing, ResultStore, listed, without_secrets
from celery_clutch.stores.memory import MemoryStore
from celery_clutch.testing import StoreContract

from .conftest import make_app


class Inherits(MemoryStore):
    """A store whose author wrote the primitives only."""

    wait = ResultStore.wait


class TestInherited(StoreContract):
    """The template methods are right as they are."""

    shared = False
    examples = 5

    def make_store(self, options: Any) -> ResultStore:
        return Inherits("memory://", options)


class Away:
    """A call that cannot reach its server, some times, and then answers."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.calls.append(time.monotonic())
        self.left -= 1
        if self.left >= 0:
            raise StoreUnavailable(f"{self.left} to go")
        return args, kwargs


def test_patiently_passes_the_answer_on() -> None:
    away = Away(0)
    assert MemoryStore().patiently(away, 1, two=2) == ((1,), {"two": 2})
    assert len(away.calls) == 1


def test_patiently_tries_again_ever_more_slowly() -> None:
    away = Away(4)
    assert MemoryStore().patiently(away, 1) == ((1,), {})
    assert len(away.calls) == 5
    assert away.calls[-1] - away.calls[-2] > away.calls[1] - away.calls[0]


def test_patiently_gives_up_in_the_end() -> None:
    store, away = MemoryStore(), Away(1000)
    store.patience = 0.3
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.patiently(away)
    assert 0.3 <= time.monotonic() - started < 3
    assert 2 < len(away.calls) < 20


def test_patiently_is_patient_with_an_absent_server_only() -> None:
    calls = []

    def broken() -> None:
        calls.append(1)
        raise ValueError("a mistake stays one")

    with pytest.raises(ValueError, match="a mistake"):
        MemoryStore().patiently(broken)
    assert calls == [1]


def test_waiting_by_asking_does_not_spin() -> None:
    class Counts(Inherits):
        asked = 0

        def read(self, run: str) -> Any:
            self.asked += 1
            return super().read(run)

    store = Counts()
    store.create("r", b"", {}, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, "r", 0.8)
        assert waiting.result(10) is State.RUNNING
    assert store.asked < 20
    store.asked = 0
    assert asyncio.run(store.wait_async("r", 0.8)) is State.RUNNING
    assert store.asked < 20


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://user:secret@host:1/2", "redis://host:1/2"),
        ("redis://:se@cret@host", "redis://host"),
        ("mine://host/db?password=secret&timeout=1", "mine://host/db"),
        ("mine:///path?user=secret", "mine:///path"),
        ("mine://:secret@a:1;mine://:secret@b:2/0", "mine://b:2/0"),
    ],
)
def test_repr_has_no_secrets(url: str, shown: str) -> None:
    assert repr(MemoryStore(url)) == f"<MemoryStore {shown}>"


def test_missing_is_neither_none_nor_true() -> None:
    assert repr(Missing) == "Missing"
    assert Missing is not None
    assert not Missing


def test_a_store_lacking_a_method_cannot_be_made() -> None:
    class Half(ResultStore):
        def page(self, run: str, key: str) -> Any:
            return Missing

    with pytest.raises(TypeError, match="begin"):
        Half("half://")  # type: ignore[abstract]


def test_every_primitive_says_what_it_guarantees() -> None:
    def undocumented(names: Iterable[str]) -> list[str]:
        return [name for name in names if not (getattr(ResultStore, name).__doc__ or "").strip()]

    assert undocumented(ResultStore.__abstractmethods__) == []


times = st.floats(0, 1e11)
words = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs", "Zs"]), min_size=1)


@given(times, st.integers(0), st.text())
def test_what_is_due_is_read_as_it_was_written(since: float, tries: int, cause: str) -> None:
    due = Due(since, tries, cause)
    assert Due.loads(due.dumps()) == due


@given(words, st.integers(0), st.integers(0), times, st.text())
def test_a_lease_is_read_as_it_was_written(
    owner: str, turn: int, lapses: int, started_at: float, page: str
) -> None:
    lease = Lease(owner, turn, lapses, started_at, page)
    assert Lease.loads(lease.dumps()) == lease


def test_listed_goes_through_all_pages() -> None:
    store = MemoryStore()
    for number in range(7):
        store.create(f"r{number}", b"", {}, number % 2)
    assert {each.run for each in listed(store, 2)} == {f"r{number}" for number in range(7)}
    running = {each.run for each in listed(store, 2, state=State.RUNNING)}
    assert running == {"r1", "r3", "r5"}
    assert list(listed(MemoryStore())) == []


PIECES = ("Zq1x", "Yv2w", "Xk3u")
separators = st.sampled_from(
    ["/", "@", "?", "#", ":", "%", "%2F", "%40", " ", "[", "]", "&", "=", ""]
)
urls = st.sampled_from(
    [
        "redis://user:{}@localhost:1/0",
        "redis://:{}@localhost:1/0",
        "rediss://:{}@localhost:1/0",
        "redis://localhost:1/0?password={}",
        "redis+socket://:{}@/no/such/socket?virtual_host=1",
        "sentinel://:{}@localhost:1;localhost:2/service",
        "redis+cluster://:{}@localhost:1",
        "redis://user:{}@",
        "redis://:{}@localhost:notaport/0",
        "redis://:{}@localhost/0?no_such_option=1",
    ]
)


@given(urls, separators, separators)
def test_no_piece_of_a_password_is_shown(form: str, one: str, other: str) -> None:
    pytest.importorskip("redis")
    password = PIECES[0] + one + PIECES[1] + other + PIECES[2]
    url = form.format(password)
    shown = [without_secrets(url)]
    app = make_app()
    app.conf.clutch_store = url
    try:
        store = runtime(app).store
        shown.append(repr(store))
        store.peek("r")
    except ClutchError as exc:
        shown.append("".join(traceback.format_exception(exc)))
    finally:
        forget_runtime(app)
    for text in shown:
        assert not [piece for piece in PIECES if piece in text], text
