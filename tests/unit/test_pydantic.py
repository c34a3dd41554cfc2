"""Pydantic models as arguments, as Celery has them since 5.5."""

# No annotations of the future: Celery 5.5 does not see models in them.

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from celery import VERSION, Celery

from celery_clutch import Clutch, ClutchTask, series
from celery_clutch.errors import NonJSONArgument
from celery_clutch.testing import embedded

from .conftest import make_app

try:
    from pydantic import BaseModel
except ImportError:
    BaseModel = None  # type: ignore[assignment, misc]

since_5_5 = pytest.mark.skipif(VERSION < (5, 5), reason="pydantic=True is of Celery 5.5")


@pytest.fixture(autouse=True)
def installed(missing: Callable[[str, object], NoReturn]) -> None:
    if BaseModel is None:
        missing("pydantic", "it is not installed")


if BaseModel is not None:

    class Order(BaseModel):
        item: str
        count: int = 1

    class Receipt(BaseModel):
        item: str
        paid: float


@pytest.fixture
def app() -> Iterator[Celery]:
    app = make_app()
    with embedded(app):
        yield app


@since_5_5
@pytest.mark.parametrize("autoretry", [{}, {"autoretry_for": (LookupError,)}])
def test_models_as_arguments(app: Celery, autoretry: Any) -> None:
    seen: list[Any] = []

    @app.task(name="pay", pydantic=True, **autoretry)
    def pay(order: Order, *, more: Order | None = None) -> Receipt:
        seen.extend((order, more))
        return Receipt(item=order.item, paid=2.5 * order.count)

    @app.task(name="post", pydantic=True, bind=True, **autoretry)
    def post(self: ClutchTask, order: Order) -> list[Any]:
        seen.append(order)
        return self.previous_results

    order, more = Order(item="tea", count=2), Order(item="milk")
    run = series(pay.s(order, more=more), (post, order)).engage()
    assert run.get(timeout=10) == [[{"item": "tea", "paid": 5.0}]]
    assert seen == [order, more, order]


@since_5_5
def test_what_is_no_model_is_left_as_it_is(app: Celery) -> None:
    @app.task(name="pay", pydantic=True)
    def pay(order: Order, note: str = "") -> str:
        return f"{order.count} {order.item}{note}"

    assert Clutch(pay.s({"item": "tea"}, note="!")).engage().get(timeout=10) == ["1 tea!"]


def test_a_model_for_a_task_that_takes_none(app: Celery) -> None:
    @app.task(name="pay")
    def pay(order: Any) -> None: ...

    for step in (pay.s(Order(item="tea")), app.signature("far", (Order(item="tea"),))):
        with pytest.raises(NonJSONArgument, match=r"Order is a pydantic model.*model_dump"):
            Clutch(step).engage()


@pytest.mark.skipif(VERSION >= (5, 5), reason="pydantic=True is of Celery 5.5")
def test_below_5_5_it_is_said(app: Celery) -> None:
    @app.task(name="pay", pydantic=True)
    def pay(order: Any) -> None: ...

    with pytest.raises(NonJSONArgument, match=r"from 5\.5 on"):
        Clutch(pay.s(Order(item="tea"))).engage()
