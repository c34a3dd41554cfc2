"""examples/web_progress: the page in a browser, on an embedded worker and on a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .conftest import ROOT, answers, free_address, needs

T = TypeVar("T")

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

    def serve(self, url: str, *options: str) -> subprocess.Popen[bytes]:
        """Start the site, and wait until it answers at *url*."""
        served = self.start("gallery.py", "--port", url.rpartition(":")[2], *options)

        def up() -> bool:
            assert served.poll() is None, "the site has ended"
            return answers(url)

        until(up)
        return served

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
def processes(tmp_path: Path) -> Iterator[Processes]:
    needs("starlette", "uvicorn")
    made = Processes(tmp_path)
    yield made
    made.stop()


@pytest.fixture(params=["embedded", "redis"])
def site(request: pytest.FixtureRequest, processes: Processes) -> str:
    """The address of the running site."""
    url = free_address()
    options: list[str] = []
    if request.param == "redis":
        broker = request.getfixturevalue("broker")
        options = ["--broker", broker]
        worker = ("-m", "celery", "-A", "gallery", "worker", "-P", "threads", "-c", "4")
        processes.start(*worker, "--without-gossip", "--without-mingle", WEB_BROKER=broker)
    processes.serve(url, *options)
    return url


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
    url = free_address()
    served = processes.serve(url)
    served.send_signal(signal.SIGINT)
    served.wait(30)
    assert "Traceback" not in (processes.logs / "0.log").read_text()
