"""The pages in Chromium: each page, each action, updates that arrive, both themes, two widths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from celery_clutch import ClutchResult, State, parallel
from selenium.common.exceptions import StaleElementReferenceException
from starlette.applications import Starlette
from starlette.routing import Mount

from celery_clutch_web import dashboard, recorder

from .conftest import served, until
from .shop import Shop
from .test_security import MARKUP

pytestmark = pytest.mark.timeout(240)

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


class Browser:
    """Chromium, and what is on its page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.base = ""

    def look(self, size: str = "wide", theme: str = "light") -> None:
        """Have a window of this size, on a system of this theme."""
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def get(self, path: str) -> None:
        self.driver.get(self.base + path)

    @property
    def path(self) -> str:
        return str(self.driver.current_url.removeprefix(self.base))

    @property
    def text(self) -> str:
        return " ".join(self.run("return document.querySelector('main').innerText").split())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def find(self, selector: str) -> Any:
        return until(lambda: self.all(selector), lambda: f"{selector} in {self.text}")[0]

    def press(self, selector: str, text: str = "") -> None:
        """Press what *selector* finds, and says *text*."""

        def pressed() -> bool:
            try:
                for each in self.all(selector):
                    if text in each.text:
                        each.click()
                        return True
            except StaleElementReferenceException:  # an update has arrived meanwhile
                pass
            return False

        until(pressed, lambda: f"{selector} {text} in {self.text}")

    def type(self, keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()

    def says(self, *texts: str) -> None:
        """Wait until the page says all of *texts*."""
        until(lambda: all(text in self.text for text in texts), lambda: f"{texts} in {self.text}")

    def live(self) -> None:
        """Wait until the page is told what happens."""
        until(lambda: self.run("return document.getElementById('live').dataset.state") == "on")

    def errors(self) -> list[str]:
        """What the console complains about since it was asked last."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        return [each for each in found if "net::ERR_INCOMPLETE_CHUNKED_ENCODING" not in each]

    def picture(self, name: str) -> None:
        """Keep a picture, where somebody wants to look at it."""
        if directory := os.environ.get("CLUTCH_WEB_PICTURES"):
            self.driver.save_screenshot(f"{directory}/{name}.png")


@pytest.fixture(scope="module")
def chromium(
    missing: Callable[..., NoReturn], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium, driven by its own driver; nothing is downloaded."""
    from selenium import webdriver

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        missing("Chromium", "the programs chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile: Path = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_page_load_timeout(60)
    yield Browser(opened)
    opened.quit()


@pytest.fixture
def browser(chromium: Browser, shop: Shop) -> Iterator[Browser]:
    """A browser of the pages, which are mounted somewhere in a site."""
    site = Starlette(routes=[Mount("/ops/clutch", dashboard(shop.app, loopback=True))])
    with served(site) as address:
        chromium.base = f"{address}/ops/clutch"
        chromium.look()
        chromium.get("/runs")
        chromium.run("localStorage.clear()")
        chromium.errors()
        yield chromium
        chromium.get("/static/icon.svg")  # and no stream is left open


@pytest.fixture
def runs(shop: Shop) -> None:
    """Runs in every state."""
    shop.failed("bad", MARKUP, name="prints of a roll", tags=["nightly"])
    shop.engage(parallel(shop.fetch.s(n) for n in range(40)), id="wide", name="wide one").get(30)
    shop.engage(shop.fetch.s(1), shop.scan.s(3600), shop.fetch.s(2), id="later", name="later one")
    shop.engage(shop.publish.s(), shop.fetch.s(1), id="outer", name="outer one")
    until(lambda: ClutchResult("later", shop.app).status().failing)
    recorder.flush()


PAGES = {
    "overview": "/",
    "runs": "/runs",
    "run": "/run?id=bad",
    "retry": "/run?id=later",
    "wide": "/run?id=wide",
    "task": "/task?name=shop.fetch",
    "preview": "/runs/preview?verb=forget&id=bad&id=wide",
    "trouble": "/run?id=nowhere",
}


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_breaks_no_rule(browser: Browser, size: str, theme: str) -> None:
    browser.look(size, theme)
    for name, path in PAGES.items():
        browser.get(path)
        if browser.all("[data-events]"):
            browser.live()
        browser.picture(f"{name}-{size}-{theme}")
        width, window = browser.run(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert width <= window == SIZES[size][0], name
        # What the policy of the page forbids would be here, too.
        errors = browser.errors()
        assert [each for each in errors if "404" not in each or name != "trouble"] == [], name
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    (red, *_) = background.removeprefix("rgb(").split(",")
    assert (int(red) < 60) is (theme == "dark")


@pytest.mark.usefixtures("runs")
def test_charts_are_drawn(browser: Browser) -> None:
    browser.get("/")
    for figure in ("#chart-runs", "#chart-jobs"):
        browser.find(f"{figure} canvas")
        drawn = browser.run(
            "const c = document.querySelector(arguments[0] + ' canvas');"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)",
            figure,
        )
        assert drawn
    browser.says("embedded@localhost", "shop.fetch", "Waiting longest")


def test_the_theme_can_be_chosen_and_is_kept(browser: Browser) -> None:
    def background() -> str:
        return str(browser.run("return getComputedStyle(document.body).backgroundColor"))

    browser.get("/runs")
    light = background()
    browser.press("#theme")
    dark = background()
    assert dark != light
    browser.get("/")
    assert background() == dark
    browser.type("t")
    assert background() == light


def test_runs_appear_in_the_list_and_change(browser: Browser, shop: Shop) -> None:
    browser.get("/runs")
    browser.says("There are no runs.")
    browser.live()
    run = shop.engage(shop.fetch.s(1), shop.wait.s(), name="a new one")
    browser.says("a new one", "running", "1/2")
    browser.press("input[name=id]")
    shop.go_on.set()
    run.get(timeout=30)
    browser.says("succeeded", "2/2")
    assert browser.find("input[name=id]").is_selected()  # updates leave alone what people did
    browser.says("1 chosen")


def test_a_page_that_nobody_sees_holds_no_connection(browser: Browser, shop: Shop) -> None:
    def turn(state: str) -> None:
        browser.run(
            "Object.defineProperty(document, 'visibilityState', {value: arguments[0], "
            "configurable: true}); document.dispatchEvent(new Event('visibilitychange'))",
            state,
        )

    browser.get("/runs")
    browser.live()
    turn("hidden")
    assert browser.find("#live").text == "paused"
    shop.engage(shop.fetch.s(1), name="meanwhile").get(timeout=30)
    turn("visible")
    browser.live()
    browser.says("meanwhile")


def test_a_run_that_is_forgotten_is_gone(browser: Browser, shop: Shop) -> None:
    run = shop.failed()
    browser.get("/run?id=bad")
    browser.live()
    run.forget()
    until(lambda: browser.find("#live").text == "this run is gone")


def test_a_run_is_followed_to_its_end(browser: Browser, shop: Shop) -> None:
    run = shop.engage(shop.fetch.s(1), shop.wait.s(), shop.fetch.s(2), id="live", name="live one")
    browser.get("/run?id=live")
    browser.live()
    browser.says("1 shop.wait running", "Done 1 of 3")
    shop.go_on.set()
    run.get(timeout=30)
    browser.says("live one succeeded", "Done 3 of 3", "2 shop.fetch done")
    assert browser.errors() == []


def test_a_failure_arrives_with_its_countdown(browser: Browser, shop: Shop) -> None:
    shop.engage(shop.wait.s(), shop.scan.s(3600), id="later")
    browser.get("/run?id=later")
    browser.live()
    browser.says("0 shop.wait running")
    shop.go_on.set()
    browser.says("Next attempts in ", "1 shop.scan", "ConnectionError the scanner is busy")
    before = browser.find("time[data-countdown]").text
    until(lambda: browser.find("time[data-countdown]").text != before)


@pytest.mark.usefixtures("runs")
def test_a_job_is_looked_at(browser: Browser) -> None:
    browser.get("/run?id=bad")
    browser.press("button.box.job", "shop.store")
    browser.says("Attempts", "Traceback (most recent call last)", "OSError")
    assert MARKUP not in browser.find("#arguments").text
    browser.press("#arguments button")
    until(lambda: "alert(1)" in browser.find("#arguments").text)
    browser.press("button.box.job", "shop.fetch")
    browser.press("#result button")
    until(lambda: browser.find("#result").text == "1")
    browser.type("\ue00c")  # escape
    until(lambda: not browser.all("#job .panel"))
    browser.press("#failures summary")
    until(lambda: "Traceback" in browser.find("#failures .trace").text)
    browser.press("#data button")
    until(lambda: browser.find("#data").text == "{}")
    assert browser.errors() == []


@pytest.mark.usefixtures("runs")
def test_hostile_text_runs_nowhere(browser: Browser) -> None:
    browser.run("window.alert = () => { window.alarmed = true; }")
    for path in ("/", "/runs", "/run?id=bad", "/task?name=shop.store"):
        browser.get(path)
        browser.live()
        assert browser.run("return window.alarmed") is None
        assert not browser.all("main img, main script")
    assert browser.errors() == []


@pytest.mark.usefixtures("runs")
def test_wide_steps_and_nested_runs(browser: Browser, shop: Shop) -> None:
    browser.get("/run?id=wide")
    browser.press("button.box.many", "40")
    browser.says("40 jobs in 0")
    browser.press("#job a", "0.39")
    browser.says("0.39 shop.fetch done")
    browser.get("/run?id=outer")
    browser.press("a.nested")
    browser.says("outer one", "job 0", "letters", "shop.wait")
    browser.press(".crumbs a", "outer one")
    browser.says("outer one running")
    browser.get("/run?id=outer")
    browser.press("button", "Ask the workers, too")
    browser.says("What the workers say")


@pytest.mark.usefixtures("runs")
def test_the_drawing_moves_and_zooms(browser: Browser) -> None:
    def place() -> str:
        return str(browser.run("return document.querySelector('.drawing').style.transform"))

    browser.get("/run?id=outer")
    browser.live()
    browser.run("document.querySelector('[data-pan]').focus()")
    first = place()
    browser.type("+")
    zoomed = place()
    assert zoomed != first
    browser.type("\ue014")  # right arrow
    moved = place()
    assert moved != zoomed
    browser.run("document.querySelector('[data-pan]').scrollIntoView()")
    from selenium.webdriver import ActionChains

    view = browser.find("[data-pan]")
    ActionChains(browser.driver).drag_and_drop_by_offset(view, 40, 10).perform()
    assert place() != moved
    browser.type("0")
    assert place() == first
    browser.press("[data-zoom]", "+")
    assert place() == zoomed
    browser.press("[data-zoom]", "Fit")
    assert place() == first


def test_the_keyboard(browser: Browser, shop: Shop) -> None:
    for name in ("one", "two"):
        shop.engage(shop.fetch.s(1), id=name).get(timeout=30)

    def focused(attribute: str) -> Any:
        return browser.run("return document.activeElement.getAttribute(arguments[0])", attribute)

    browser.get("/runs")
    browser.type("j")
    assert focused("href").endswith("id=two")
    browser.type("j")
    assert focused("href").endswith("id=one")
    browser.type("k")
    assert focused("href").endswith("id=two")
    browser.type("/")
    assert focused("name") == "text"
    browser.get("/runs")
    browser.type("\ue004")  # tab
    assert focused("class") == "skip"
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_filters(browser: Browser, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), name="good one", tags=["odd"]).get(timeout=30)
    shop.failed(name="bad one")
    browser.get("/runs")
    browser.find("input[name=text]").send_keys("good")
    browser.press(".filters button", "Filter")
    until(lambda: "text=good" in browser.path)
    browser.says("good one")
    assert "bad one" not in browser.text
    browser.press("a", "Clear")
    browser.says("bad one")
    browser.press("a.tag", "odd")
    until(lambda: browser.path == "/runs?tag=odd")
    assert "bad one" not in browser.text


# --- actions ------------------------------------------------------------------------------------


def test_a_run_is_cancelled_and_resumed(browser: Browser, shop: Shop) -> None:
    run = shop.engage(shop.wait.s(), shop.fetch.s(1), id="waits")
    browser.get("/run?id=waits")
    browser.press(".actions button", "Cancel")
    browser.says("The run was cancelled.", "cancelled")
    assert run.state is State.CANCELLED
    shop.go_on.set()
    browser.press(".actions button", "Resume")
    browser.says("The run was resumed.", "succeeded")
    assert run.get(timeout=30) == [1]


def test_a_run_is_forgotten(browser: Browser, shop: Shop) -> None:
    shop.failed(name="unwanted")
    browser.get("/run?id=bad")
    browser.press(".actions a", "Forget")
    browser.says("Forget 1 run?", "unwanted")
    browser.press("[data-confirm]")
    browser.says("1 of 1 forgotten")
    browser.get("/runs")
    browser.says("There are no runs.")


@pytest.mark.parametrize("verb", ["Resume", "Cancel", "Forget"])
def test_many_runs_are_steered_after_a_preview(browser: Browser, shop: Shop, verb: str) -> None:
    for name in ("one", "two", "three"):
        shop.failed(name, name=f"run {name}")
    browser.get("/runs")
    assert not browser.find(".bulk button").is_enabled()
    browser.press("input[value=one]")
    browser.press("input[value=three]")
    browser.press(".bulk button", verb)
    browser.says(f"{verb} 2 runs?", "run one", "run three")
    assert "run two" not in browser.text
    shop.full = False
    browser.press("[data-confirm]")
    browser.says("2 of 2 ")
    states = {"Resume": State.SUCCEEDED, "Cancel": State.CANCELLED, "Forget": None}
    store_of = ClutchResult("one", shop.app)._store
    wanted = states[verb]
    until(lambda: (store_of.peek("three") or (None,))[0] is wanted)
    assert (store_of.peek("two") or (None,))[0] is State.FAILED


def test_all_runs_that_fit(browser: Browser, shop: Shop) -> None:
    for name in ("one", "two"):
        shop.failed(name, tags=["nightly"])
    shop.failed("other")
    browser.get("/runs?tag=nightly")
    browser.press(".bulk button", "Forget")
    browser.says("Forget 2 runs?")
    browser.press("[data-confirm]")
    browser.says("2 of 2 forgotten")
    browser.get("/runs")
    browser.says("other")
