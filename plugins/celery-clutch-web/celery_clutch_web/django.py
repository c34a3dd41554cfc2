"""Who is logged in at a Django site, for pages that are mounted beside it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user
from django.contrib.sessions.middleware import SessionMiddleware
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from starlette.requests import Request


def user_of(request: Request) -> Any:
    """The user of the session that the cookies of *request* name, or ``AnonymousUser``.

    It asks the database, so it is for an ``authorize`` that is no coroutine function. The log of
    actions names the user.
    """
    asked = HttpRequest()
    asked.COOKIES = dict(request.cookies)
    # No middleware of Django's has seen the request, and so nobody returns its connections.
    close_old_connections()
    try:
        SessionMiddleware(lambda _: HttpResponse()).process_request(asked)
        request.state.user = get_user(asked)
    finally:
        close_old_connections()
    return request.state.user
