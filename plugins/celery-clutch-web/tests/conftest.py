"""An app whose runs are looked at, the pages as a client sees them, and as a browser does."""

from __future__ import annotations

import html
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any, NoReturn, TypeVar

import httpx
import pytest
import uvicorn
from celery import Celery
from celery_clutch.testing import embedded

from celery_clutch_web import dashboard

from .shop import Shop

T = TypeVar("T")

PATIENCE = 60.0


def until(condition: Callable[[], T], what: Callable[[], object] = str) -> T:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def missing() -> Callable[[str, object], NoReturn]:
    """Call it with the name of a service and why it cannot be used: skips, or fails in CI."""

    def say(service: str, reason: object) -> NoReturn:
        message = f"{service} is missing: {reason}"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return say


@pytest.fixture
def shop() -> Iterator[Shop]:
    """Tasks on a worker in this process."""
    made = Shop()
    with embedded(made.app):
        try:
            yield made
        finally:
            made.go_on.set()


@pytest.fixture
def app(shop: Shop) -> Celery:
    return shop.app


@contextmanager
def served(site: Any) -> Iterator[str]:
    """The address at which *site* is served, by a server in this process."""
    options = {"log_level": "warning", "lifespan": "off", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(site, port=0, **options))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        until(lambda: server.started)
        yield f"http://localhost:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(PATIENCE)


class Client(httpx.Client):
    """A client on this machine, that can press buttons."""

    def page(self, path: str, status: int = 200) -> str:
        """The text of a page, without its tags."""
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return words(answer.text)

    def json(self, path: str, status: int = 200) -> Any:
        """A page as JSON."""
        answer = self.get(path, headers={"accept": "application/json"})
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    @property
    def origin(self) -> str:
        return str(self.base_url.copy_with(path="")).rstrip("/")

    def token(self) -> str:
        """What a form carries."""
        found = re.search(r'name="token" value="(\w+)"', self.get("/run?id=token-run").text)
        assert found
        return found[1]

    def press(self, verb: str, *runs: str, **more: Any) -> httpx.Response:
        """Send the form of a page of the site."""
        data = {"verb": verb, "id": list(runs), "token": self.token(), **more}
        return self.post("/runs/steer", data=data, headers={"origin": self.origin})


@contextmanager
def visiting(site: Any, path: str = "") -> Iterator[Client]:
    """A client of *site*, which is served."""
    with served(site) as address, Client(base_url=address + path, timeout=30) as client:
        yield client


@pytest.fixture
def site(shop: Shop) -> Iterator[Client]:
    """The pages, for a program on this machine."""
    shop.engage(shop.fetch.s(0), id="token-run").get(timeout=30)
    with visiting(dashboard(shop.app, loopback=True)) as client:
        yield client


def words(text: str) -> str:
    """The text of a page, without its tags, and with single blanks."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every tag of a page, with its attributes."""
    parser = _Tags()
    parser.feed(text)
    return parser.found
