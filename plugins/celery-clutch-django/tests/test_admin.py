"""The admin, through Django's test client: what is shown, what may be done, what is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import shop
from celery.signals import before_task_publish
from celery_clutch_django.admin import SHOWN, WIDE
from celery_clutch_django.models import Run
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from django.urls import reverse

from celery_clutch import Clutch, ClutchResult, State, parallel, series
from celery_clutch.compile.header import NAME
from celery_clutch.stores.base import Attempted, Claim, Completion

LIST = "/admin/celery_clutch_django/run/"
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def browser(_sqlite: None, store: Any) -> Callable[..., Client]:
    """Call it with permissions for the browser of a member of staff; with none for a superuser's."""
    User.objects.all().delete()

    def log_in(*permissions: str) -> Client:
        user = User.objects.create_user(
            f"user{User.objects.count()}", is_staff=True, is_superuser=not permissions
        )
        for permission in permissions:
            user.user_permissions.add(Permission.objects.get(codename=permission))
        client = Client()
        client.force_login(user)
        return client

    return log_in


def page_of(run: ClutchResult, alias: str) -> str:
    pk = Run.objects.using(alias).get(run=run.id).pk
    return reverse("admin:celery_clutch_django_run_change", args=[pk])


def text_of(response: Any) -> str:
    assert response.status_code == 200
    return str(response.content.decode())


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def complete(store: Any, run: ClutchResult, address: str, info: bytes = b"{}") -> None:
    store.complete(Completion(run.id, address, 0, b"1", token=address, info=info))


def fail(store: Any, run: ClutchResult, address: str, message: str, *, final: bool) -> None:
    failure = {"address": address, "task": "shop.resize", "task_id": "id", "exception": "OSError"}
    failure |= {"message": message, "traceback": f"Traceback: {message}", "attempt": 2}
    failure |= {"final": final, "at": "2024-01-01T00:00:00+00:00"}
    store.fail(Attempted(run.id, address, 0, orjson.dumps(failure), 2, final, f"fail {address}"))


# --- the list -----------------------------------------------------------------------------------


def test_the_list(browser: Callable[..., Client], store: Any) -> None:
    run = Clutch(shop.fetch.s("a"), shop.publish, name="sunset", tags=["photos", "big"]).engage()
    complete(store, run, "0")
    empty = Clutch(name="nothing to do", app=shop.app).engage()
    text = words(text_of(browser().get(LIST)))
    assert f"sunset {run.id} RUNNING 1 of 2 jobs photos big" in text
    assert f"nothing to do {empty.id} SUCCEEDED 0 of 0 jobs" in text
    fail(store, run, "1", "no", final=True)
    assert "FAILED 1 of 2 jobs, 1 dead" in words(text_of(browser().get(LIST)))


def test_search_and_filters(browser: Callable[..., Client], store: Any) -> None:
    Clutch(shop.fetch.s("a"), name="sunset", tags=["photos"], id="one").engage()
    Clutch(shop.fetch.s("a"), name="sunrise", tags=["photos", "big"], id="two").engage()
    Clutch(shop.fetch.s("a"), id="three").engage().cancel()
    client = browser()
    for query, expected in {
        "": {"one", "two", "three"},
        "?q=sunset": {"one"},
        "?q=big": {"two"},
        "?q=thre": {"three"},
        "?q=photos": {"one", "two"},
        "?state__exact=CANCELLED": {"three"},
        "?called=sunrise": {"two"},
        "?tagged=photos": {"one", "two"},
        "?started=hour": {"one", "two", "three"},
        "?called=nobody": set(),
        "?o=1": {"one", "two", "three"},
    }.items():
        text = text_of(client.get(LIST + query))
        assert set(re.findall(r'class="clutch-id" title="(.*?)"', text)) == expected, query
    offered = words(text_of(client.get(LIST)))
    assert {"sunset", "sunrise", "photos", "big"} <= set(offered.split())


def test_what_has_expired_is_not_listed(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a"), name="sunset").engage()
    client, page = browser(), page_of(run, alias)
    Run.objects.using(alias).update(expires_at=0)
    assert "sunset" not in text_of(client.get(LIST))
    assert client.get(page).status_code == 302, "back to the list, with a message"
    Run.objects.using(alias).all().delete()


def test_a_store_elsewhere_is_said(browser: Callable[..., Client]) -> None:
    client = browser()
    shop.app.conf.clutch_store = "memory://"
    assert "not in Django's database" in words(text_of(client.get(LIST))).replace("&#x27;", "'")


# --- the page of a run -------------------------------------------------------------------------


def test_the_page_of_a_run(browser: Callable[..., Client], store: Any, alias: str) -> None:
    run = series(
        shop.fetch.s("a"),
        parallel(shop.resize.s(1), shop.resize.s(2), shop.resize.s(3), shop.resize.s(4)),
        shop.publish,
    )
    run.name, run.tags, run.data = "sunset", ("photos",), {"size": {"width": 3}}
    handle = run.engage()
    complete(store, handle, "0", b'{"attempt": 3, "start": 1700000000, "seconds": 2.5}')
    complete(store, handle, "1.0", b"")
    fail(store, handle, "1.1", "the disk is full", final=False)
    store.begin(Claim(handle.id, "1.2", 0, owner="owner", limit=5))
    text = text_of(browser().get(page_of(handle, alias)))
    said = words(text)
    for expected in (
        "sunset",
        "2 of 6 jobs, 1 failing",
        "photos",
        "0 shop.fetch done attempt 3 2.5 s",
        "1 parallel 1 failing, 1 running, 1 done, 1 waiting",
        "1.1 shop.resize failing attempt 2",
        "attempt 2: OSError: the disk is full",
        "Traceback: the disk is full",
        "1.2 shop.resize running",
        "1.3 shop.resize waiting",
        "2 shop.publish waiting",
        "size { &quot;width&quot;: 3 }",
    ):
        assert expected in said, expected


def test_wide_parallels_collapse(browser: Callable[..., Client], store: Any, alias: str) -> None:
    run = series(parallel(shop.resize.s(n) for n in range(250)), shop.publish).engage()
    for number in range(0, 50):
        complete(store, run, f"0.{number}")
    for number in range(60, 60 + WIDE):
        fail(store, run, f"0.{number}", "no", final=number == 75)
    client, page = browser(), page_of(run, alias)
    said = words(text_of(client.get(page)))
    assert "0 parallel 1 dead, 19 failing, 50 done, 180 waiting" in said
    shown = set(re.findall(r"0\.(\d+) shop", said))
    assert len(shown) == SHOWN, "those that need attention"
    assert "75" in shown, "the worst first"
    assert f"{250 - SHOWN} more branches" in said
    at = page + "?at=0"
    assert len(re.findall(r"0\.\d+ shop", words(text_of(client.get(at))))) == 100
    assert "101 to 200" in words(text_of(client.get(at + "&from=100")))
    last = words(text_of(client.get(at + "&from=200")))
    assert re.findall(r"0\.(\d+) shop", last) == [str(n) for n in range(200, 250)]
    assert "Next" not in last
    for wrong in ("?at=9", "?at=x", "?at=0&from=x", "?at=0.1.2"):
        assert "cannot be shown" in words(text_of(client.get(page + wrong))), wrong


def test_what_a_run_decides_while_it_runs(
    browser: Callable[..., Client], store: Any, alias: str
) -> None:
    clutch = Clutch(shop.fetch.s("a")).map(shop.resize)
    run = clutch.choose(shop.fetch.s(EVIL), {EVIL: shop.publish, "us": shop.publish}).engage()
    client, page = browser(), page_of(run, alias)
    assert "1.% shop.resize waiting" in words(text_of(client.get(page)))
    complete(store, run, "0")
    decided = {"1": b"30", "2.0": orjson.dumps("us")}
    for address, value in decided.items():
        store.complete(Completion(run.id, address, 0, value, token=address, info=b"{}"))
    text = text_of(client.get(page))
    said = words(text)
    assert EVIL not in text
    assert "1 map 30 waiting 30 branches" in said
    assert "2 choose 1 done, 1 waiting, 1 skipped" in said
    assert "2.2 us: shop.publish waiting" in said
    for at in ("1", "1.7", "2"):
        assert "cannot be shown" not in words(text_of(client.get(f"{page}?at={at}")))


def test_many_steps_collapse_too(browser: Callable[..., Client], alias: str) -> None:
    run = series(shop.resize.s(n) for n in range(150)).engage()
    client, page = browser(), page_of(run, alias)
    assert "150 steps : 150 waiting" in words(text_of(client.get(page)))
    assert "1 to 100 Next" in words(text_of(client.get(page + "?at=")))


def test_a_nested_run_and_its_parent(
    browser: Callable[..., Client], store: Any, alias: str
) -> None:
    from celery_clutch.compile.record import Held

    outer = Clutch(shop.fetch.s("a"), name="outer").engage()
    inner = Clutch(shop.fetch.s("a"), name="inner").engage()
    store.checkpoint(outer.id, "0", Held(runs=(inner.id, "gone")).dumps(), 0)
    text = text_of(browser().get(page_of(outer, alias)))
    assert f"0 shop.fetch waits for {inner.id} waits for gone running" in words(text)
    assert f'<a href="{page_of(inner, alias)}">{inner.id}</a>' in text


def test_everything_a_user_wrote_is_escaped(
    browser: Callable[..., Client], store: Any, alias: str
) -> None:
    run = Clutch(shop.fetch.s(EVIL), name=EVIL, tags=[EVIL], data={EVIL: EVIL}).engage()
    fail(store, run, "0", EVIL, final=False)
    client = browser()
    page = page_of(run, alias)
    for url in (LIST, page, page.replace("change", "delete"), LIST + f"?called={EVIL}"):
        text = text_of(client.get(url))
        assert EVIL not in text
        assert "&lt;script&gt;alert" in text
    response = client.post(page, {"cancel": ""}, follow=True)
    assert EVIL not in response.content.decode()
    confirm = {"action": "delete_selected", "_selected_action": page.split("/")[-3]}
    assert EVIL not in client.post(LIST, confirm).content.decode()


def test_a_run_that_cannot_be_read_is_said(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a"), name="sunset").engage()
    Run.objects.using(alias).filter(run=run.id).update(meta=b"not ours")
    text = words(text_of(browser().get(page_of(run, alias))))
    assert "sunset" in text
    assert "This run cannot be shown" in text


# --- steering -----------------------------------------------------------------------------------


def test_buttons(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a"), name="sunset").engage()
    client, page = browser(), page_of(run, alias)
    assert 'name="cancel"' in text_of(client.get(page))
    said = words(text_of(client.post(page, {"cancel": ""}, follow=True)))
    assert "1 run was cancelled." in said
    assert run.state is State.CANCELLED
    assert 'name="cancel"' not in text_of(client.get(page))
    assert "there is nothing to cancel" in words(
        text_of(client.post(page, {"cancel": ""}, follow=True))
    )
    assert "1 run was resumed." in words(text_of(client.post(page, {"resume": ""}, follow=True)))
    assert (run.state, run.status().generation) == (State.RUNNING, 1)
    assert client.post(page, {"nonsense": ""}).status_code == 403
    delete = page.replace("change", "delete")
    assert "Forget the run" in words(text_of(client.get(delete)))
    assert "was deleted successfully" in words(
        text_of(client.post(delete, {"post": "yes"}, follow=True))
    )
    assert not Run.objects.using(alias).filter(run=run.id).exists()


def test_actions_on_several_runs(browser: Callable[..., Client], store: Any, alias: str) -> None:
    runs = [Clutch(shop.fetch.s("a"), name=f"run {n}").engage() for n in range(3)]
    keys = [Run.objects.using(alias).get(run=run.id).pk for run in runs]
    client = browser()

    def act(action: str, **more: str) -> str:
        data = {"action": action, "_selected_action": keys, **more}
        return words(text_of(client.post(LIST, data, follow=True)))

    runs[0].cancel()
    said = act("cancel")
    assert "2 runs were cancelled." in said
    assert "1 run was left alone: there is nothing to cancel." in said
    assert "3 runs were resumed." in act("resume")
    assert [run.state for run in runs] == [State.RUNNING] * 3
    said = act("delete_selected")
    assert "Forget these runs?" in said
    assert all(f"run {n} ({run.id})" in said for n, run in enumerate(runs))
    assert store.peek(runs[0].id), "nothing is forgotten before it is confirmed"
    assert "deleted 3" in act("delete_selected", post="yes")
    assert [store.peek(run.id) for run in runs] == [None] * 3


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("by", ["the list", "the page"])
def test_what_is_sent_can_be_seen(
    browser: Callable[..., Client], store: Any, alias: str, by: str
) -> None:
    """Also where a request is a transaction: whoever gets the message finds the run resumed."""
    runs = [Clutch(shop.fetch.s("a"), name=f"run {n}").engage() for n in range(10)]
    for run in runs:
        run.cancel()
    seen: list[tuple[str, object]] = []

    def peek(run: str) -> object:
        try:
            return store.peek(run)
        finally:
            connections[alias].close()

    def look(headers: dict[str, Any], **_: Any) -> None:
        run = headers[NAME]["run"]
        with ThreadPoolExecutor(1) as elsewhere:
            seen.append((run, elsewhere.submit(peek, run).result(60)))

    client = browser()
    before_task_publish.connect(look)
    try:
        if by == "the list":
            keys = [Run.objects.using(alias).get(run=run.id).pk for run in runs]
            data = {"action": "resume", "_selected_action": keys}
            said = words(text_of(client.post(LIST, data, follow=True)))
            assert "10 runs were resumed." in said
        else:
            for run in runs:
                response = client.post(page_of(run, alias), {"resume": ""}, follow=True)
                assert "1 run was resumed." in words(text_of(response))
    finally:
        before_task_publish.disconnect(look)
    assert dict(seen) == {run.id: (State.RUNNING, 1) for run in runs}


@pytest.mark.usefixtures("atomic_requests")
def test_buttons_where_a_request_is_a_transaction(
    browser: Callable[..., Client], alias: str
) -> None:
    run = Clutch(shop.fetch.s("a"), name="sunset").engage()
    client, page = browser(), page_of(run, alias)
    said = words(text_of(client.post(page, {"cancel": ""}, follow=True)))
    assert "1 run was cancelled." in said
    assert run.state is State.CANCELLED
    delete = page.replace("change", "delete")
    said = words(text_of(client.post(delete, {"post": "yes"}, follow=True)))
    assert "was deleted successfully" in said
    assert not Run.objects.using(alias).filter(run=run.id).exists()


def test_a_broker_that_is_away_is_said(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a")).engage()
    run.cancel()
    client = browser()
    conf = shop.app.conf
    before = {key: conf[key] for key in ("broker_url", "broker_transport_options")}
    conf.update(broker_url="amqp://localhost:1//", task_publish_retry=False)
    pool, shop.app._pool = shop.app._pool, None
    producers, shop.app.amqp._producer_pool = shop.app.amqp._producer_pool, None
    try:
        said = words(text_of(client.post(page_of(run, alias), {"resume": ""}, follow=True)))
    finally:
        conf.update(**before, task_publish_retry=True)
        shop.app._pool, shop.app.amqp._producer_pool = pool, producers
    assert "could not be resumed" in said


@pytest.mark.parametrize(
    ("permissions", "may"),
    [
        (["view_run"], set()),
        (["view_run", "cancel_run"], {"cancel"}),
        (["view_run", "resume_run"], {"resume"}),
        (["view_run", "delete_run"], {"delete_selected"}),
        (["view_user"], None),
    ],
)
def test_permissions(
    browser: Callable[..., Client],
    store: Any,
    alias: str,
    permissions: list[str],
    may: set[str] | None,
) -> None:
    run = Clutch(shop.fetch.s("a")).engage()
    client, page = browser(*permissions), page_of(run, alias)
    delete = page.replace("change", "delete")
    if may is None:
        for url in (LIST, page, delete):
            assert client.get(url).status_code == 403
        assert client.post(page, {"cancel": ""}).status_code == 403
        return
    listed = text_of(client.get(LIST))
    shown = text_of(client.get(page))
    for action in ("cancel", "resume", "delete_selected"):
        allowed = action in may
        assert (f'value="{action}"' in listed) is allowed, action
        if action != "delete_selected":
            assert (f'name="{action}"' in shown) is allowed, action
            status = client.post(page, {action: ""}).status_code
            assert status == (302 if allowed else 403), action
        else:
            assert ("Forget" in shown) is allowed
            assert client.get(delete).status_code == (200 if allowed else 403)
    key = str(Run.objects.using(alias).get(run=run.id).pk)
    for action in {"cancel", "resume", "delete_selected"} - may:
        generation = run.status().generation
        data = {"action": action, "_selected_action": [key], "post": "yes"}
        client.post(LIST, data, follow=True)
        assert run.status().generation == generation
    assert ("cancel" in may) is (run.state is State.CANCELLED)


def test_nobody_adds_or_changes(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a"), name="sunset").engage()
    client, page = browser(), page_of(run, alias)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(page, {"name": "other"}).status_code == 403
    assert "Add run" not in words(text_of(client.get(LIST)))
    assert Run.objects.using(alias).get(run=run.id).name == "sunset"


def test_strangers_are_sent_to_the_login(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a")).engage()
    for url in (LIST, page_of(run, alias)):
        assert Client().get(url).headers["Location"].startswith("/admin/login/")


def test_a_form_of_another_site_is_refused(browser: Callable[..., Client], alias: str) -> None:
    run = Clutch(shop.fetch.s("a")).engage()
    user = User.objects.create_superuser("root")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert client.post(page_of(run, alias), {"cancel": ""}).status_code == 403
    assert run.state is State.RUNNING
