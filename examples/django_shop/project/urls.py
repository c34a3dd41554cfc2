from django.contrib import admin
from django.urls import path
from shop import views

urlpatterns = [
    path("", views.orders, name="orders"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("restock/", views.restock, name="restock"),
    path("admin/", admin.site.urls),
]
