"""JSON in and out: results strictly, arguments as Celery carries them.

Results go through orjson alone, and what it would change silently is refused. Arguments and
options of a job travel in the plan, and come back as the types that kombu's own JSON brings back
(datetime, date, UUID, Decimal, bytes), so that a job sees what it would see with plain Celery.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import orjson
from kombu.utils import json as kombu_json
from orjson import Fragment

from ..errors import CorruptRecord, NonJSONArgument, NonJSONData, NonJSONResult, ResultTooLarge

_ARGUMENTS = (
    orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_NON_STR_KEYS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_FALLBACK = kombu_json.JSONEncoder()
_TAG = b'"__type__"'
_ATOMS = frozenset((str, int, bool, type(None)))

KEY_LENGTH = 255
"""The most characters of a key of the shared data."""

# C0, DEL and C1, some of which databases refuse or change; and surrogates, which are not text.
_NO_KEY = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def encode_result(value: Any, where: str, limit: int) -> bytes:
    """Encode what the job at *where* returned.

    Raises:
        NonJSONResult: naming the job and the path of the first offending value. Sets, NaN,
            infinities, integers beyond 64 bits, keys that are not strings, lone surrogates.
        ResultTooLarge: with the size and the *limit*, in bytes.
    """
    data, problem = _encode(value)
    if problem:
        path, what = problem
        raise NonJSONResult(
            f"job {where} returned something JSON cannot represent at {path}: {what}"
        )
    if len(data) > limit:
        raise ResultTooLarge(
            f"job {where} returned {len(data):,} bytes of JSON; the limit is {limit:,} "
            "(clutch_max_result_bytes). Store the value elsewhere and return a reference to it."
        )
    return data


def encode_data(values: Mapping[Any, Any], limit: int) -> dict[str, bytes]:
    """Encode shared data, key by key.

    Raises:
        NonJSONData: naming the key, and the path of the first offending value in it; or the key,
            and what keys have to be.
        ResultTooLarge: with the key, its size and the *limit*, in bytes.
    """
    return {key: encode_datum(key, value, limit) for key, value in values.items()}


def check_key(key: Any) -> None:
    """Refuse what cannot be a key of the shared data in every store.

    Raises:
        NonJSONData: *key* is not a string of 1 to `KEY_LENGTH` characters, or one of them is a
            control character or a lone surrogate.
    """
    if isinstance(key, str) and 0 < len(key) <= KEY_LENGTH and not _NO_KEY.search(key):
        return
    shown = repr(key)
    shown = shown if len(shown) < 100 else f"{shown[:80]}... ({len(key):,} characters)"
    raise NonJSONData(
        f"a key of the data is a string of 1 to {KEY_LENGTH} characters, without control "
        f"characters and lone surrogates, and not {shown}"
    )


def encode_datum(key: Any, value: Any, limit: int) -> bytes:
    """Encode the value of one *key* of the shared data; see `encode_data`."""
    check_key(key)
    data, problem = _encode(value)
    if problem:
        path, what = problem
        raise NonJSONData(f"data[{key!r}] cannot be represented by JSON at {path}: {what}")
    if len(data) > limit:
        raise ResultTooLarge(
            f"data[{key!r}] is {len(data):,} bytes of JSON; the limit is {limit:,} "
            "(clutch_max_result_bytes). Store the value elsewhere and keep a reference to it."
        )
    return data


def _encode(value: Any) -> tuple[bytes, tuple[str, str] | None]:
    """*value* as JSON, or the path of what JSON cannot represent in it, and why."""
    try:
        data = orjson.dumps(value)
    except TypeError as exc:  # orjson.JSONEncodeError is a TypeError
        return b"", _offender(value) or ("$", str(exc))
    # orjson writes NaN and the infinities as null: the one change it makes without a word.
    return data, _non_finite(value) if b"null" in data else None


def decode_result(data: bytes) -> Any:
    """The value that `encode_result` or `encode_datum` wrote."""
    try:
        return orjson.loads(data)
    except ValueError as exc:
        raise CorruptRecord(f"a stored result is not JSON: {data[:80]!r} ({exc})") from None


def encode_plan(value: Any) -> bytes:
    """Encode a piece of a plan, arguments and options included."""
    try:
        ready = value if _is_plain(value) else _tagged(value)
        data = orjson.dumps(ready, default=_default, option=_ARGUMENTS)
    except TypeError as exc:
        raise NonJSONArgument(str(exc)) from None
    except RecursionError:
        raise NonJSONArgument("nested too deeply, or it contains itself") from None
    if _TAG in data:
        _check_envelopes(data)
    return data


def _check_envelopes(data: bytes) -> None:
    """Refuse what kombu would take for a value of another type, and could not read."""
    try:
        kombu_json.loads(data)
    except _UNREADABLE:
        raise NonJSONArgument(
            'an object of "__type__" and "__value__" is one of Celery\'s own, and it cannot read it'
        ) from None


def encode_parts(value: Any) -> bytes:
    """Encode what is made of our own lists, dicts and strings, and of what `part` gives."""
    try:
        return orjson.dumps(value)
    except TypeError as exc:
        raise NonJSONArgument(str(exc)) from None


def part(value: Any) -> Fragment:
    """*value* encoded as by `encode_plan`, to stand in what `encode_parts` encodes."""
    return Fragment(encode_plan(value))


def _is_plain(value: Any) -> bool:
    """Whether *value* is made of nothing but what orjson writes as it is (it nearly always is)."""
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if type(item) is dict:
            if not all(type(key) is str for key in item):
                return False
            item = item.values()
        elif type(item) is not list and type(item) is not tuple:
            return False
        for each in item:
            kind = type(each)
            if kind is list or kind is tuple or kind is dict:
                stack.append((each, depth + 1))
                if depth > 250:  # orjson gives up at 254; perhaps it contains itself
                    return False
            elif kind not in _ATOMS:
                return False
    return True


def _tagged(value: Any) -> Any:
    """*value* with what orjson would change without a word put as kombu puts it, or refused."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        for key in value:
            if isinstance(key, float) and not math.isfinite(key):
                raise NonJSONArgument(f"the key {key} has no JSON form")
        return {key: _tagged(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_tagged(item) for item in value]
    if isinstance(value, enum.Enum):
        return _tagged(value.value)
    if isinstance(value, UUID):  # orjson has no way to pass these through
        return _FALLBACK.default(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise NonJSONArgument(f"{value} has no JSON form")
    if isinstance(value, (dict, list, tuple)):
        return _tagged(_default(value))
    return value


_UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)
"""What kombu raises for an envelope whose content is something else."""


def decode_plan(data: bytes) -> Any:
    """The piece of a plan that `encode_plan` wrote."""
    try:
        # kombu's envelopes are rare and its decoder slow, so it reads only what needs it.
        return kombu_json.loads(data) if _TAG in data else orjson.loads(data)
    except _UNREADABLE as exc:
        raise CorruptRecord(f"a stored page is not JSON: {data[:80]!r} ({exc})") from None


def is_taken_for_another(value: Any) -> bool:
    """Whether a JSON *value* has something in it that kombu's JSON takes for one of its
    envelopes, such as that of a datetime."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if item.keys() == {"__type__", "__value__"}:
                return True
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False


def check_argument(value: Any, where: str) -> None:
    """Raise `NonJSONArgument`, naming *where* and the path, unless JSON can carry *value*."""
    try:
        encode_plan(value)
    except NonJSONArgument as exc:
        path, problem = _offender(value, encode_plan) or ("$", str(exc))
        raise NonJSONArgument(
            f"{where}: {path} cannot be sent as JSON ({problem}). Pass plain data, or an id that "
            "the job looks up."
        ) from None


def _default(value: Any) -> Any:
    # Subclasses are passed through so that __json__ and enums behave as in kombu; what is left
    # of them are plain containers under another name.
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return _FALLBACK.default(value)


def _children(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield getattr(value, field.name, None), f"{path}.{field.name}"
    elif isinstance(value, enum.Enum):
        yield value.value, f"{path}.value"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield item, f"{path}[{key!r}]"
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield item, f"{path}[{index}]"


def _offender(value: Any, encode: Any = orjson.dumps, path: str = "$") -> tuple[str, str] | None:
    """The path of the innermost value that *encode* refuses, and why (depth first)."""
    around: set[int] = set()
    problem = ""
    while id(value) not in around and len(around) < 300:
        around.add(id(value))
        try:
            encode(value)
            return None
        except (TypeError, NonJSONArgument) as exc:
            problem = f"{type(value).__name__}: {exc}"
        for child, child_path in _children(value, path):
            try:
                encode(child)
            except (TypeError, NonJSONArgument):
                value, path = child, child_path
                break
        else:
            return path, problem
    return path, "nested too deeply, or it contains itself"


def _non_finite(value: Any) -> tuple[str, str] | None:
    stack = [(value, "$")]
    while stack:
        item, path = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return path, f"float: {item} has no JSON form"
        stack.extend(reversed(list(_children(item, path))))
    return None
