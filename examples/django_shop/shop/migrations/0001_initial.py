import django.db.models.deletion
from django.db import migrations, models


def stock_up(apps, schema_editor):
    products = apps.get_model("shop", "Product").objects.using(schema_editor.connection.alias)
    for name, stock in (("Teapot", 3), ("Tea", 12)):
        products.create(name=name, stock=stock)


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Product",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        primary_key=True, serialize=False, auto_created=True, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100, unique=True)),
                ("stock", models.PositiveIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        primary_key=True, serialize=False, auto_created=True, verbose_name="ID"
                    ),
                ),
                ("product", models.ForeignKey("shop.Product", django.db.models.deletion.PROTECT)),
                ("customer", models.CharField(max_length=100)),
                ("card", models.CharField(max_length=19)),
                ("state", models.CharField(max_length=20, default="placed")),
                ("run", models.CharField(max_length=200, blank=True)),
            ],
        ),
        migrations.RunPython(stock_up, migrations.RunPython.noop),
    ]
