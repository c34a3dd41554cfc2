from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100, unique=True)
    stock = models.PositiveIntegerField(default=0)

    def __str__(self):
        return self.name


class Order(models.Model):
    product = models.ForeignKey(Product, models.PROTECT)
    customer = models.CharField(max_length=100)
    card = models.CharField(max_length=19)
    state = models.CharField(max_length=20, default="placed")
    run = models.CharField(max_length=200, blank=True)

    def __str__(self):
        return f"{self.product} for {self.customer}"
