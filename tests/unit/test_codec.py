"""JSON in and out: what is represented, what is refused, and how the refusal names it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import uuid
from collections import namedtuple
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celery_clutch import Failed, Skipped
from celery_clutch.errors import CorruptRecord, NonJSONArgument, NonJSONResult, ResultTooLarge
from celery_clutch.model import codec

from .strategies import json_leaves, json_values, nested, texts

LIMIT = 1 << 20


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


class Colour(enum.Enum):
    RED = "red"
    BAD = math.nan


class Ratio(float):
    pass


Pair = namedtuple("Pair", "left right")


def encode(value: Any, limit: int = LIMIT) -> bytes:
    return codec.encode_result(value, "1.2", limit)


# --- results ------------------------------------------------------------------------------


@given(json_values)
def test_a_json_value_comes_back_as_it_was(value: Any) -> None:
    assert codec.decode_result(encode(value)) == value


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}, True, -(2**63), 2**64 - 1])
def test_empty_and_extreme_values_are_values(value: Any) -> None:
    back = codec.decode_result(encode(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc), "2024-02-29T12:00:00+00:00"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (Colour.RED, "red"),
        ((1, (2,)), [1, [2]]),
    ],
)
def test_richer_values_are_written_as_orjson_writes_them(value: Any, expected: Any) -> None:
    assert codec.decode_result(encode(value)) == expected
    assert codec.decode_result(encode(value)) == orjson.loads(orjson.dumps(value))


OFFENDERS = [
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (2**64, "int"),
    (-(2**63) - 1, "int"),
    ({1: 2}, "dict"),
    ({None: 2}, "dict"),
    ({(1, 2): 2}, "dict"),
    ("\ud800", "str"),
    ({"\ud800": 1}, "dict"),
    (b"raw", "bytes"),
    (object(), "object"),
    (1j, "complex"),
    (Decimal("1.5"), "Decimal"),
    (range(3), "range"),
    (Pair(1, 2), "Pair"),
    (ValueError("x"), "ValueError"),
    (len, "builtin_function_or_method"),
]


@st.composite
def buried(draw: st.DrawFn) -> tuple[Any, str, str]:
    """An offender somewhere inside good values, its path, and a word of why it is one."""
    value, why = draw(st.sampled_from(OFFENDERS))
    path = ""
    good = json_values
    for _ in range(draw(st.integers(0, 5))):
        shape = draw(st.sampled_from(["list", "tuple", "dict", "x", "y"]))
        if shape in ("list", "tuple"):
            before = draw(st.lists(good, max_size=2))
            items = [*before, value, *draw(st.lists(good, max_size=2))]
            value = items if shape == "list" else tuple(items)
            path = f"[{len(before)}]{path}"
        elif shape == "dict":
            key = draw(texts)
            others = draw(st.dictionaries(texts, good, max_size=2))
            others.pop(key, None)
            value = {**others, key: value}
            path = f"[{key!r}]{path}"
        else:
            value = Point(value, draw(good)) if shape == "x" else Point(draw(good), value)
            path = f".{shape}{path}"
    return value, f"${path}", why


@given(buried())
def test_what_json_cannot_carry_is_named_with_its_path(case: tuple[Any, str, str]) -> None:
    value, path, why = case
    with pytest.raises(NonJSONResult) as caught:
        encode(value)
    message = str(caught.value)
    assert "job 1.2 " in message
    assert f" at {path}: " in message
    assert why in message.partition(f" at {path}: ")[2]


def test_the_first_of_several_offenders_is_named() -> None:
    with pytest.raises(NonJSONResult, match=r"\$\['a'\]\[1\]: float: nan"):
        encode({"a": [0.0, math.nan, math.inf], "b": -math.inf})


def test_a_nan_inside_an_enum_is_refused() -> None:
    with pytest.raises(NonJSONResult):
        encode([Colour.BAD])


def test_null_beside_a_finite_float_is_no_offence() -> None:
    value = {"null": None, "text": "null", "x": 1.5, "y": [None, 0.0]}
    assert codec.decode_result(encode(value)) == value


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    cycle: dict[str, Any] = {}
    cycle["self"] = [cycle]
    for value in (loop, cycle, Point(loop)):
        with pytest.raises(NonJSONResult, match=r"job 1\.2 .*(nested|ecursion|contains itself)"):
            encode(value)


@pytest.mark.parametrize("depth", [260, 2000, 100_000])
def test_a_value_nested_too_deeply_is_refused(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    with pytest.raises(NonJSONResult, match=r"job 1\.2 .*(nested|ecursion)"):
        encode(value)


def test_a_large_value_is_refused_with_size_and_limit() -> None:
    assert encode("x" * 98, limit=100) == b'"' + b"x" * 98 + b'"'
    with pytest.raises(ResultTooLarge) as caught:
        encode("x" * 9_998, limit=9_999)
    for part in ("job 1.2 ", "10,000 bytes", "9,999", "clutch_max_result_bytes"):
        assert part in str(caught.value)


def test_the_limit_is_in_bytes_not_characters() -> None:
    with pytest.raises(ResultTooLarge):
        encode("é" * 50, limit=100)


@pytest.mark.parametrize("data", [b"", b"{", b"nan", b"\xff", b"[1,]"])
def test_what_is_not_json_is_a_corrupt_record(data: bytes) -> None:
    with pytest.raises(CorruptRecord, match="not JSON"):
        codec.decode_result(data)
    with pytest.raises(CorruptRecord, match="not JSON"):
        codec.decode_plan(data)


# --- arguments ----------------------------------------------------------------------------


def carried(value: Any) -> Any:
    """*value* as a job gets it."""
    return codec.decode_plan(codec.encode_plan(value))


def by_celery(value: Any) -> Any:
    """*value* as a task gets it from Celery without clutches."""
    return kombu_json.loads(kombu_json.dumps(value))


zones = st.just(None) | st.just(dt.timezone.utc) | st.just(dt.timezone(dt.timedelta(hours=-3.5)))
rich_leaves = (
    json_leaves
    | st.binary(max_size=8)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.builds(tuple, st.lists(json_leaves, max_size=3))
    | st.sampled_from([Pair(1, "x"), enum.IntEnum("Size", "S M")(2)])
)


@given(nested(rich_leaves))
def test_arguments_come_back_as_celery_brings_them(value: Any) -> None:
    assert carried(value) == by_celery(value)
    assert repr(carried(value)) == repr(by_celery(value))


@given(
    st.dictionaries(
        st.integers(-9, 9) | st.booleans() | st.none() | st.just(1.5) | texts, json_leaves
    )
)
def test_keys_come_back_as_celery_brings_them(value: Any) -> None:
    assert carried(value) == by_celery(value)


def test_a_uuid_argument_stays_a_uuid() -> None:
    value = {"id": uuid.UUID(int=5)}
    assert carried(value) == by_celery(value) == value


def test_a_subclass_of_float_is_a_float() -> None:
    assert carried([Ratio(0.5)]) == by_celery([Ratio(0.5)]) == [0.5]


def test_a_nan_inside_an_enum_argument_is_refused() -> None:
    with pytest.raises(NonJSONArgument):
        codec.encode_plan([Colour.BAD])


def test_a_nan_key_is_refused() -> None:
    with pytest.raises(NonJSONArgument):
        codec.encode_plan({math.nan: 1})


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        math.nan,
        math.inf,
        [-math.inf],
        2**64,
        "\ud800",
        dt.timedelta(1),
        1j,
        Point(1),
    ],
)
def test_an_argument_json_cannot_carry_is_refused(value: Any) -> None:
    with pytest.raises(NonJSONArgument):
        codec.encode_plan({"deep": [value]})


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, {"a": {2}}], r"\$\[1\]\['a'\]"),
        ([object()], r"\$\[0\]"),
        ({"x": [1.0, math.nan]}, r"\$\['x'\]\[1\]"),
        ([{"n": 2**64}], r"\$\[0\]\['n'\]"),
    ],
)
def test_check_argument_names_the_place_and_the_path(value: Any, path: str) -> None:
    with pytest.raises(
        NonJSONArgument, match=rf"^job 3 \(shop\.pay\), args: {path} cannot be sent"
    ):
        codec.check_argument(value, "job 3 (shop.pay), args")


@pytest.mark.timeout(60)
def test_an_argument_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    cycle: dict[str, Any] = {}
    cycle["self"] = [1.5, cycle]
    for value in (loop, cycle, [loop, loop]):
        with pytest.raises(NonJSONArgument):
            codec.encode_plan(value)
        with pytest.raises(NonJSONArgument, match=r"^job 0: .*(nested|ecursion|contains itself)"):
            codec.check_argument(value, "job 0")


@pytest.mark.parametrize("leaf", [1, 1.5, uuid.UUID(int=1)])
@pytest.mark.parametrize("depth", [300, 5000])
def test_an_argument_nested_too_deeply_is_refused(depth: int, leaf: Any) -> None:
    value: Any = leaf
    for _ in range(depth):
        value = [value]
    with pytest.raises(NonJSONArgument, match=r"^job 0: .*(nested|ecursion)"):
        codec.check_argument(value, "job 0")


def test_check_argument_lets_good_arguments_pass() -> None:
    codec.check_argument([1, "x", b"y", dt.date(2024, 1, 1), Decimal("1")], "job 0")


def test_what_stands_for_a_missing_value_can_be_an_argument() -> None:
    absent = [Failed("0.1", "ValueError", "no"), Skipped("0.2")]
    expected = [{"address": "0.1", "exception": "ValueError", "message": "no"}, {"address": "0.2"}]
    assert kombu_json.loads(kombu_json.dumps(absent)) == expected
    assert codec.decode_plan(codec.encode_plan(absent)) == expected


@pytest.mark.parametrize("kind", ["unknown", "datetime", 5])
def test_an_argument_that_celery_takes_for_a_value_of_a_type_and_cannot_read(kind: Any) -> None:
    argument = {"a": [{"__type__": kind, "__value__": "x"}]}
    with pytest.raises(NonJSONArgument, match=r"^job 0: \$\['a'\]\[0\] cannot .*\"__type__\""):
        codec.check_argument(argument, "job 0")
