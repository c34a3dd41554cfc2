"""examples/django_shop, as its README says: a site, a worker, and a browser to look at the admin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, answers, free_address, needs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SHOP = ROOT / "examples" / "django_shop"
PLUGIN = ROOT / "plugins" / "celery-clutch-django"
WAIT = 90


@pytest.fixture(scope="module")
def environment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the shop is told: a database and a broker of its own."""
    needs("celery_clutch_django", "django")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    paths = filter(None, (str(ROOT), str(PLUGIN), os.environ.get("PYTHONPATH")))
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "SHOP_DATABASE": str(tmp_path_factory.mktemp("shop") / "shop.db"),
        "SHOP_BROKER": request.getfixturevalue("broker"),
    }


@pytest.fixture(scope="module")
def site(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running site; a worker runs beside it."""
    logs = tmp_path_factory.mktemp("logs")

    def manage(*arguments: str, **more: str) -> None:
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=SHOP, env={**environment, **more}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    manage("migrate", "--verbosity", "0")
    manage("check")
    manage(
        *("createsuperuser", "--noinput", "--username", "ann", "--email", "ann@example.com"),
        DJANGO_SUPERUSER_PASSWORD="a good one",
    )
    url = free_address()
    worker = ["-m", "celery", "-A", "project", "worker", "--concurrency", "2", "--loglevel", "INFO"]
    commands = {
        "worker": [sys.executable, *worker],
        "site": [sys.executable, "manage.py", "runserver", "--noreload", url.rpartition(":")[2]],
    }
    processes = []
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(command, cwd=SHOP, env=environment, stdout=log, stderr=log)
                )
        until(lambda: answers(url), lambda: (logs / "site.log").read_text())
        yield url
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for log in logs.iterdir():
            print(f"--- {log.name}\n{log.read_text()[-5000:]}")


def until(condition: Callable[[], Any], explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT} seconds: {explain()}"
        time.sleep(0.1)


class Reader:
    """Somebody in front of the browser."""

    def __init__(self, browser: Any, site: str) -> None:
        self.browser = browser
        browser.implicitly_wait(20)
        self.site = site

    def open(self, path: str) -> None:
        self.browser.get(self.site + path)

    def find(self, selector: str) -> Any:
        found = self.browser.find_elements("css selector", selector)  # waits for one
        assert found, f"no {selector} on {self.browser.current_url}: {self.browser.page_source}"
        return found[0]

    def text(self, selector: str = "body") -> str:
        return " ".join(self.find(selector).text.split())

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            self.find(f"input[name={name}]").send_keys(value)

    def choose(self, selector: str, option: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.find(selector)).select_by_visible_text(option)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def go(self, selector: str) -> None:
        """Click, and wait for the page that it leads to."""
        self.browser.execute_script("window.before = true")
        self.click(selector)
        arrived = "return !window.before && document.readyState == 'complete'"
        until(lambda: self.browser.execute_script(arrived), self.text)

    def shows(self, path: str, *expected: str) -> None:
        """Open *path* again and again until all of *expected* is to be read there."""

        def there() -> bool:
            self.open(path)
            return all(each in self.text() for each in expected)

        until(there, self.text)

    def photograph(self, name: str) -> None:
        """Keep a picture where ``CLUTCH_TEST_PICTURES`` says, to look at it."""
        if folder := os.environ.get("CLUTCH_TEST_PICTURES"):
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What the browser's console says, but for the icon that the site does not have."""
        entries = self.browser.get_log("browser")
        return [each["message"] for each in entries if "favicon.ico" not in each["message"]]


def test_the_shop(browser: Any, site: str) -> None:
    reader = Reader(browser, site)

    def order(product: str, customer: str, card: str) -> str:
        reader.open("/")
        reader.choose("select[name=product]", product)
        reader.fill(customer=customer, card=card)
        reader.go("form button")
        return str(browser.current_url).removeprefix(site)

    # An order goes through, over a retry.
    bobs = order("Teapot", "Bob", "4000 0000 0001")
    reader.shows(bobs, "The order is shipped", "checkout is SUCCEEDED: 5 of 5")

    # A card is declined; an order of a name that wants to be more than a name.
    evils = order("Tea", "<script>document.title = 'gone'</script>", "4000 0000 0000")
    reader.shows(evils, "needs attention", "checkout is FAILED: 2 of 5", "the card was declined")
    assert "<script>" in browser.title

    # Thirty boxes at once.
    reader.open("/")
    reader.go("button[name=product]")

    # The admin: the list.
    reader.open("/admin/")
    reader.fill(username="ann", password="a good one")
    reader.go("input[type=submit]")
    runs = "/admin/celery_clutch_django/run/"
    reader.shows(runs, "Restock", "32 of 32 jobs", "5 of 5 jobs", "2 of 5 jobs, 1 dead")
    reader.photograph("list")
    colours = {
        state: reader.find(f".clutch-badge.clutch-{state}").value_of_css_property(
            "background-color"
        )
        for state in ("succeeded", "failed")
    }
    assert len(set(colours.values())) == 2, "the style sheet is there"
    reader.open(f"{runs}?tagged=stock")
    assert (
        "Restock" in reader.text("#result_list"),
        "Checkout" in reader.text("#result_list"),
    ) == (
        True,
        False,
    )

    # A wide step is reduced to counts, and can be opened.
    reader.go("#result_list tbody th a")
    assert "1 parallel 30 done" in reader.text(".clutch-tree")
    reader.photograph("wide")
    reader.go(".clutch-more a")
    assert "1.29 shop.tasks.unpack done" in reader.text(".clutch-tree")
    reader.photograph("opened")

    # The run that failed.
    reader.open(f"{runs}?state__exact=FAILED")
    reader.go("#result_list tbody th a")
    page = str(browser.current_url).removeprefix(site)
    tree = reader.text(".clutch-tree")
    assert re.search(r"0 shop.tasks.reserve done [\d.]+ m?s ", tree)
    assert "1 parallel 1 dead, 1 done" in tree
    assert "attempt 2: ValueError: the card was declined" in tree
    assert "3 shop.tasks.tell_customer waiting" in tree
    reader.click(".clutch-failure summary")
    assert 'raise ValueError("the card was declined")' in reader.text(".clutch-failure pre")
    reader.photograph("failed")
    toggle = "document.documentElement.dataset.theme = arguments[0]"
    browser.execute_script(toggle, "dark")
    reader.photograph("failed-dark")
    data = reader.text(".clutch:last-of-type")
    assert all(each in data for each in ('"Tea"', "product", "invoice"))

    # A good card, and the run is resumed: what had a result is not run again.
    reader.open("/admin/shop/order/")
    reader.go("#result_list tbody th a")
    reader.find("input[name=card]").clear()
    reader.fill(card="4000 0000 0002")
    reader.go("input[name=_save]")
    reader.open(page)
    reader.go("button[name=resume]")
    assert "1 run was resumed" in reader.text(".messagelist")
    reader.shows(page, "SUCCEEDED", "5 of 5", "Resumed 1 time")
    reader.photograph("resumed")
    reader.shows(evils, "The order is shipped")

    # It is forgotten once that is confirmed.
    reader.open(page)
    reader.go(".clutch-forget")
    reader.photograph("forget")
    assert "Forget the run" in reader.text("#content")
    reader.go("#content input[type=submit]")
    assert "was deleted successfully" in reader.text(".messagelist")
    reader.open(runs)
    assert "Checkout" in reader.text("#result_list"), "of Bob"
    reader.click("#action-toggle")
    reader.choose("select[name=action]", "Forget selected runs")
    reader.go("button[name=index]")
    reader.photograph("forget-selected")
    reader.go("#content input[type=submit]")
    assert "0 runs" in reader.text("#changelist")
    assert reader.complaints() == []


def test_the_readme_names_what_exists() -> None:
    text = (SHOP / "README.md").read_text("utf-8")
    for path in re.findall(r"\]\(([^):]+)\)", text):
        assert (SHOP / path).exists(), path
    assert "manage.py migrate" in text
