"""Where Celery's versions differ, or keep something to themselves."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group

from celery_clutch.compile import compat


def app_with(backend: str | None) -> Celery:
    return Celery("compat", broker="memory://", backend=backend, set_as_current=False)


def test_chain_is_the_class_of_every_chain(app: Celery) -> None:
    @app.task(name="t")
    def t() -> None: ...

    assert isinstance(chain(t.si(), t.si()), compat.Chain)
    assert isinstance(t.si() | t.si(), compat.Chain)
    assert not isinstance(group([t.si()]), compat.Chain)
    assert not isinstance(chord([t.si()], t.si()), compat.Chain)


def test_chain_takes_its_tasks_as_they_are(app: Celery) -> None:
    @app.task(name="t")
    def t() -> None: ...

    first, second = t.si(), group([t.si(), t.si()])
    made = compat.Chain(first, second, app=app)
    assert made.tasks[0] is first
    assert made.tasks[1] is second


def test_outside_a_task_there_is_none() -> None:
    assert compat.current_task() is None
    assert not compat.inside_task()


def test_inside_a_task_there_is_one(eager: Celery) -> None:
    seen: list[Any] = []

    @eager.task(name="look")
    def look() -> None:
        seen.extend([compat.current_task().name, compat.inside_task()])

    look.delay()
    assert seen == ["look", True]
    assert compat.current_task() is None


def test_fits(app: Celery) -> None:
    @app.task(name="plain")
    def plain(a: int, b: int = 0, *, c: int = 0) -> None: ...

    @app.task(name="bound", bind=True)
    def bound(self: Task, a: int) -> None: ...

    @app.task(name="loose", typing=False)
    def loose() -> None: ...

    assert compat.fits(plain, (1,), {})
    assert compat.fits(plain, [1, 2], {"c": 3})
    assert compat.fits(plain, None, {"a": 1})
    assert not compat.fits(plain, (), None)
    assert not compat.fits(plain, (1, 2, 3), {})
    assert not compat.fits(plain, (1,), {"d": 1})
    assert compat.fits(bound, (1,), {})
    assert not compat.fits(bound, (1, 2), {})
    assert compat.fits(loose, (1, 2, 3), {"x": 1})


def received(app: Celery, queue: str) -> Any:
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as found:
        message = found.get_nowait()
        message.ack()
        return message


def test_send_unchecked_sends_what_does_not_fit(app: Celery) -> None:
    @app.task(name="strict", queue="mine", priority=3)
    def strict(a: int) -> None: ...

    with pytest.raises(TypeError):
        strict.apply_async((1, 2, 3))
    result = compat.send_unchecked(strict, (1, 2, 3), {"z": 1}, {"headers": {"mine": "yes"}})
    message = received(app, "mine")
    args, kwargs, _ = message.payload
    assert (args, kwargs) == ([1, 2, 3], {"z": 1})
    assert message.headers["task"] == "strict"
    assert message.headers["id"] == result.id
    assert message.headers["mine"] == "yes"
    assert message.properties["priority"] == 3


def test_send_unchecked_lets_the_call_have_its_way(app: Celery) -> None:
    @app.task(name="routed", queue="mine", ignore_result=True)
    def routed() -> None: ...

    compat.send_unchecked(routed, (), {}, {"queue": "other"})
    message = received(app, "other")
    assert message.headers["ignore_result"] is True
