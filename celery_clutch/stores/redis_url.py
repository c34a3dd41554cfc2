"""What the URL of a Redis store means, for redis-py."""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlencode, urlsplit

_DEFAULTS: dict[str, Any] = {"socket_connect_timeout": 5.0, "socket_timeout": 20.0}
_CERT_REQS = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}


def connection(url: str, major: int) -> tuple[str, Any, dict[str, Any]]:
    """What *url* means: ("server" or "cluster", url, options) or ("sentinel", hosts, options).

    Args:
        url: of the store.
        major: version of redis-py.

    Raises:
        ValueError: it means nothing; the text has no credentials.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sentinel":
        return "sentinel", *_sentinel(url)
    place = rest.partition("?")[0]
    parts = urlsplit(f"redis://{rest}")
    if "@" in parts.path:
        raise ValueError("a / in a password is written as %2F")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    query.pop("decode_responses", None)  # what we read is bytes
    if scheme == "redis+socket":
        if not parts.path:
            raise ValueError("it has no path")
        query["db"] = query.pop("virtual_host", query.get("db", "0")).strip("/")
        # redis-py 4 knows no timeouts for these.
        kwargs = {key: value for key, value in _DEFAULTS.items() if key not in query and major > 4}
        return "server", f"unix://{place}?{urlencode(query)}", kwargs
    _port(parts)
    database = query.get("db", parts.path.strip("/")) or "0"
    if not database.isdecimal() or (scheme == "redis+cluster" and int(database)):
        allowed = "a cluster has database 0 only" if scheme == "redis+cluster" else "not a number"
        raise ValueError(f"database {database!r}: {allowed}")
    if "ssl_cert_reqs" in query:  # Celery's documents write the names of the ssl module
        query["ssl_cert_reqs"] = _CERT_REQS.get(query["ssl_cert_reqs"], query["ssl_cert_reqs"])
    kwargs = {key: value for key, value in _DEFAULTS.items() if key not in query}
    if query.get("ssl_cert_reqs") == "none":  # redis-py 6 refuses it together with its default
        kwargs["ssl_check_hostname"] = False
    kind, real = ("cluster", "redis") if scheme == "redis+cluster" else ("server", scheme)
    base = f"{real}://{place}"
    return kind, f"{base}?{urlencode(query)}" if query else base, kwargs


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:  # its text may be a piece of the password
        raise ValueError(
            "the port is not a number up to 65535 (a / in a password is written as %2F)"
        ) from None


def _sentinel(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    hosts: list[tuple[str, int]] = []
    kwargs: dict[str, Any] = dict(_DEFAULTS)
    service = ""
    for part in url.replace(",", ";").split(";"):
        split = urlsplit(part if "://" in part else f"sentinel://{part}")
        if "@" in split.path:
            raise ValueError("a / in a password is written as %2F")
        hosts.append((split.hostname or "localhost", _port(split) or 26379))
        path = split.path.strip("/")
        if path.isdecimal():
            kwargs["db"] = int(path)
        elif path:
            service = path
        if split.password:
            kwargs["password"] = unquote(split.password)
        if split.username:
            kwargs["username"] = unquote(split.username)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        service = query.get("master_name", service)
        if "db" in query:
            kwargs["db"] = int(query["db"])
    if not service:
        raise ValueError(
            "it does not say which master to ask Sentinel for: "
            "sentinel://host:26379/mymaster, or ?master_name=mymaster"
        )
    return hosts, {**kwargs, "service_name": service}
