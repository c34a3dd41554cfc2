"""What the pages show, as a client without scripts sees it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from celery_clutch import State, parallel
from celery_clutch.model.graph import TIMES

from .conftest import Client, tags, until, words
from .shop import Shop


def event(site: Client, path: str) -> str:
    """The HTML of the first event of a stream."""
    with site.stream("GET", path) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == "event: look"
        html = json.loads(next(lines).removeprefix("data: "))
    return str(html)


# --- the list -----------------------------------------------------------------------------------


def names(site: Client, path: str) -> list[str]:
    return [run["name"] for run in site.json(path)["runs"] if run["id"] != "token-run"]


def test_runs_are_listed_the_newest_first(site: Client, shop: Shop) -> None:
    for name in ("first", "second"):
        shop.engage(shop.fetch.s(1), name=name, tags=["even"]).get(timeout=30)
    text = site.page("/runs")
    assert text.index("second") < text.index("first")
    assert "succeeded" in text
    assert "1/1" in text
    assert names(site, "/runs") == ["second", "first"]
    assert site.json("/runs")["runs"][0]["tags"] == ["even"]


def test_filters_are_in_the_address(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), name="good", tags=["a"]).get(timeout=30)
    shop.failed(name="bad one", tags=["b"])
    assert names(site, "/runs?state=failed") == ["bad one"]
    assert names(site, "/runs?name=good") == ["good"]
    assert names(site, "/runs?tag=b") == ["bad one"]
    assert names(site, "/runs?text=BAD") == ["bad one"]
    assert names(site, "/runs?text=nowhere") == []
    assert names(site, "/runs?newer=1h") == ["bad one", "good"]
    assert names(site, "/runs?older=1h") == []
    assert "No run fits." in site.page("/runs?older=1h")
    assert 'value="BAD"' in site.get("/runs?text=BAD").text


def test_filters_that_make_no_sense_are_said(site: Client) -> None:
    assert "'soon' is not an age" in site.page("/runs?newer=soon", 400)
    assert "is not one of" in site.page("/runs?state=odd", 400)
    assert "is not a cursor" in site.page("/runs?cursor=odd", 400)
    assert "is not an age" in site.json("/runs?newer=soon", 400)["error"]


def test_pages_of_fifty_have_every_run_once(site: Client, shop: Shop) -> None:
    for number in range(120):
        shop.engage(name=f"run {number}", tags=["odd"] if number % 2 else [])
    filters: dict[str, str]
    for filters, wanted in (({}, 121), ({"tag": "odd"}, 60)):
        found: list[str] = []
        sizes: list[int] = []
        cursor = ""
        while cursor is not None:
            page = site.json("/runs?" + urlencode({**filters, "cursor": cursor}))
            found += [run["id"] for run in page["runs"]]
            sizes.append(len(page["runs"]))
            cursor = page["next"]
        assert len(found) == len(set(found)) == wanted
        assert sizes[0] == 50
        assert len(sizes) == -(-wanted // 50)


def test_the_list_is_live(site: Client, shop: Shop) -> None:
    shop.engage(shop.wait.s(), name="waiting one")
    text = words(event(site, "/runs/events?state=RUNNING"))
    assert "waiting one" in text
    assert "ago" not in text  # time that passes is no news


# --- a run --------------------------------------------------------------------------------------


def test_a_run_that_has_failed(site: Client, shop: Shop) -> None:
    shop.failed("bad", name="prints", tags=["nightly"])
    text = site.page("/run?id=bad")
    assert "prints failed" in text
    assert "nightly" in text
    assert "Done 1 of 2" in text
    assert "Dead 1" in text
    assert "1 shop.store dead" in text
    assert f"1 {TIMES} OSError the shelf is full" in text
    assert "in store" in text  # the traceback
    assert "Why it does not go on" in text
    data = site.json("/run?id=bad")
    assert (data["state"], data["dead"]) == ("FAILED", 1)
    assert [node["state"] for node in data["nodes"]] == ["done", "dead"]
    assert data["groups"][0]["exception"] == "OSError"
    assert data["why"]


def test_a_run_that_is_not_there(site: Client) -> None:
    assert "there is no run 'nowhere'" in site.page("/run?id=nowhere", 404)
    assert "nowhere" in site.json("/run?id=nowhere", 404)["error"]
    assert site.get("/nowhere").status_code == 404


def test_wide_steps_are_one_box_with_counts(site: Client, shop: Shop) -> None:
    run = shop.engage(parallel(shop.fetch.s(number) for number in range(40)), id="wide")
    run.get(timeout=30)
    text = site.page("/run?id=wide")
    assert f"0.* shop.fetch {TIMES} 40" in text
    assert "40 done" in text
    listed = site.page("/run/branches?id=wide&at=0")
    assert "40 jobs in 0" in listed
    assert "0.39 shop.fetch" in listed


def test_arguments_and_results_are_hidden_until_asked_for(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s("secret-photo"), id="hidden").get(timeout=30)
    assert "secret-photo" not in site.get("/run?id=hidden").text
    assert "secret-photo" not in json.dumps(site.json("/run?id=hidden"))
    job = site.page("/run/job?id=hidden&at=0")
    assert "Arguments Show" in job
    assert "secret-photo" not in job
    assert "'secret-photo'" in site.page("/run/arguments?id=hidden&at=0")
    assert '"secret-photo"' in site.page("/run/result?id=hidden&at=0")
    assert site.json("/run/result?id=hidden&at=0") == {"result": '"secret-photo"'}


def test_shared_data_is_hidden_until_asked_for(site: Client, shop: Shop) -> None:
    shop.engage(shop.scan.s(), id="shared", data={"paper": "matt"}).get(timeout=30)
    assert "matt" not in site.get("/run?id=shared").text
    assert '"paper": "matt"' in site.page("/run/data?id=shared")


def test_attempts_of_a_job_with_the_traceback_of_the_latest_failure(
    site: Client, shop: Shop
) -> None:
    shop.engage(shop.scan.s(), id="again").get(timeout=30)
    text = site.page("/run/job?id=again&at=0")
    assert "2 done 1 failing ConnectionError the scanner is busy" in text
    assert "Traceback (most recent call last)" in text


def test_the_timeline_has_waits_attempts_and_retries(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), shop.scan.s(0.3), id="again").get(timeout=30)
    html = site.get("/run?id=again").text
    labels = [
        str(at["aria-label"]) for tag, at in tags(html) if tag == "svg" and "aria-label" in at
    ]
    assert any(label.startswith("wait ") and " done " in label for label in labels)
    assert any(label.startswith("retry ") and " done " in label for label in labels)
    shop.failed()
    html = site.get("/run?id=bad").text
    assert any("dead " in str(at.get("aria-label")) for tag, at in tags(html) if tag == "svg")


def test_the_next_attempt_is_counted_down(site: Client, shop: Shop) -> None:
    run = shop.engage(shop.scan.s(3600), id="later")
    until(lambda: run.status().failing)
    text = site.page("/run?id=later")
    assert "Next attempts in 1 h" in text or "Next attempts in 59 min" in text
    times = [at for tag, at in tags(site.get("/run?id=later").text) if "data-countdown" in at]
    assert times


def test_nested_runs_know_what_is_around_them(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), shop.publish.s(), id="outer", name="album")
    data: Any = until(lambda: site.json("/run?id=outer")["nodes"][1]["nested"])
    (inner,) = data
    assert "nested run" in site.page("/run?id=outer")
    until(lambda: site.get(f"/run?id={inner}").status_code == 200)
    text = site.page(f"/run?id={inner}")
    assert "Runs \u203a album job 1 \u203a letters" in text
    assert site.json(f"/run?id={inner}")["around"] == [{"run": "outer", "address": "1"}]


def test_a_job_that_is_not_there(site: Client, shop: Shop) -> None:
    shop.failed()
    assert "has no job '7'" in site.page("/run/job?id=bad&at=7", 404)
    assert "has no result" in site.page("/run/result?id=bad&at=1", 404)


def test_workers_are_asked_why(site: Client, shop: Shop) -> None:
    shop.engage(shop.wait.s(), id="waits")
    assert "What the workers say" in site.page("/run/why?id=waits")


def test_a_run_is_live(site: Client, shop: Shop) -> None:
    shop.failed()
    html = words(event(site, "/run/events?id=bad"))
    assert "failed" in html
    assert "1 shop.store dead" in html


def test_ids_that_look_like_addresses(site: Client, shop: Shop) -> None:
    for id in ("..", "a/b", "a:b@c+d=e", "~"):
        run = shop.engage(shop.fetch.s(1), id=id, name=f"odd {id}")
        run.get(timeout=30)
        links = [at["href"] for tag, at in tags(site.get("/runs").text) if "data-row" in at]
        assert f"odd {id}" in site.page(str(links[0]))


def test_an_empty_run(site: Client, shop: Shop) -> None:
    run = shop.engage(id="empty")
    assert run.state is State.SUCCEEDED
    assert "empty" in site.page("/run?id=empty")
