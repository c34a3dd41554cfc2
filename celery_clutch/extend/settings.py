"""What celery-clutch reads from ``app.conf``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigurationError, NoStore
from ..model.secrets import masked

REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "redis+cluster")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one app.

    Attributes:
        store: ``clutch_store``, the URL of the result store. Default: the Redis of the result
            backend, else that of the broker; ``memory://`` in eager mode.
        ttl: ``clutch_ttl``, seconds a run is kept after its last event (22 days).
        result_ttl: ``clutch_result_ttl``, seconds a run is kept after it has succeeded (1 day).
        key_prefix: ``clutch_key_prefix``, what names of keys and tables start with.
        max_result_bytes: ``clutch_max_result_bytes``, the largest result as JSON (1 MiB).
        max_starts: ``clutch_max_starts``, how many owners of a job may die with it before it is
            given up (5).
        lease: ``clutch_lease``, seconds without a word after which a process counts as dead, and
            its jobs are free (60).
        grace: ``clutch_grace``, seconds for which something is due, or a run is without an event,
            before `sweep` looks at it (30).
        window: ``clutch_window``, about how many messages of one parallel step wait in the broker
            at a time; from 100 to 10,000 (2,000).
        keep_results: ``clutch_keep_results``, whether Celery is handed the values of jobs, for its
            result backend and signals (False).
        failed_ttl: ``clutch_failed_ttl``, seconds a run that failed or was cancelled is kept after
            its last event (as ``clutch_ttl``).
    """

    store: str
    ttl: float = 22 * 86400
    result_ttl: float = 86400
    key_prefix: str = "clutch"
    max_result_bytes: int = 1024 * 1024
    max_starts: int = 5
    lease: float = 60.0
    grace: float = 30.0
    window: int = 2000
    failed_ttl: float = 22 * 86400
    keep_results: bool = False

    @classmethod
    def of(cls, conf: Any) -> Settings:
        """Read them.

        Raises:
            NoStore: no ``clutch_store``, and neither backend nor broker is Redis.
            ConfigurationError: a setting has a value that makes no sense.
        """
        default = cls(store="")
        _check_protocol(conf)
        ttl = _number(conf, "clutch_ttl", default.ttl)
        return cls(
            store=_store(conf),
            ttl=ttl,
            result_ttl=_number(conf, "clutch_result_ttl", default.result_ttl),
            key_prefix=str(conf.get("clutch_key_prefix") or default.key_prefix),
            max_result_bytes=_whole(conf, "clutch_max_result_bytes", default.max_result_bytes),
            max_starts=_whole(conf, "clutch_max_starts", default.max_starts),
            lease=_number(conf, "clutch_lease", default.lease),
            grace=_number(conf, "clutch_grace", default.grace),
            window=_within(conf, "clutch_window", default.window, 100, 10_000),
            keep_results=_flag(conf, "clutch_keep_results", default.keep_results),
            failed_ttl=_number(conf, "clutch_failed_ttl", ttl),
        )


def _check_protocol(conf: Any) -> None:
    """Messages of protocol 1 carry neither headers nor what follows in a chain (5.3 to 5.7)."""
    if conf.get("task_protocol") in (1, "1") and not conf.get("task_always_eager"):
        raise ConfigurationError(
            "task_protocol is 1, and such messages cannot carry what a job has to know of its run: "
            "leave the setting out, or set it to 2 (Celery's default)"
        )


NAMES = tuple(f"clutch_{each.name}" for each in fields(Settings))
"""Every setting."""


def _number(conf: Any, name: str, default: float) -> float:
    value = conf.get(name)
    if value is None:
        return default
    value = getattr(value, "total_seconds", lambda: value)()
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a number above 0, not {value!r}")
    return float(value)


def _whole(conf: Any, name: str, default: int) -> int:
    value = _number(conf, name, default)
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, not {value!r}")
    return int(value)


def _within(conf: Any, name: str, default: int, least: int, most: int) -> int:
    value = _whole(conf, name, default)
    if not least <= value <= most:
        raise ConfigurationError(f"{name} must be from {least} to {most}, not {value!r}")
    return value


def _flag(conf: Any, name: str, default: bool) -> bool:
    value = conf.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")
    return value


def _store(conf: Any) -> str:
    url = conf.get("clutch_store")
    if url is not None:
        wanted = "clutch_store must be a URL such as redis://localhost:6379/0"
        if not isinstance(url, str):
            raise ConfigurationError(f"{wanted}, not of the type {type(url).__name__}")
        if "://" not in url:  # not repeated: it may have a password in it
            raise ConfigurationError(f"{wanted}; it has no ://")
        return url
    if conf.get("task_always_eager"):
        return "memory://"
    options = ("result_backend_transport_options", "broker_transport_options")
    for name, transport in zip(("result_backend", "broker_url"), options, strict=True):
        # The attributes look at CELERY_BROKER_URL and CELERY_RESULT_BACKEND, too.
        url = getattr(conf, name, None) or conf.get(name)
        url = url[0] if isinstance(url, (list, tuple)) and url else url
        if isinstance(url, str) and not url.startswith("sentinel"):
            url = url.partition(";")[0]  # the first of several brokers
        if isinstance(url, str) and url.partition("://")[0] in REDIS_SCHEMES:
            return _with_master(url, conf.get(transport) or {})
    raise NoStore(
        "celery-clutch needs a place for results, and neither the result backend nor the broker of "
        "this app is Redis. Set clutch_store, for example to redis://localhost:6379/0."
    )


_URLS = ("broker_url", "broker_read_url", "broker_write_url", "result_backend", "clutch_store")


def without_passwords(conf: Any, text: object) -> str:
    """*text*, which may quote settings, without the pieces of passwords in them."""
    written: list[str] = []
    for name in _URLS:
        # The attributes look at CELERY_BROKER_URL and CELERY_RESULT_BACKEND, too.
        for value in (conf.get(name), getattr(conf, name, None)):
            several = value if isinstance(value, (list, tuple)) else [value]
            written += [str(each) for each in several if each]
    return masked(str(text), written)


def quoted(conf: Any, exc: BaseException) -> str | None:
    """The text of *exc* without the pieces of passwords that are in it, or in what it comes from;
    None if there are none."""
    each: BaseException | None = exc
    while each is not None:
        if without_passwords(conf, each) != str(each):
            return without_passwords(conf, exc)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return None


def _with_master(url: str, options: Mapping[str, Any]) -> str:
    master = options.get("master_name")
    if url.startswith("sentinel://") and master and "master_name=" not in url:
        return f"{url}{'&' if '?' in url else '?'}master_name={master}"
    return url
