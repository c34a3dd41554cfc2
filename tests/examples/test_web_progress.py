"""examples/web_progress: the page in a browser, on an embedded worker and on a real one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import redis

from .conftest import ROOT, database

T = TypeVar("T")
Missing = Callable[[str, object], NoReturn]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

HERE = ROOT / "examples" / "web_progress"
WAIT = 90.0


def until(condition: Callable[[], T], what: object = "") -> T:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)
    return value


class Processes:
    """Programs that run beside the test; what they say is shown when it fails."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.environment = {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.logs / f"{len(self.running)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=HERE,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    def stop(self) -> list[int]:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in sorted(self.logs.iterdir()):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-5000:]}")
        return [process.returncode for process in self.running]


@pytest.fixture
def processes(missing: Missing, tmp_path: Path) -> Iterator[Processes]:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as exc:
        pytest.skip(f"the web server of examples/web_progress is not installed: {exc}")
    made = Processes(tmp_path)
    yield made
    made.stop()


@pytest.fixture(params=["embedded", "redis"])
def site(request: pytest.FixtureRequest, missing: Missing, processes: Processes) -> Iterator[str]:
    """The address of the running site."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    if request.param == "embedded":
        served = processes.start("gallery.py", "--port", str(port))
        until(lambda: answers(url, served))
        yield url
        return
    server = os.environ.get("CLUTCH_TEST_REDIS", "redis://localhost:6379").rstrip("/")
    broker = f"{server}/{database()}"
    client = redis.Redis.from_url(broker, socket_connect_timeout=2)
    problem: object = None
    try:
        client.ping()
    except redis.RedisError as exc:
        problem = exc
    if problem:
        missing(f"Redis at {broker}", problem)
    client.flushdb()
    served = processes.start("gallery.py", "--port", str(port), "--broker", broker)
    worker = ("-m", "celery", "-A", "gallery", "worker", "-P", "threads", "-c", "4")
    processes.start(*worker, "--without-gossip", "--without-mingle", WEB_BROKER=broker)
    until(lambda: answers(url, served))
    yield url
    processes.stop()
    client.flushdb()
    client.close()


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the site has ended"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except urllib.error.URLError:
        return False


@pytest.fixture(scope="module")
def browser(missing: Missing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, driven by its own driver; nothing is downloaded."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        missing("Chromium", "the programs chromium and chromedriver are not installed")
    try:
        from selenium import webdriver
    except ImportError as exc:
        pytest.skip(f"selenium is not installed: {exc}")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=900,700",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()


class Page:
    """What the page shows."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def __getattr__(self, name: str) -> str:
        return self.browser.execute_script(
            "return document.getElementById(arguments[0]).innerText", name
        )

    def __str__(self) -> str:
        return self.browser.execute_script("return document.body.innerText")

    @property
    def percent(self) -> int:
        """Where the bar is."""
        script = "return document.querySelector('[role=progressbar]').getAttribute('aria-valuenow')"
        return int(self.browser.execute_script(script))

    def width(self, name: str) -> str:
        return self.browser.execute_script(
            "return document.getElementById(arguments[0]).style.width", name
        )

    def press(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def photos(self, number: int) -> None:
        field = self.browser.find_element("name", "photos")
        field.clear()
        field.send_keys(str(number))

    def picture(self, name: str) -> None:
        """Keep a picture, where somebody wants to look at it."""
        if directory := os.environ.get("WEB_PROGRESS_PICTURES"):
            self.browser.save_screenshot(f"{directory}/{name}.png")


def test_the_bar_follows_the_clutch_to_its_end(site: str, browser: Any) -> None:
    browser.get(site)
    page = Page(browser)
    assert (page.state, page.percent) == ("READY", 0)
    page.photos(30)
    page.press("[type=submit]")

    until(lambda: page.state == "RUNNING" and 0 < page.percent < 100, page)
    assert page.name == "gallery of 30"
    until(lambda: int(page.trying) > 0, page)
    assert "is locked" in page.trouble
    until(lambda: "jobs/s" in page.rate and page.left.endswith(" s"), page)
    page.picture("running")

    until(lambda: page.percent == 100, page)
    assert page.state == "SUCCEEDED"
    assert (page.jobs, page.trying, page.trouble) == ("32 of 32", "0", "")
    assert (page.width("done"), page.width("failing")) == ("100%", "0%")
    assert page.clock == "Took"
    page.picture("done")

    browser.refresh()  # the address names the run
    until(lambda: page.percent == 100, page)
    assert page.name == "gallery of 30"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("site", ["embedded"], indirect=True)
def test_cancel_and_resume(site: str, browser: Any) -> None:
    browser.get(site)
    page = Page(browser)
    page.photos(60)
    page.press("[type=submit]")
    until(lambda: 0 < page.percent < 100, page)
    page.press("#cancel")
    until(lambda: page.state == "CANCELLED", page)
    assert page.percent < 100
    page.picture("cancelled")
    page.press("#resume")
    until(lambda: page.percent == 100, page)
    assert page.state == "SUCCEEDED"


@pytest.mark.parametrize("site", ["embedded"], indirect=True)
def test_a_run_that_is_not_there(site: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{site}/runs/nonesuch", timeout=30)
    assert caught.value.code == 404


def test_the_site_stops_when_it_is_told_to(processes: Processes) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    served = processes.start("gallery.py", "--port", str(port))
    until(lambda: answers(url, served))
    served.send_signal(signal.SIGINT)
    served.wait(30)
    assert "Traceback" not in (processes.logs / "0.log").read_text()
