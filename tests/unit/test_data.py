"""Shared data, as a job sees it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from celery import shared_task
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, Sequence
from celery_clutch.errors import NonJSONData, ResultTooLarge
from celery_clutch.model.data import Data, difference

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)
KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=3)


@shared_task
def work() -> None: ...


def stored(values: dict[str, Any]) -> Data:
    return Data(lambda: {key: orjson.dumps(value) for key, value in values.items()}, 10_000)


@given(st.dictionaries(KEYS, JSON, max_size=5))
def test_what_is_only_read_has_not_changed(values: dict[str, Any]) -> None:
    data = stored(values)
    assert data.changes() == {}
    assert dict(data) == values
    assert data.changes() == {}


@given(st.dictionaries(KEYS, JSON, max_size=5), st.dictionaries(KEYS, JSON, max_size=5))
def test_changes_turn_what_was_stored_into_what_is_there(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    data = stored(before)
    data.clear()
    data.update(after)
    result = {key: orjson.dumps(value) for key, value in before.items()}
    for key, change in data.changes().items():
        assert result.get(key) != change, "only what differs is a change"
        result.pop(key, None)
        if change is not None:
            result[key] = change
    assert {key: orjson.loads(value) for key, value in result.items()} == after
    assert data.encoded() == result


def test_changes_inside_values_are_changes() -> None:
    data = stored({"a": {"b": [1]}, "c": [1]})
    data["a"]["b"].append(2)
    assert data.changes() == {"a": b'{"b":[1,2]}'}


def test_it_is_read_once_and_only_when_asked() -> None:
    calls = []

    def load() -> dict[str, bytes]:
        calls.append(1)
        return {"a": b"1"}

    data = Data(load, 100)
    assert data.changes() == {}
    assert not calls
    assert (data["a"], data.get("b"), len(data), "a" in data) == (1, None, 1, True)
    assert calls == [1]


def test_a_missing_key_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="gone"):
        stored({})["gone"]
    with pytest.raises(KeyError, match="gone"):
        del stored({})["gone"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1, 2}, r"\$"),
        ({"x": [float("nan")]}, r"\$\['x'\]\[0\]"),
        (2**64, r"\$"),
        ("\ud800", r"\$"),
    ],
)
def test_what_json_cannot_represent_is_named(value: Any, path: str) -> None:
    data = stored({"fine": 1})
    data["key"] = value
    with pytest.raises(NonJSONData, match=rf"data\['key'\] .* at {path}"):
        data.changes()


BAD_KEYS = [1, None, ("a",), "", "k" * 256, "a\x00b", "a\nb", "\x7f", "\x9f", "a\ud800"]
GOOD_KEYS = ["k" * 255, " ", "a ", "\U0001f600" * 255, "\u00e9", "e\u0301", "a/b:c 'd'", "\xa0"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_are_refused(key: Any) -> None:
    data = stored({})
    with pytest.raises(NonJSONData, match="a key of the data is a string of 1 to 255 characters"):
        data[key] = 1
    assert data.changes() == {}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_are_checked_when_they_are_set(key: Any) -> None:
    class Form(Sequence):
        steps = [work]

    for refused in (lambda: Clutch(data={key: 1}), lambda: Form({key: 1})):
        with pytest.raises(NonJSONData) as caught:
            refused()
        assert repr(key)[:80] in str(caught.value)
    clutch = Clutch(work, data={})
    clutch.data = {key: 1}
    with pytest.raises(NonJSONData, match="a key of the data"):
        clutch.to_json()


@pytest.mark.parametrize("key", GOOD_KEYS)
def test_keys_that_are_fine(key: str) -> None:
    data = stored({})
    data[key] = 1
    assert data.changes() == {key: b"1"}
    Clutch(data={key: 1})


def test_a_value_can_be_too_large() -> None:
    data = stored({})
    data["key"] = "x" * 10_000
    with pytest.raises(ResultTooLarge, match=r"data\['key'\] is 10,002 bytes .* 10,000"):
        data.changes()


def test_difference() -> None:
    assert difference({}, {}) == {}
    assert difference({"a": b"1", "b": b"1"}, {"b": b"2", "c": b"1"}) == {
        "a": None,
        "b": b"2",
        "c": b"1",
    }
