from celery_clutch_django import engage_on_commit
from django.db import transaction
from django.forms import modelform_factory
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from celery_clutch import ClutchError, ClutchResult

from .models import Order, Product
from .sequences import Checkout, Restock

OrderForm = modelform_factory(Order, fields=["product", "customer", "card"])


def orders(request):
    """All orders, and a form for one more."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with transaction.atomic():
            placed = form.save()
            # The worker must not look for the order before it is there.
            placed.run = engage_on_commit(Checkout(order=placed.pk)).id
            placed.save()
        return redirect("order", placed.pk)
    context = {
        "form": form,
        "orders": Order.objects.select_related("product").order_by("-pk")[:50],
        "products": Product.objects.order_by("name"),
    }
    return render(request, "shop/orders.html", context)


def order(request, pk):
    """An order, and how far it has come."""
    found = get_object_or_404(Order, pk=pk)
    try:
        status = ClutchResult(found.run).status()
    except ClutchError:  # the run has expired
        status = None
    return render(request, "shop/order.html", {"order": found, "status": status})


@require_POST
def restock(request):
    product = get_object_or_404(Product, pk=request.POST.get("product"))
    engage_on_commit(Restock(product=product.name))
    return redirect("orders")
