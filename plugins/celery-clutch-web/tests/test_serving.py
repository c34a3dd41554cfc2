"""Mounted in sites, as the README shows it, and served by ``celery clutch web``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from celery_clutch_web import dashboard

from .conftest import tags, until, visiting
from .shop import Shop

README = Path(__file__).resolve().parents[1] / "README.md"

CELERY = """
from celery import Celery

app = Celery("proj", task_cls="celery_clutch:ClutchTask", broker="memory://")
app.conf.clutch_store = "memory://"
"""
SETTINGS = """
from pathlib import Path

SECRET_KEY = "secret"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).with_name("db.sqlite3")}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIDDLEWARE = []
ROOT_URLCONF = "proj.urls"
USE_TZ = True
"""
URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("hello", lambda request: HttpResponse("hello of Django"))]
"""
SITE = """
import flask

site = flask.Flask("site")
site.secret_key = "secret"


@site.get("/hello")
def hello():
    flask.session["role"] = flask.request.args.get("role")
    return "hello of Flask"
"""


def block(name: str) -> str:
    found = re.search(rf"^<!-- {name} -->\n```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    assert found, name
    return found[1]


class Project:
    """A project in a folder, and programs that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
        self.environment = {**kept, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        (folder / "proj").mkdir()
        self.write("__init__", "")
        self.write("celery", CELERY)

    def write(self, name: str, text: str) -> None:
        (self.folder / "proj" / f"{name}.py").write_text(text)

    def run(self, *command: str, code: int = 0) -> str:
        found = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode == code, found.stderr
        return found.stdout + found.stderr

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)

    @contextmanager
    def served(self) -> Iterator[httpx.Client]:
        """A client of ``proj.asgi``."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ("-m", "uvicorn", "proj.asgi:application", "--port", str(port))
        with self.running(*command, "--log-level", "warning") as process:
            with httpx.Client(base_url=f"http://localhost:{port}", timeout=30) as client:

                def up() -> bool:
                    assert process.poll() is None
                    try:
                        client.get("/hello")
                    except httpx.TransportError:
                        return False
                    return True

                until(up)
                yield client


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_addresses_follow_the_place(shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), id="token-run", name="one").get(timeout=30)
    inner = Starlette(routes=[Mount("/deep", dashboard(shop.app, loopback=True))])
    site = Starlette(routes=[Mount("/very", inner)])
    with visiting(site, "/very/deep") as client:
        for page in ("/", "/runs", "/run?id=token-run"):
            answer = client.get(page)
            assert answer.status_code == 200
            for _, attributes in tags(answer.text):
                for name in ("href", "src", "action", "hx-get", "data-events"):
                    address = attributes.get(name)
                    assert address is None or address.startswith(("/very/deep/", "#"))
        answer = client.press("forget", "token-run")
        assert answer.status_code == 200
    with visiting(site) as client:
        assert client.get("/very/deep").headers["location"].endswith("/very/deep/")


def test_behind_a_proxy_that_takes_the_path_away(shop: Shop) -> None:
    made = dashboard(shop.app, loopback=True)

    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        await made(
            {**scope, "root_path": "/clutch", "path": "/clutch" + scope["path"]}, receive, send
        )

    with visiting(proxied) as client:
        answer = client.get("/runs")
        assert 'href="/clutch/runs"' in answer.text
        assert client.get("/static/app.css").headers["content-type"].startswith("text/css")


def test_in_starlette(project: Project) -> None:
    project.write("asgi", block("starlette"))
    with project.served() as client:
        assert client.get("/clutch/runs").status_code == 403
        assert client.get("/clutch/runs", headers={"x-user": "grace"}).status_code == 200


def test_in_django(project: Project) -> None:
    project.write("settings", SETTINGS)
    project.write("urls", URLS)
    project.write("asgi", block("django"))
    make = """
        import django
        django.setup()
        from django.contrib.auth import SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY
        from django.contrib.auth.models import User
        from django.contrib.sessions.backends.db import SessionStore
        from django.core.management import call_command
        call_command("migrate", verbosity=0)
        for name, staff in (("ada", True), ("guest", False)):
            user = User.objects.create_user(name, is_staff=staff)
            session = SessionStore()
            session[SESSION_KEY] = str(user.pk)
            session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
            session[HASH_SESSION_KEY] = user.get_session_auth_hash()
            session.save()
            print(session.session_key)
    """
    project.environment["DJANGO_SETTINGS_MODULE"] = "proj.settings"
    ada, guest = project.run("-c", textwrap.dedent(make)).split()
    with project.served() as client:
        assert client.get("/hello").text == "hello of Django"
        assert client.get("/clutch/runs").status_code == 403
        for session, status in ((ada, 200), (guest, 403), ("nonsense", 403)):
            answer = client.get("/clutch/runs", headers={"cookie": f"sessionid={session}"})
            assert answer.status_code == status
        shown = client.get("/clutch/runs", headers={"cookie": f"sessionid={ada}"}).text
        assert "Cancel" in shown
        assert "Forget" not in shown


def test_in_flask(project: Project) -> None:
    project.write("site", SITE)
    project.write("asgi", block("flask"))
    with project.served() as client:
        assert client.get("/clutch/runs").status_code == 403
        assert client.get("/hello?role=view").text == "hello of Flask"
        assert client.get("/clutch/runs").status_code == 200


# --- the command ------------------------------------------------------------------------------------


def test_the_command_serves_this_machine(project: Project) -> None:
    command = ("-m", "celery", "-A", "proj", "clutch", "web", "--port", "0")
    with project.running(*command) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert "There are no runs." in httpx.get(f"{url}runs").text
        elsewhere = httpx.get(f"{url}runs", headers={"host": "evil.example"})
        assert elsewhere.status_code == 400
    assert process.returncode == 0


def test_the_command_serves_others_only_those_who_may(project: Project) -> None:
    base = ("-m", "celery", "-A", "proj", "clutch", "web", "--port", "0", "--host", "0.0.0.0")
    assert "--authorize MODULE:FUNCTION" in project.run(*base, code=2)
    assert "--authorize proj.celery:nothing" in project.run(
        *base, "--authorize", "proj.celery:nothing", code=2
    )
    project.write("web", "def authorize(request):\n    return request.headers.get('x-role')\n")
    command = (*base, "--authorize", "proj.web:authorize", "--root-path", "/clutch")
    with project.running(*command) as process:
        assert process.stdout
        url = process.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        assert url.endswith("/clutch/")
        url = url.removesuffix("clutch/")  # which the proxy takes away
        assert httpx.get(f"{url}runs").status_code == 403
        answer = httpx.get(f"{url}runs", headers={"x-role": "view"})
        assert answer.status_code == 200
        assert 'href="/clutch/runs"' in answer.text


def test_workers_that_count_load_no_web_server(project: Project) -> None:
    loaded = "import sys, celery_clutch_web.recorder; print('starlette' in sys.modules)"
    assert project.run("-c", loaded).strip() == "False"


def test_the_readme_shows_pictures_that_are_there() -> None:
    for name in re.findall(r"\]\((\.\./[^)#]+)", README.read_text()):
        assert (README.parent / name).exists(), name
