"""What happens in the shop, from top to bottom."""

from celery_clutch import Sequence, parallel

from . import tasks


class Checkout(Sequence):
    """From an order to a parcel. Starts with ``order``, the key of an Order."""

    steps = [
        tasks.reserve,
        parallel(tasks.charge, tasks.write_invoice),
        tasks.ship,
        tasks.tell_customer,
    ]
    on_death = tasks.hold_order
    tags = ["orders"]


class Restock(Sequence):
    """Thirty boxes of a product. Starts with ``product``, its name."""

    steps = [
        tasks.order_more.s(30),
        parallel(tasks.unpack.s(box) for box in range(1, 31)),
        tasks.count_in,
    ]
    tags = ["stock"]
