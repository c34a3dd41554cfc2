"""Pages and pieces of pages, as HTML or as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Any, Protocol

import orjson
from celery_clutch.model import graph
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from . import text
from .security import COOKIE, FIELD, Guard, Visitor


class Shown(Protocol):
    """What a page shows."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that was let in.

    Attributes:
        request: itself.
        visitor: who sends it.
        base: where the dashboard is mounted; "" at the top.
    """

    request: Request
    visitor: Visitor
    base: str

    @property
    def wants_json(self) -> bool:
        """Whether the sender prefers JSON to HTML."""
        accepts = self.request.headers.get("accept", "")
        return "application/json" in accepts and "text/html" not in accepts

    def asked(self, name: str, default: str = "") -> str:
        """A parameter of the address."""
        return self.request.query_params.get(name, default)


class Answers:
    """Renders templates.

    Args:
        guard: makes the tokens of forms.
        title: of the pages.
    """

    def __init__(self, guard: Guard, title: str) -> None:
        self._guard = guard
        self._templates = text.environment()
        self._templates.globals.update(
            colours=tuple(graph.COLOURS),
            counts=graph.counts,
            overall=graph.overall,
            title=title,
            now=time.time,
            version=_version(),
            field=FIELD,
        )

    def page(
        self, visit: Visit, name: str, shown: Shown, status: int = 200, **more: Any
    ) -> Response:
        """A page, in the form that the sender wants."""
        if visit.wants_json:
            return self.json(visit, shown.to_dict(), status)
        return self._html(visit, self.render(visit, name, page=shown, **more), status)

    def piece(self, visit: Visit, name: str, data: Mapping[str, Any], **more: Any) -> Response:
        """A part of a page that was asked for later."""
        if visit.wants_json:
            return self.json(visit, data)
        return self._html(visit, self.render(visit, name, **more), 200)

    def render(self, visit: Visit, name: str, **values: Any) -> str:
        """A template."""
        template = self._templates.get_template(name)
        values = {
            "base": visit.base,
            "path": visit.request.url.path.removeprefix(visit.base),
            "query": visit.request.url.query,
            "role": visit.visitor.role,
            "visitor": visit.visitor.name,
            "token": self._guard.token(visit.visitor),
            "streamed": False,
            **values,
        }
        return template.render(values)

    def json(self, visit: Visit, data: Any, status: int = 200) -> Response:
        """*data* as JSON."""
        response = Response(orjson.dumps(data), status, media_type="application/json")
        return self._finished(visit, response)

    def _html(self, visit: Visit, html: str, status: int) -> Response:
        return self._finished(visit, HTMLResponse(html, status))

    def _finished(self, visit: Visit, response: Response) -> Response:
        response.headers["cache-control"] = "no-store"
        response.headers["vary"] = "Accept"
        if not visit.visitor.known:
            response.set_cookie(
                COOKIE,
                visit.visitor.seed,
                path=visit.base or "/",
                secure=visit.request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return response


def _version() -> str:
    """Names the static files, so that browsers can keep them."""
    found = sha256()
    folder = resources.files("celery_clutch_web") / "static"
    for name in ("app.css", "app.js", "theme.js", "charts.js"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()[:12]
