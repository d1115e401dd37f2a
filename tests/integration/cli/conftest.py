"""An app on a prefix of its own, and the ``celery etcdlock`` command on it, in this process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_etcdlock import EtcdLocks
from celery_etcdlock.cli import etcdlock
from tests.etcd_server import EtcdServer

_numbers = itertools.count()


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def new_app(etcd: EtcdServer) -> Iterator[Callable[..., Celery]]:
    apps: list[Celery] = []

    def make(**settings: object) -> Celery:
        app = Celery(f"cli{next(_numbers)}", broker="memory://", set_as_current=False)
        app.conf.update({"etcdlock_endpoints": etcd.endpoint, "etcdlock_ttl": 3, "etcdlock_timeout": 2} | settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        EtcdLocks.from_app(app).close()


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


def run_on(app: Celery, *arguments: str, answer: str | None = None) -> Ran:
    result = CliRunner().invoke(etcdlock, list(arguments), obj=SimpleNamespace(app=app), input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def run(app: Celery) -> Run:
    return lambda *arguments, **options: run_on(app, *arguments, **options)
