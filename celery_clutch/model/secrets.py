"""Passwords in settings, and texts that are not to have a piece of one. Pure.

A setting is to be a URL, but it may be anything: a password with an unquoted ``@`` or ``/``, no
scheme, two of them. Libraries quote what they do not understand in their errors, so texts of theirs
are looked through for pieces of what may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

PIECE = 4
"""Characters of a password that are a piece of it."""
MASK = "***"

_WORDS = (
    "password username required optional cert_none ssl_cert_reqs master_name virtual_host db=0 "
    "socket_connect_timeout redis rediss sentinel amqp celery kombu"
)
"""What may be in any URL or error."""

_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_SEVERAL = re.compile(r"[;,]\s*(?=(?:rediss?|sentinel|(?:py)?amqps?)://)", re.IGNORECASE)
_USER = re.compile(r"[\w.+-]*")
_HOST = re.compile(r"(\[[\w:.%]*\]|[^:\[\]]*)(:\d*)?")


def without_secrets(url: str) -> str:
    """*url* for people to read: without user, password and query.

    Where it cannot be told what is a password, because one has an unquoted ``?`` in it or a query
    has an ``@``, nothing but the scheme is shown.
    """
    scheme, place = _shown(url)
    return f"{scheme}://{place}"


def masked(text: str, settings: Iterable[str]) -> str:
    """*text* without the pieces of passwords in *settings*.

    A piece that is in what everybody may know of the settings as well, such as a host, stays.
    """
    secret: set[str] = set()
    public = _pieces(_WORDS)
    for setting in settings:
        for url in _SEVERAL.split(setting):
            known, unknown = _divided(url)
            for part in known:
                public |= _pieces(part)
            for part in unknown:
                for form in _forms(part):
                    secret |= _pieces(form)
    found = secret - public
    lower, hide = text.lower(), [False] * len(text)
    for start in range(len(lower) - PIECE + 1):
        if lower[start : start + PIECE] in found:
            hide[start : start + PIECE] = [True] * PIECE
    if not any(hide) or len(lower) != len(text):
        return MASK if any(hide) else text
    shown: list[str] = []
    for char, hidden in zip(text, hide, strict=True):
        if not hidden:
            shown.append(char)
        elif not shown or shown[-1] != MASK:
            shown.append(MASK)
    return "".join(shown)


def _shown(url: str) -> tuple[str, str]:
    """The scheme of *url* and where that leads; "..." for what may be a piece of a password."""
    match = _SCHEME.match(url)
    scheme, rest = (match[1], url[match.end() :]) if match else ("...", url)
    place, _, query = rest.partition("?")
    place = place.rpartition("@")[2]
    netloc = place.partition("/")[0]
    hosts = all(map(_HOST.fullmatch, re.split("[;,]", netloc)))
    if "@" in query or "#" in rest or not hosts:
        place = "..."
    return scheme, place


def _divided(url: str) -> tuple[list[str], list[str]]:
    """What everybody may know of *url*, and what they may not."""
    match = _SCHEME.match(url)
    if match is None and not re.search("[@?#]", url):
        return [url], []  # the name of a module, or of a backend
    scheme, place = _shown(url)
    rest = url[match.end() :] if match else url
    if place == "...":
        return [scheme], [rest]
    before, _, after = rest.partition("?")
    credentials = before.rpartition("@")[0]
    user, colon, password = credentials.partition(":")
    if match is None or not colon or not _USER.fullmatch(user):
        user, password = "", credentials
    return [scheme, place, user], [password, after]


def _forms(secret: str) -> Iterable[str]:
    """The forms in which *secret* may be quoted."""
    plain = unquote(secret)
    for form in (secret, plain):
        yield from (form, repr(form)[1:-1], quote(form, safe=""))


def _pieces(text: str) -> set[str]:
    lower = text.lower()  # as hosts are written
    return {lower[start : start + PIECE] for start in range(len(lower) - PIECE + 1)}
