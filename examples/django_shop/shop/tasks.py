"""The steps. What one step finds out, those after it read in ``self.data``."""

from celery import shared_task
from django.db.models import F

from .models import Order, Product


@shared_task(bind=True)
def reserve(self):
    order = Order.objects.select_related("product").get(pk=self.data["order"])
    if not Product.objects.filter(pk=order.product_id, stock__gt=0).update(stock=F("stock") - 1):
        raise ValueError(f"{order.product} is out of stock")
    self.data["product"] = order.product.name
    return order.product.name


@shared_task(bind=True, max_retries=5, default_retry_delay=0.5)
def charge(self):
    order = Order.objects.get(pk=self.data["order"])
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the bank is busy"))
    if order.card.endswith("0"):
        raise ValueError("the card was declined")
    self.data["receipt"] = f"R-{order.pk:05}"
    return self.data["receipt"]


@shared_task(bind=True)
def write_invoice(self):
    self.data["invoice"] = f"invoice-{self.data['order']}.pdf"
    return self.data["invoice"]


@shared_task(bind=True)
def ship(self):
    Order.objects.filter(pk=self.data["order"]).update(state="shipped")
    return f"{self.data['product']} is on its way with {', '.join(self.previous_results)}"


@shared_task(bind=True)
def tell_customer(self):
    return f"told the customer: {self.previous_results[0]}"


@shared_task
def hold_order(status):
    """Sent when a job of a checkout has no retries left."""
    Order.objects.filter(run=status["id"]).update(state="needs attention")


@shared_task(bind=True)
def order_more(self, amount):
    self.data["ordered"] = amount
    return amount


@shared_task
def unpack(box):
    return box


@shared_task(bind=True)
def count_in(self):
    boxes = len(self.previous_results)
    self.data["arrived"] = boxes * 10
    Product.objects.filter(name=self.data["product"]).update(stock=F("stock") + boxes * 10)
    return boxes
