"""Server-sent events: the parts of a page that may change, whenever they have."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import anyio
import orjson
from celery_clutch import ResultStore
from celery_clutch.errors import ClutchError, RunNotFound
from starlette.responses import StreamingResponse

LASTS = 300.0
"""Seconds after which a browser has to ask again, and is looked at again."""
PAUSE = 0.4
"""Seconds between two looks at a run, at least."""
SHARE = 4
"""A look that takes a second is followed by so many seconds without one."""
QUIET = 2.0
"""Seconds after which a run that runs is looked at though nothing was told: jobs that begin are no
news to the store."""
EVERY = 2.0
"""Seconds between two looks at a list of runs, of which no store tells."""

Look = Callable[[], Awaitable[str]]
"""The HTML of what may change."""


def response(events: AsyncIterator[bytes]) -> StreamingResponse:
    """*events* for an ``EventSource``."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def of_run(store: ResultStore, id: str, look: Look) -> AsyncIterator[bytes]:
    """An event whenever the run *id* has changed, as `ClutchResult.awatch` is told of it; also
    after its end, as it may be resumed."""
    news, until = _News(), time.monotonic() + LASTS
    due, missed = 0.0, False
    try:
        async with aclosing(store.watch_async(id)) as changes:
            async for changed in changes:
                now = time.monotonic()
                missed = missed or changed or now >= due + QUIET
                if now > until:
                    return
                if not missed or now < due:
                    continue
                try:
                    html = await look()
                except RunNotFound:
                    yield _event("gone", "")
                    return
                took = time.monotonic() - now
                due, missed = now + max(PAUSE, SHARE * took), False
                if (event := news.of(html)) is not None:
                    yield event
    except ClutchError as exc:  # the browser tries again
        yield _event("trouble", str(exc))


async def again_and_again(look: Look, seconds: float = EVERY) -> AsyncIterator[bytes]:
    """An event whenever what *look* finds has changed."""
    news, until = _News(), time.monotonic() + LASTS
    try:
        while time.monotonic() < until:
            before = time.monotonic()
            if (event := news.of(await look())) is not None:
                yield event
            await anyio.sleep(max(seconds, SHARE * (time.monotonic() - before)))
    except ClutchError as exc:
        yield _event("trouble", str(exc))


class _News:
    """Tells what differs from what was told before."""

    def __init__(self) -> None:
        self._last = ""
        self._since = 0.0

    def of(self, html: str) -> bytes | None:
        """An event, or nothing; now and then one that keeps the connection from being closed."""
        now = time.monotonic()
        if html != self._last:
            self._last, self._since = html, now
            return _event("look", html)
        if now - self._since > 15:
            self._since = now
            return b": still here\n\n"
        return None


def _event(name: str, data: str) -> bytes:
    # As JSON it is one line.
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
