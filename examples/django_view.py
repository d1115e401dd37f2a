"""Behind a Django view: however often it is called, one statement for the customer is under way, and it has all orders.

The task's lock is taken when it is called, and the call is made when the transaction commits: one that is rolled back
takes no lock and sends nothing. This file is a whole Django project; its settings are the names in capitals.
"""

from __future__ import annotations

import os

import django
from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from celery_etcdlock import singleton_task
from celery_etcdlock.testing import assert_free, assert_locked
from examples.support import expect, folder, inside, say, spans, wait_for, workers

os.environ.setdefault("DJANGO_SETTINGS_MODULE", __name__)
SECRET_KEY = "only an example"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = __name__
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder() / "shop.db"}}

app = Celery("shop")


# DjangoTask brings delay_on_commit.
@singleton_task(app=app, base=DjangoTask, name="send_statement", lock="until_executed", unique_on=["customer"])
def send_statement(customer: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders WHERE customer = %s", [customer])
        (orders,) = cursor.fetchone()
    with inside(f"statement {customer}", call=f"{orders} orders"):
        return int(orders)


@transaction.atomic
def order(request: HttpRequest, customer: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (customer) VALUES (%s)", [customer])
    send_statement.delay_on_commit(customer)
    if "fail" in request.GET:
        transaction.set_rollback(True)
        return HttpResponse("rolled back", status=409)
    return HttpResponse("ordered")


urlpatterns = [path("order/<customer>", order)]


def main() -> None:
    django.setup()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (customer text)")
    client = Client()
    codes = [client.post("/order/anna").status_code for _ in range(10)]
    say(f"Ten requests for anna: HTTP {set(codes)}.")
    assert_locked(send_statement, "anna")
    client.post("/order/bob?fail=1")
    assert_free(send_statement, "bob")
    expect(queued() == 1, "one message is in the queue; bob's order was rolled back and sent none, and holds no lock")
    with workers("examples.django_view", "-c", "2", count=1):
        wait_for(lambda: any(span.end for span in spans("statement")), "the statement")
        wait_for(lambda: not is_locked("anna"), "its lock to be free")
        client.post("/order/anna")
        wait_for(lambda: len(spans("statement")) == 2, "the next statement")
    sent = [f"{span.key} of {span.call}" for span in spans("statement")]
    expect(sent == ["statement anna of 10 orders", "statement anna of 11 orders"], f"sent: {', '.join(sent)}")


def queued() -> int:
    with app.connection_for_read() as broker:
        return int(broker.default_channel.client.llen("celery"))


def is_locked(customer: str) -> bool:
    try:
        assert_free(send_statement, customer)
    except AssertionError:
        return True
    return False
