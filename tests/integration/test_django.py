"""``delay_on_commit`` with real Django transactions: the lock is taken when the message is sent, and only then."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import django
import pytest
from celery import Celery
from celery.contrib.django.task import DjangoTask
from django.conf import settings
from django.db import connection, transaction
from kombu.exceptions import OperationalError

from celery_etcdlock import EtcdLocks, LockConflict, singleton_task
from tests.etcd_server import EtcdServer, free_ports
from tests.redis_server import RedisServer

_numbers = itertools.count()


class RolledBackError(Exception):
    pass


class Shop:
    """An app with one task, and what its calls leave behind."""

    def __init__(self, name: str, broker: str, endpoint: str, **options: Any) -> None:
        self.app = Celery(name, broker=broker, set_as_current=False)
        self.app.conf.update(etcdlock_endpoints=endpoint, task_publish_retry=False, task_default_queue=self.app.main)
        self.app.conf.broker_transport_options = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

        @singleton_task(app=self.app, base=DjangoTask, name="statement", lock="until_executed", **options)
        def statement(customer: str) -> None: ...

        self.task: Any = statement

    def locked(self) -> bool:
        return bool(EtcdLocks.from_app(self.app).holders("statement"))

    def queued(self) -> int:
        with self.app.connection_for_read() as broker:
            return int(broker.default_channel.client.llen(self.app.main))

    def close(self) -> None:
        EtcdLocks.from_app(self.app).close()
        self.app.close()


@pytest.fixture(autouse=True, scope="module")
def database() -> Iterator[None]:
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
        django.setup()
    yield
    connection.close()


@pytest.fixture
def new_shop(redis: RedisServer, etcd: EtcdServer) -> Iterator[Callable[..., Shop]]:
    shops: list[Shop] = []
    name = f"django{os.getpid()}x{next(_numbers)}"

    def make(broker: str = redis.url(0), **options: Any) -> Shop:
        shops.append(Shop(name, broker, etcd.endpoint, **options))
        return shops[-1]

    yield make
    shops[-1].app.control.purge()
    for shop in shops:
        shop.close()


def test_a_transaction_that_is_rolled_back_leaves_no_lock_and_no_message(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop()

    def order_that_fails() -> None:
        with transaction.atomic():
            shop.task.delay_on_commit("anna")
            assert not shop.locked()
            raise RolledBackError

    with pytest.raises(RolledBackError):
        order_that_fails()
    assert not shop.locked()
    assert shop.queued() == 0


def test_the_commit_takes_the_lock_and_sends_one_message(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop()
    for _ in range(3):
        with transaction.atomic():
            shop.task.delay_on_commit("anna")
            shop.task.apply_async_on_commit(("anna",))
    assert shop.locked()
    assert shop.queued() == 1


def test_a_savepoint_that_is_rolled_back_takes_its_call_with_it(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop()
    with transaction.atomic(), suppress(RolledBackError), transaction.atomic():
        shop.task.delay_on_commit("anna")
        raise RolledBackError
    assert not shop.locked()
    assert shop.queued() == 0


def test_a_broker_that_is_away_at_the_commit_leaves_no_lock(new_shop: Callable[..., Shop]) -> None:
    [port] = free_ports(1)
    cut_off = new_shop(broker=f"redis://127.0.0.1:{port}/0")

    def order() -> None:
        with transaction.atomic():
            cut_off.task.delay_on_commit("anna")

    with pytest.raises(OperationalError):
        order()
    assert not cut_off.locked()
    connected = new_shop()
    with transaction.atomic():
        connected.task.delay_on_commit("anna")
    assert connected.queued() == 1


def test_a_conflict_that_raises_does_so_after_the_commit(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop(on_conflict="raise")
    first = shop.task.delay("anna")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS orders (customer text)")

    def order() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES ('anna')")
            shop.task.delay_on_commit("anna")

    with pytest.raises(LockConflict, match=first.id):
        order()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders")
        assert cursor.fetchone() == (1,)
