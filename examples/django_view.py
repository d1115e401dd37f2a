"""Behind a Django view: however often it is called, one statement is queued for a customer; the last has all orders.

The task works on what is in the database when it runs. So a call may be skipped only while another is queued that has
read nothing yet: ``until_and_while_executing`` frees the queued call's lock when its body starts. An order that comes
after that queues the next statement, which waits until the running one has ended. With ``until_executed`` that order
would be skipped, and be on no statement.

The call is made when the transaction commits: one that is rolled back takes no lock and sends nothing. This file is a
whole Django project; its settings are the names in capitals.
"""

from __future__ import annotations

import os
import time

import django
from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from celery_etcdlock import singleton_task
from examples.support import expect, expect_no_overlap, folder, inside, say, spans, wait_for, workers

os.environ.setdefault("DJANGO_SETTINGS_MODULE", __name__)
SECRET_KEY = "only an example"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = __name__
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder() / "shop.db"}}

app = Celery("shop")


# DjangoTask brings delay_on_commit.
@singleton_task(
    app=app,
    base=DjangoTask,
    name="send_statement",
    unique_on=["customer"],
    lock="until_and_while_executing",
    on_conflict={"enqueue": "skip", "run": "wait"},
)
def send_statement(customer: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders WHERE customer = %s", [customer])
        (orders,) = cursor.fetchone()
    with inside(f"statement {customer}", call=f"{orders} orders"):
        time.sleep(2)  # renders and mails it


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
    expect(queued() == 1, "one message is in the queue")
    client.post("/order/bob?fail=1")
    expect(queued() == 1, "bob's order was rolled back, and sent none")
    client.post("/order/bob")
    expect(queued() == 2, "nor did it leave a lock: bob's next order sent one")
    with workers("examples.django_view", "-c", "2", count=1):
        wait_for(lambda: bool(spans("statement anna")), "anna's statement")
        say("While anna's statement is made, she orders twice more.")
        client.post("/order/anna")
        client.post("/order/anna")
        wait_for(lambda: spans("statement anna")[-1].call == "12 orders", "a statement with these")
    sent = [span.call for span in spans("statement anna")]
    expect(sent[0] == "10 orders", f"each order is on a statement: {', '.join(sent)}")
    expect_no_overlap("statement anna")


def queued() -> int:
    with app.connection_for_read() as broker:
        return int(broker.default_channel.client.llen("celery"))
