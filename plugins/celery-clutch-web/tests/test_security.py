"""Who is let in, what is refused, and what hostile text does."""

from __future__ import annotations

import logging
import re
from typing import Any

import anyio
import httpx
import pytest
from celery_clutch import State
from celery_clutch.errors import ConfigurationError
from starlette.applications import Starlette
from starlette.routing import Mount

from celery_clutch_web import dashboard

from .conftest import Client, tags, visiting
from .shop import Shop

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
HOSTILE = MARKUP + "\x1b[31m\u202egnp.exe\u2066\x00"


def ask(
    site: Any,
    path: str = "/runs",
    address: str | None = "127.0.0.1",
    base: str = "http://localhost",
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    """What *site* answers somebody at *address* who calls it by the name in *base*."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(site, client=(address, 4000) if address else None)  # type: ignore[arg-type]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, headers=named)

    return anyio.run(send)


# --- who is let in --------------------------------------------------------------------------------


def test_nobody_can_forget_to_say_who_may(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="authorize="):
        dashboard(shop.app)


def test_loopback_lets_this_machine_in_by_its_own_names(shop: Shop) -> None:
    site = dashboard(shop.app, loopback=True)
    for base in ("http://localhost:5560", "http://127.0.0.1:1", "http://[::1]:80"):
        assert ask(site, base=base).status_code == 200
    assert ask(site, address="::1").status_code == 200


def test_loopback_keeps_others_out(shop: Shop) -> None:
    site = dashboard(shop.app, loopback=True)
    for address in ("10.0.0.7", "8.8.8.8", "fe80::1", "", None):
        assert ask(site, address=address).status_code == 403
    assert ask(site, x_forwarded_for="8.8.8.8").status_code == 403
    assert ask(site, forwarded="for=8.8.8.8").status_code == 403
    assert ask(site, "/static/app.css", address="10.0.0.7").status_code == 403


def test_a_name_that_points_here_is_refused(shop: Shop) -> None:
    site = dashboard(shop.app, loopback=True)
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example"):
        answer = ask(site, base=f"http://{name}")
        assert answer.status_code == 400
        assert "not known by that name" in answer.text


def test_names_of_the_site_can_be_given(shop: Shop) -> None:
    site = dashboard(shop.app, authorize=lambda request: "view", hosts=["runs.example"])
    assert ask(site, base="https://runs.example:8443").status_code == 200
    assert ask(site, base="https://other.example").status_code == 400


def test_authorize_decides(shop: Shop) -> None:
    shop.failed()
    roles: dict[str, Any] = {"ada": "forget", "grace": "steer", "guest": "view"}
    site = dashboard(shop.app, authorize=lambda request: roles.get(request.headers["x-user"]))
    shown = {}
    for user in (*roles, "nobody"):
        shown[user] = ask(site, "/run?id=bad", "8.8.8.8", x_user=user)
    assert [answer.status_code for answer in shown.values()] == [200, 200, 200, 403]
    assert "Forget" in shown["ada"].text
    assert "Resume" in shown["grace"].text
    assert "Forget" not in shown["grace"].text
    assert "Resume" not in shown["guest"].text
    assert "bad" not in shown["nobody"].text
    answers = [ask(site, "/runs/preview?verb=forget&id=bad", x_user=user) for user in roles]
    assert [answer.status_code for answer in answers] == [200, 403, 403]


def test_authorize_may_be_a_coroutine_function(shop: Shop) -> None:
    async def authorize(request: Any) -> Any:
        return None if "x-out" in request.headers else "view"

    site = dashboard(shop.app, authorize=authorize)
    assert ask(site).status_code == 200
    assert ask(site, x_out="1").status_code == 403


def test_an_answer_that_is_no_role_lets_nobody_in(shop: Shop) -> None:
    for answer in (True, "admin", 3):
        site = dashboard(shop.app, authorize=lambda request, answer=answer: answer)
        with pytest.raises(ValueError, match="which is not"):
            ask(site)


def test_authorize_and_loopback_together(shop: Shop) -> None:
    site = dashboard(shop.app, authorize=lambda request: "view", loopback=True)
    assert ask(site).status_code == 200
    assert ask(site, address="8.8.8.8").status_code == 403


# --- actions ------------------------------------------------------------------------------------


def test_actions_come_from_pages_of_the_site(site: Client, shop: Shop) -> None:
    run = shop.failed()
    form = {"verb": "cancel", "id": "bad", "token": site.token()}
    refused = [
        site.post("/runs/steer", data=form),
        site.post("/runs/steer", data=form, headers={"origin": "http://evil.example"}),
        site.post("/runs/steer", data=form, headers={"origin": "null"}),
        site.post("/runs/steer", data=form, headers={"origin": "http://[localhost"}),
        site.post("/runs/steer", data=form, headers={"referer": "http://evil.example/localhost"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * 5
    assert run.state is State.FAILED
    allowed = site.post("/runs/steer", data=form, headers={"referer": f"{site.origin}/run"})
    assert allowed.status_code == 200
    assert run.state is State.CANCELLED


def test_actions_need_the_token_of_the_page(site: Client, shop: Shop) -> None:
    run = shop.failed()
    assert site.press("cancel", "bad", token="").status_code == 403
    assert site.press("cancel", "bad", token="0" * 64).status_code == 403
    token = site.token()
    site.cookies.clear()
    form, headers = {"verb": "cancel", "id": "bad", "token": token}, {"origin": site.origin}
    assert site.post("/runs/steer", data=form, headers=headers).status_code == 403
    assert run.state is State.FAILED


def test_tokens_of_others_are_not_ours(shop: Shop) -> None:
    run = shop.engage(shop.fetch.s(1), id="token-run")
    run.get(timeout=30)
    bad = shop.failed()
    with visiting(dashboard(shop.app, loopback=True)) as one:
        token = one.token()
    with visiting(dashboard(shop.app, loopback=True)) as other:
        assert other.press("cancel", "bad", token=token).status_code == 403
    assert bad.state is State.FAILED


def test_processes_with_one_secret_take_the_tokens_of_one_another(shop: Shop) -> None:
    shop.engage(shop.fetch.s(1), id="token-run").get(timeout=30)
    shop.failed()
    with visiting(dashboard(shop.app, loopback=True, secret="the same")) as one:
        token, cookies = one.token(), one.cookies
        with visiting(dashboard(shop.app, loopback=True, secret="the same")) as other:
            other.cookies = cookies
            assert other.press("cancel", "bad", token=token).status_code == 200


def test_no_action_by_looking(site: Client, shop: Shop) -> None:
    run = shop.failed()
    assert site.get("/runs/steer?verb=cancel&id=bad").status_code == 405
    assert run.state is State.FAILED


def test_a_form_that_is_none(site: Client) -> None:
    token, headers = site.token(), {"origin": site.origin}
    long = f"token={token}&verb=cancel&id=" + "x" * 600_000
    assert site.post("/runs/steer", content=long, headers=headers).status_code == 413
    many = f"token={token}&verb=cancel" + "&id=x" * 600
    assert site.post("/runs/steer", content=many, headers=headers).status_code == 400
    assert site.post("/runs/steer", content=b"\xff", headers=headers).status_code == 400
    assert site.press("delete", "bad").status_code == 400


def test_the_cookie_is_for_this_site_alone(shop: Shop) -> None:
    site = dashboard(shop.app, authorize=lambda request: "view")
    mounted = Starlette(routes=[Mount("/ops", site)])
    cookie = ask(mounted, "/ops/runs", base="https://runs.example").headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")}
    assert {"httponly", "secure", "samesite=strict", "path=/ops"} <= parts


# --- the log --------------------------------------------------------------------------------------


def test_every_action_is_in_the_log(
    site: Client, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_clutch.audit")
    shop.failed()
    site.press("cancel", "bad")
    site.press("cancel", "bad")
    site.press("resume", "nowhere")
    site.press("forget", "bad")
    lines = [r.getMessage() for r in caplog.records if r.name == "celery_clutch.audit"]
    by = 'by="127.0.0.1" role=forget'
    assert lines == [
        f'cancel run="bad" {by} outcome=done',
        f'cancel run="bad" {by} outcome=nothing',
        f'resume run="nowhere" {by} outcome=missing',
        f'forget run="bad" {by} outcome=done',
    ]


def test_the_log_names_who_authorize_has_found(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celery_clutch.audit")

    def authorize(request: Any) -> Any:
        request.state.user = 'ada" outcome=none\n\x1b[2J'
        return "steer"

    shop.engage(shop.fetch.s(1), id="token-run").get(timeout=30)
    shop.failed()
    with visiting(dashboard(shop.app, authorize=authorize)) as site:
        assert site.press("cancel", "bad").status_code == 200
        assert site.press("forget", "bad").status_code == 403
    (line,) = [r.getMessage() for r in caplog.records if r.name == "celery_clutch.audit"]
    shown = r'by="ada\" outcome=none\\n\\x1b[2J" role=steer outcome=done'
    assert line == f'cancel run="bad" {shown}'


# --- what browsers are told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/runs", "/run?id=bad", "/run/job?id=bad&at=1", "/static/app.css", "/nowhere"]
)
def test_every_answer_has_the_policy(site: Client, shop: Shop, path: str) -> None:
    shop.failed()
    headers = site.get(path).headers
    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


PAGES = (
    "/",
    "/runs",
    "/run?id=bad",
    "/run/job?id=bad&at=1",
    "/run/arguments?id=bad&at=1",
    "/run/branches?id=bad&at=",
    "/runs/preview?verb=forget&id=bad",
    "/run?id=" + "%3Cscript%3E",
    "/runs?text=%22%3E%3Cscript%3E%E2%80%AE",
    "/runs/preview?verb=%3Cscript%3E",
)


@pytest.mark.parametrize("path", PAGES)
def test_hostile_text_is_text(site: Client, shop: Shop, path: str) -> None:
    shop.failed("bad", HOSTILE, name=MARKUP, tags=[MARKUP])
    text = site.get(path).text
    for tag, attributes in tags(text):
        assert tag != "img"
        assert "src" in attributes or tag != "script"
        assert "style" not in attributes
        assert tag != "style"
        assert not [name for name in attributes if name.startswith(("on", "hx-on"))]
        for name in ("href", "src", "action", "hx-get"):
            assert str(attributes.get(name) or "/").startswith(("/", "#"))
    # Controls, and what turns the direction of text, are shown as what they are.
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text
    )


def test_hostile_text_is_shown(site: Client, shop: Shop) -> None:
    shop.failed("bad", HOSTILE)
    text = site.page("/run?id=bad")
    assert "<script>alert(1)</script>" in text
    assert r"\x1b[31m\u202egnp.exe\u2066\x00" in text


def test_nothing_is_loaded_from_elsewhere(site: Client, shop: Shop) -> None:
    shop.failed()
    for path in ("/", "/runs", "/run?id=bad"):
        for tag, attributes in tags(site.get(path).text):
            if tag in ("script", "link"):
                address = str(attributes.get("src") or attributes.get("href"))
                assert address.startswith("/static/")
                assert site.get(address).status_code == 200
