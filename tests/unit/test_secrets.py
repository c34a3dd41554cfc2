"""No piece of a password is in what anybody is told, whatever a setting looks like."""

from __future__ import annotations

import traceback
from urllib.parse import unquote

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch import Clutch, ClutchTask
from celery_clutch.extend.plugins import forget_runtime
from celery_clutch.model.secrets import PIECE, masked
from celery_clutch.operate import cli

from .conftest import App

URLS = (
    "redis://user:{}@localhost:1/0",
    "redis://:{}@localhost:1/0",
    "redis://user:{}@",
    "redis://:{}@localhost:notaport/0",
    "redis://user:{}",
    "rediss://:{}@localhost:1/0",
    "redis+socket://:{}@/no/such/socket?virtual_host=1",
    "redis://localhost:1/0?password={}",
    "sentinel://:{}@localhost:1;localhost:1/service",
    "redis:{}://x@localhost",
    "redis//user:{}@localhost",
    "redis:/:{}@localhost",
    "://user:{}@localhost",
    " redis://:{}@localhost:1",
    "user:{}@localhost",
    "{}@localhost",
    "nosuch://user:{}@localhost",
    "amqp://user:{}@localhost:1//",
    "amqp://user:{}@localhost:1//;amqp://other@localhost:1//",
    "db+sqlite://user:{}@localhost/0",
    "db+mysql://user:{}@localhost:1/0",
    "sqlite://user:{}@localhost/0",
    "mongodb://user:{}@localhost:1/0",
    "file://user:{}@localhost/0",
)
SIGNS = ("/", "@", "?", "#", ":", "%", "%2F", "%40", " ", "[", "]", "&", "=", ";", "")
passwords = st.builds("Zq1x{}Yv2w{}Xk3u".format, st.sampled_from(SIGNS), st.sampled_from(SIGNS))


def means_one_thing(hostile: tuple[str, str]) -> bool:
    """Nobody can tell that the host behind an @ is none."""
    form, password = hostile
    return form != "redis://user:{}" or "@" not in password


urls = st.tuples(st.sampled_from(URLS), passwords).filter(means_one_thing)
SETTINGS = ("broker_url", "result_backend", "clutch_store")


def pieces(password: str) -> set[str]:
    found: set[str] = set()
    for form in (password, unquote(password)):
        lower = form.lower()
        found |= {lower[at : at + PIECE] for at in range(len(lower) - PIECE + 1)}
    return found


@pytest.mark.parametrize(
    ("setting", "text", "told"),
    [
        ("redis://:s3cret@db:1/0", "no s3cret at db:1", "no *** at db:1"),
        ("redis://ann:ann-secret@db", "ann at db: 'NN-SECret'", "ann at db: '***'"),
        ("redis://:p@ss/wurd@db", "not 'p' but ss/wurd, or /wurd", "not 'p' but ***, or ***"),
        ("redis://:p%40ssw@db", "'p@ssw' or p%40ssw", "'***' or ***"),
        ("amqp://a:long-1@one//;amqp://b:long-2@two//", "long-1 one long-2 two", "*** one *** two"),
        ("redis:secret://x@host", "redis has secret", "redis has ***"),
        ("ann:secret@host", "ann has secret", "ann has ***"),
        ("mine://host/db?password=secret", "password secret", "password ***"),
        ("celery.backends.redis:RedisBackend", "no RedisBackend", "no RedisBackend"),
        ("redis://localhost:6379/0", "Error 111 at localhost:6379", "Error 111 at localhost:6379"),
        ("redis://localpass:pw-local@localhost", "localhost is away", "localhost is away"),
    ],
)
def test_texts_are_without_pieces_of_passwords(setting: str, text: str, told: str) -> None:
    assert masked(text, [setting]) == told


def shown(password: str, text: str) -> list[str]:
    return [piece for piece in pieces(password) if piece in text.lower()]


def app_with(name: str, url: str) -> Celery:
    """An app of which one setting is hostile."""
    app = App("secrets", task_cls=ClutchTask, set_as_current=False)
    # A broker that is away is asked once.
    quick = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    app.conf.update(
        broker_url="memory://",
        result_backend="cache+memory://",
        clutch_store="memory://",
        task_publish_retry_policy=quick,
        broker_transport_options={"socket_connect_timeout": 1, "max_retries": 0},
        result_backend_transport_options={"retry_policy": quick},
        redis_socket_connect_timeout=1,
    )
    app.conf[name] = url
    return app


@pytest.mark.parametrize("name", SETTINGS)
@given(urls, st.sampled_from([[], ["--json"]]))
def test_doctor_shows_no_piece_of_a_password(
    name: str, hostile: tuple[str, str], options: list[str]
) -> None:
    form, password = hostile
    app = app_with(name, form.format(password))
    if name != "broker_url":
        app.conf.broker_url = "redis://localhost:1/0"  # no worker is waited for
    obj = CLIContext(app, no_color=True, workdir=None)
    try:
        told = CliRunner().invoke(cli.clutch, ["doctor", "--timeout", "0.1", *options], obj=obj)
        assert not shown(password, told.output), told.output
        assert told.exception is None or isinstance(told.exception, SystemExit)
    finally:
        forget_runtime(app)


@pytest.mark.parametrize("name", SETTINGS)
@given(urls)
def test_engage_shows_no_piece_of_a_password(name: str, hostile: tuple[str, str]) -> None:
    form, password = hostile
    app = app_with(name, form.format(password))
    try:
        app.task(name="secrets.job")(int)
        Clutch(app.tasks["secrets.job"].s(), app=app).engage()
    except Exception as exc:
        told = "".join(traceback.format_exception(exc))
        assert not shown(password, told), told
    finally:
        forget_runtime(app)
