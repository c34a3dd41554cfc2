"""Who may see the pages, and what every answer forbids the browser.

Three things stand before a request: where it comes from (`Guard.admits`), who sends it (`authorize`)
and, for one that changes something, whether it was sent from a page of the dashboard (`verify`).
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlsplit

from celery_clutch.errors import ConfigurationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

Answer = Literal["view", "steer", "forget"] | None
Authorize = Callable[[Request], "Answer | Awaitable[Answer]"]

COOKIE = "clutch_token"
FIELD = "token"
"""The field of every form that changes something."""

HEADERS = {
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What every answer has."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class Role(IntEnum):
    """What somebody may do; each includes those before."""

    VIEW = 1
    STEER = 2
    FORGET = 3


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        reason: for whoever sent it.
    """

    def __init__(self, reason: str, status: int = 403) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sends a request.

    Attributes:
        role: what they may do.
        name: for the log; where nobody says it, the address that they come from.
        seed: what their cookie has.
        known: they had the cookie before.
    """

    role: Role
    name: str
    seed: str
    known: bool


class Guard:
    """Lets requests in.

    Args:
        authorize: says what the sender of a request may do; None lets everybody do everything, and
            is for loopback only.
        loopback: only requests of this machine are let in, by names of this machine.
        hosts: the names that the page may be called by, without port; None for any.
        secret: signs the tokens of forms; processes that answer for one another need the same.

    Raises:
        ConfigurationError: neither *authorize* nor *loopback* is given.
    """

    def __init__(
        self,
        authorize: Authorize | None,
        *,
        loopback: bool,
        hosts: Collection[str] | None,
        secret: bytes | None,
    ) -> None:
        if authorize is None and not loopback:
            raise ConfigurationError(
                "dashboard() shows arguments and results, and cancels and deletes runs. Say who may "
                'do that with authorize=, a function that takes the request and returns "view", '
                '"steer", "forget" or None; or pass loopback=True, and only programs on this '
                "machine reach it"
            )
        self._authorize = authorize
        self._loopback = loopback
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._secret = secret or secrets.token_bytes(32)

    async def visitor(self, request: Request) -> Visitor:
        """Who sends *request*.

        Raises:
            Refused: they may see nothing.
            ValueError: ``authorize`` has answered something else than it should.
        """
        self._admit(request)
        role = Role.FORGET if self._authorize is None else await self._role(request)
        if role is None:
            raise Refused("You are not allowed to see this page.")
        seed = request.cookies.get(COOKIE, "")
        known = len(seed) == 43 and seed.isascii()
        return Visitor(role, _name(request), seed if known else secrets.token_urlsafe(32), known)

    def token(self, visitor: Visitor) -> str:
        """What the forms of *visitor* carry: only a page that was sent to them can know it."""
        return hmac.new(self._secret, visitor.seed.encode(), sha256).hexdigest()

    def verify(self, request: Request, visitor: Visitor, token: object) -> None:
        """Refuse a request that changes something and was not sent by a page of the dashboard.

        Raises:
            Refused: it comes from another origin, or its token is not right.
        """
        origin = request.headers.get("origin") or request.headers.get("referer") or ""
        host = request.headers.get("host", "").lower()
        if not host or _netloc(origin) != host:
            raise Refused("The request does not come from a page of this site.")
        wanted = self.token(visitor)
        given = token if isinstance(token, str) else ""
        if not visitor.known or not hmac.compare_digest(wanted.encode(), given.encode()):
            raise Refused("The form is too old, or not from here: load the page again.")

    def _admit(self, request: Request) -> None:
        """Refuse a request by where it comes from, and by the name it was sent to."""
        host = _hostname(request.headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Refused("This site is not known by that name.", 400)
        if not self._loopback:
            return
        client = request.client.host if request.client else ""
        # A proxy on this machine speaks for others, who are not here.
        forwarded = any(name in request.headers for name in _FORWARDED)
        if forwarded or not is_loopback(client):
            raise Refused("This page is for programs on its own machine only.")
        # A page elsewhere can let its name point here, and would be of the same origin then.
        if not is_loopback(host):
            raise Refused("This site is not known by that name.", 400)

    async def _role(self, request: Request) -> Role | None:
        assert self._authorize is not None
        if inspect.iscoroutinefunction(self._authorize):
            answer: Any = await self._authorize(request)
        else:
            answer = await run_in_threadpool(self._authorize, request)
            if inspect.isawaitable(answer):
                answer = await answer
        if answer is None:
            return None
        try:
            return Role[answer.upper()]
        except (AttributeError, KeyError):
            raise ValueError(
                f'authorize answered {answer!r}, which is not "view", "steer", "forget" or None'
            ) from None


def is_loopback(host: str) -> bool:
    """Whether *host*, a name or an address, is this machine for itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _netloc(url: str) -> str:
    """Host and port of *url*; "" where it has none, or is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _hostname(header: str) -> str:
    """The name in a ``Host`` header, without port and brackets."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _name(request: Request) -> str:
    """Who sends a request, as ``authorize`` or a middleware has left it."""
    user = getattr(request.state, "user", None) or request.scope.get("user")
    for attribute in ("display_name", "username", "name"):
        if isinstance(name := getattr(user, attribute, None), str) and name:
            return name
    if isinstance(user, str) and user:
        return user
    return request.client.host if request.client else "somebody"
