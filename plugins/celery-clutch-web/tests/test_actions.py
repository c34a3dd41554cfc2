"""What buttons do to runs, one by one and many at once."""

from __future__ import annotations

from urllib.parse import urlencode

from celery_clutch import ClutchResult, State

from celery_clutch_web import listing

from .conftest import Client, tags, until, words
from .shop import Shop


def chosen(site: Client, path: str) -> list[str]:
    """The runs that the form of a preview is about."""
    found = [at for tag, at in tags(site.get(path).text) if tag == "input"]
    return [str(at["value"]) for at in found if at.get("name") == "id"]


def test_resume(site: Client, shop: Shop) -> None:
    run = shop.failed()
    shop.full = False
    answer = site.press("resume", "bad", back="run")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/run?id=bad&done=resume"
    assert "The run was resumed." in site.page(answer.headers["location"])
    assert run.get(timeout=30) == ["stored"]


def test_cancel(site: Client, shop: Shop) -> None:
    run = shop.engage(shop.wait.s(), shop.fetch.s(1), id="waits")
    assert site.press("cancel", "waits", back="run").status_code == 303
    assert run.state is State.CANCELLED


def test_forget_after_a_preview(site: Client, shop: Shop) -> None:
    shop.failed(name="prints")
    preview = "/runs/preview?verb=forget&id=bad"
    assert "Forget 1 run?" in site.page(preview)
    assert "prints" in site.page(preview)
    assert chosen(site, preview) == ["bad"]
    answer = site.press("forget", "bad")
    assert "1 of 1 forgotten" in words(answer.text)
    assert site.get("/run?id=bad").status_code == 404


def test_what_cannot_be_done_is_said(site: Client, shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), id="good").get(timeout=30)
    answer = site.press("cancel", "good", "nowhere", back="run")
    text = words(answer.text)
    assert answer.status_code == 200
    assert "0 of 2 cancelled" in text
    assert "good has ended already" in text
    assert "nowhere is not there any more" in text


def test_many_runs_by_filters(site: Client, shop: Shop) -> None:
    for number in range(3):
        shop.failed(f"bad {number}".replace(" ", "-"), tags=["nightly"])
    shop.failed("other")
    shop.engage(shop.fetch.s(1), id="good", tags=["nightly"]).get(timeout=30)
    preview = "/runs/preview?verb=resume&tag=nightly"
    runs = chosen(site, preview)
    assert sorted(runs) == ["bad-0", "bad-1", "bad-2"]
    assert "Resume 3 runs?" in site.page(preview)
    assert [run["id"] for run in site.json(preview)["runs"]] == runs
    shop.full = False
    assert "3 of 3 resumed" in words(site.press("resume", *runs).text)
    for run in runs:
        ClutchResult(run, shop.app).get(timeout=30)
    assert ClutchResult("other", shop.app).state is State.FAILED


def test_many_runs_that_were_chosen(site: Client, shop: Shop) -> None:
    for id in ("one", "two", "three"):
        shop.failed(id)
    preview = "/runs/preview?verb=forget&id=one&id=three&id=nowhere"
    assert chosen(site, preview) == ["one", "three"]
    assert "There is no run nowhere." in site.page(preview)
    assert "2 of 2 forgotten" in words(site.press("forget", "one", "three").text)
    assert [run["id"] for run in site.json("/runs?state=failed")["runs"]] == ["two"]


def test_more_runs_than_are_done_at_once(site: Client, shop: Shop) -> None:
    for _ in range(listing.MOST + 3):
        shop.engage(tags=["many"])
    preview = "/runs/preview?verb=forget&tag=many"
    first = chosen(site, preview)
    assert len(first) == listing.MOST
    assert "Others may fit, too." in site.page(preview)
    assert site.press("forget", *first).status_code == 200
    further = f"{preview}&{urlencode({'cursor': site.json(preview)['next'] or ''})}"
    assert len(chosen(site, further)) == 3
    assert len(site.json("/runs?tag=many")["runs"]) == 3


def test_a_preview_of_nothing(site: Client, shop: Shop) -> None:
    assert "There is no run to cancel." in site.page("/runs/preview?verb=cancel&tag=none")
    assert "Choose runs, or filters." in site.page("/runs/preview?verb=cancel", 400)
    shop.failed()
    assert "There is no run to resume" in site.page("/runs/preview?verb=resume&state=succeeded")


def test_a_nested_run_is_resumed_through_the_run_around_it(site: Client, shop: Shop) -> None:
    run = shop.engage(shop.publish.s(), id="outer")
    inner = until(lambda: site.json("/run?id=outer")["nodes"][0]["nested"])[0]
    until(lambda: site.get(f"/run?id={inner}").status_code == 200)
    assert site.press("cancel", "outer").status_code == 200
    shop.go_on.set()
    assert site.press("resume", inner).status_code == 200
    assert run.get(timeout=30) == ["published"]


def test_answers_to_programs(site: Client, shop: Shop) -> None:
    shop.failed()
    headers = {"origin": site.origin, "accept": "application/json"}
    form = {"verb": "cancel", "id": "bad", "token": site.token()}
    answer = site.post("/runs/steer", data=form, headers=headers)
    assert answer.json() == {
        "verb": "cancel",
        "runs": [{"run": "bad", "kind": "done", "said": "cancelled"}],
    }
