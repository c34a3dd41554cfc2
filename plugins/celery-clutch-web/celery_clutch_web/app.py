"""The application: which address shows what."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import parse_qs

from celery import Celery
from celery_clutch import ResultStore
from celery_clutch.errors import ClutchError, RunNotFound, StoreUnavailable
from celery_clutch.extend.plugins import runtime
from kombu.exceptions import OperationalError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import actions, listing, live, overview, run, tasks
from .answers import Answers, Visit
from .buckets import PERIODS
from .lately import Lately
from .security import FIELD, HEADERS, Authorize, Guard, Refused

logger = logging.getLogger(__name__)

LOOK = 4.0
"""Seconds between two looks at how all runs are doing."""
WORKERS = 10.0
"""Seconds for which an answer of the workers will do."""
FORM = 500_000
"""Bytes of a form."""
BRANCHES = 200
"""Jobs of a wide step that are listed."""


def dashboard(
    app: Celery,
    *,
    authorize: Authorize | None = None,
    loopback: bool = False,
    hosts: Collection[str] | None = None,
    secret: str | bytes | None = None,
    title: str = "",
) -> ASGIApp:
    """The pages of the runs of *app*, as an ASGI application to be mounted or served.

    Args:
        app: the Celery app.
        authorize: takes the request, and returns what its sender may do: ``"view"``, ``"steer"``
            (resume and cancel, too), ``"forget"`` (everything), or None. May be a coroutine
            function; others are called in a thread.
        loopback: answer programs on this machine only. Without *authorize* they may do everything.
        hosts: the names that the site may be called by, without port; None for any.
        secret: signs the tokens of forms. Several processes that serve the pages need the same;
            by default each has its own.
        title: beside the name of the page; by default the name of the app.

    Raises:
        ConfigurationError: there is neither *authorize* nor *loopback*.
    """
    key = secret.encode() if isinstance(secret, str) else secret
    guard = Guard(authorize, loopback=loopback, hosts=hosts, secret=key)
    return Dashboard(app, guard, title or app.main or "")


class Dashboard:
    """The application. See `dashboard`."""

    def __init__(self, app: Celery, guard: Guard, title: str) -> None:
        self.app = app
        self._guard = guard
        self._answers = Answers(guard, title)
        # All who look share what was looked at just now.
        longest = overview.Longest(app)
        self._overviews = Lately(lambda span: overview.look(app, span, longest), LOOK / 2)
        self._workers = Lately(lambda _: overview.ask_workers(app), WORKERS)
        static = StaticFiles(packages=[("celery_clutch_web", "static")])
        self._site = Starlette(
            routes=[
                Route("/", self._page(self.overview)),
                Route("/events", self._page(self.overview_events)),
                Route("/workers", self._page(self.workers)),
                Route("/task", self._page(self.task)),
                Route("/task/events", self._page(self.task_events)),
                Route("/runs", self._page(self.runs)),
                Route("/runs/events", self._page(self.runs_events)),
                Route("/runs/preview", self._page(self.preview)),
                Route("/runs/steer", self._page(self.steer), methods=["POST"]),
                Route("/run", self._page(self.run)),
                Route("/run/events", self._page(self.run_events)),
                Route("/run/job", self._page(self.job)),
                Route("/run/branches", self._page(self.branches)),
                Route("/run/arguments", self._page(self.arguments)),
                Route("/run/result", self._page(self.result)),
                Route("/run/data", self._page(self.data)),
                Route("/run/why", self._page(self.why)),
                Mount("/static", static),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._site(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        static = scope["path"].removeprefix(scope.get("root_path", "")).startswith("/static/")
        request = Request(scope, receive)

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS, *(_KEEP if static else ())]
            await send(message)

        try:
            visitor = await self._guard.visitor(request)
        except Refused as refused:
            response = PlainTextResponse(refused.reason, refused.status)
            await response(scope, receive, protected)
            return
        scope["clutch"] = Visit(request, visitor, scope.get("root_path", "").rstrip("/"))
        await self._site(scope, receive, protected)

    @property
    def _store(self) -> ResultStore:
        return runtime(self.app).store

    # --- pages ----------------------------------------------------------------------------------

    async def overview(self, visit: Visit) -> Response:
        page = await run_in_threadpool(self._overviews, _span(visit))
        return self._answers.page(visit, "overview.html", page)

    async def overview_events(self, visit: Visit) -> Response:
        span = _span(visit)

        def look() -> str:
            page = self._overviews(span)
            return self._answers.render(visit, "overview_live.html", page=page, streamed=True)

        return live.response(live.again_and_again(lambda: run_in_threadpool(look), LOOK))

    async def workers(self, visit: Visit) -> Response:
        page = await run_in_threadpool(self._workers, "")
        return self._answers.piece(visit, "workers.html", page.to_dict(), page=page)

    async def task(self, visit: Visit) -> Response:
        page = await run_in_threadpool(tasks.look, self.app, visit.asked("name"), _span(visit))
        return self._answers.page(visit, "task.html", page)

    async def task_events(self, visit: Visit) -> Response:
        name, span = visit.asked("name"), _span(visit)

        def look() -> str:
            page = tasks.look(self.app, name, span)
            return self._answers.render(visit, "task_live.html", page=page, streamed=True)

        return live.response(live.again_and_again(lambda: run_in_threadpool(look), LOOK))

    async def runs(self, visit: Visit) -> Response:
        filters = listing.Filters.of(visit.request.query_params)
        page = await run_in_threadpool(
            lambda: listing.page(self._store, filters, visit.asked("cursor"))
        )
        return self._answers.page(visit, "runs.html", page, filters=filters, **_listed(visit))

    async def runs_events(self, visit: Visit) -> Response:
        filters = listing.Filters.of(visit.request.query_params)
        cursor = visit.asked("cursor")

        def look() -> str:
            page = listing.page(self._store, filters, cursor)
            values = {"page": page, "filters": filters, "streamed": True, **_listed(visit)}
            return self._answers.render(visit, "runs_live.html", **values)

        return live.response(live.again_and_again(lambda: run_in_threadpool(look)))

    async def run(self, visit: Visit) -> Response:
        page = await run_in_threadpool(run.look, self.app, visit.asked("id"))
        done = actions.ACTIONS.get(visit.asked("done"))
        return self._answers.page(visit, "run.html", page, done=done)

    async def run_events(self, visit: Visit) -> Response:
        id = visit.asked("id")

        def look() -> str:
            page = run.look(self.app, id)
            return self._answers.render(visit, "run_live.html", page=page, streamed=True)

        return live.response(live.of_run(self._store, id, lambda: run_in_threadpool(look)))

    # --- pieces of the page of a run --------------------------------------------------------------

    async def job(self, visit: Visit) -> Response:
        id, at = visit.asked("id"), visit.asked("at")
        job = await run_in_threadpool(run.job, self.app, id, at)
        return self._answers.piece(visit, "job.html", job.to_dict(), job=job)

    async def branches(self, visit: Visit) -> Response:
        id, at = visit.asked("id"), visit.asked("at")
        nodes, total = await run_in_threadpool(run.branches, self.app, id, at, BRANCHES)
        data = {"total": total, "jobs": [node.to_dict() for node in nodes]}
        return self._answers.piece(
            visit, "branches.html", data, id=id, at=at, nodes=nodes, total=total
        )

    async def arguments(self, visit: Visit) -> Response:
        id, at = visit.asked("id"), visit.asked("at")
        text = await run_in_threadpool(run.arguments, self.app, id, at)
        return self._answers.piece(visit, "value.html", {"arguments": text}, value=text)

    async def result(self, visit: Visit) -> Response:
        id, at = visit.asked("id"), visit.asked("at")
        text = await run_in_threadpool(run.result, self.app, id, at)
        return self._answers.piece(visit, "value.html", {"result": text}, value=text)

    async def data(self, visit: Visit) -> Response:
        text = await run_in_threadpool(run.data, self.app, visit.asked("id"))
        return self._answers.piece(visit, "value.html", {"data": text}, value=text)

    async def why(self, visit: Visit) -> Response:
        reasons = await run_in_threadpool(run.why_asked, self.app, visit.asked("id"))
        data = {"why": [reason.to_dict() for reason in reasons]}
        return self._answers.piece(
            visit, "reasons.html", data, reasons=reasons, id=visit.asked("id")
        )

    # --- actions ----------------------------------------------------------------------------------

    async def preview(self, visit: Visit) -> Response:
        action = actions.allowed(visit.asked("verb"), visit.visitor)
        filters = listing.Filters.of(visit.request.query_params)
        ids = visit.request.query_params.getlist("id")
        page = await run_in_threadpool(
            lambda: actions.preview(self._store, action, ids, filters, visit.asked("cursor"))
        )
        return self._answers.page(visit, "preview.html", page, filters=filters)

    async def steer(self, visit: Visit) -> Response:
        form = await _form(visit.request)
        self._guard.verify(visit.request, visit.visitor, form.get(FIELD, [""])[0])
        action = actions.allowed(form.get("verb", [""])[0], visit.visitor)
        runs = list(dict.fromkeys(form.get("id", [])))
        back = form.get("back") == ["run"]
        outcomes = await run_in_threadpool(actions.perform, self.app, action, runs, visit.visitor)
        page = actions.Done(action, outcomes)
        if back and not visit.wants_json and page.all_done:
            return RedirectResponse(page.run_page(visit.base), 303)
        return self._answers.page(visit, "done.html", page)

    # --- private ----------------------------------------------------------------------------------

    def _page(
        self, answer: Callable[[Visit], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """*answer* for Starlette; trouble that is to be expected is a page that says so."""

        async def endpoint(request: Request) -> Response:
            visit: Visit = request.scope["clutch"]
            # The request of the guard has no part in the routing.
            visit = Visit(request, visit.visitor, visit.base)
            try:
                return await answer(visit)
            except Refused as exc:
                return self._trouble(visit, exc.reason, exc.status)
            except RunNotFound as exc:
                return self._trouble(visit, str(exc), 404)
            except listing.BadFilter as exc:
                return self._trouble(visit, str(exc), 400)
            except LookupError as exc:
                return self._trouble(visit, str(exc), 404)
            except (StoreUnavailable, OperationalError) as exc:
                return self._trouble(visit, str(exc) or repr(exc), 503)
            except ClutchError as exc:
                logger.exception("%s could not be shown", request.url.path)
                return self._trouble(visit, str(exc), 500)
            except HTTPException as exc:
                return self._trouble(visit, exc.detail, exc.status_code)

        return endpoint

    def _trouble(self, visit: Visit, reason: str, status: int) -> Response:
        return self._answers.page(visit, "trouble.html", _Trouble(reason), status)


async def _form(request: Request) -> dict[str, list[str]]:
    """The fields of a form.

    Raises:
        Refused: it is too long, or none.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM:
            raise Refused("The form is too long.", 413)
    try:
        return parse_qs(body.decode("ascii"), max_num_fields=listing.MOST + 10)
    except ValueError:
        raise Refused("The form cannot be read.", 400) from None


class _Trouble:
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def to_dict(self) -> dict[str, Any]:
        return {"error": self.reason}


def _span(visit: Visit) -> str:
    span = visit.asked("span", "hour")
    if span not in PERIODS:
        raise Refused(f"A time is one of {', '.join(PERIODS)}.", 400)
    return span


def _listed(visit: Visit) -> dict[str, Any]:
    return {"cursor": visit.asked("cursor"), "most": listing.MOST, "count": listing.PAGE}


def _encoded(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode()


_HEADERS = [_encoded(name, value) for name, value in HEADERS.items()]
_KEEP = [(b"cache-control", b"public, max-age=86400")]
