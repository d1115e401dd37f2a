"""``docs/django.md``: its project, with its own tests, as a project of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.documented import ROOT, python_blocks

PAGE = "docs/django.md"
SETTINGS = """
SECRET_KEY = "only a test"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DJANGOS = ("admin", "auth", "contenttypes", "messages", "sessions")
INSTALLED_APPS = ["django.contrib." + name for name in DJANGOS] + ["shop"]
SILENCED_SYSTEM_CHECKS = ["admin.E403", "admin.E408", "admin.E409", "admin.E410"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
"""
EAGER = "CELERY_TASK_ALWAYS_EAGER = True\n"
MODELS = """
from django.db import models

class Order(models.Model):
    customer = models.CharField(max_length=100)
    closed = models.BooleanField(default=False)
"""
URLS = """
from django.urls import path
from shop.views import order
from shop.extra import close_orders

urlpatterns = [path("order/<customer>", order), path("close/<customer>", close_orders)]
"""
#: What the page shows and its own tests don't reach.
MORE_TESTS = """
from django.contrib import admin
from django.db import connection, transaction
from django.test import RequestFactory, TransactionTestCase
from celery_etcdlock.testing import use_locks
from shop.celery import app
from shop.models import Order

class MoreTests(TransactionTestCase):
    def test_the_settings_are_read(self):
        from celery_etcdlock import EtcdLocks
        settings = EtcdLocks.from_app(app).settings
        assert (settings.endpoints, settings.prefix) == (("127.0.0.1:2379",), "/celery-etcdlock/shop-production/")

    @use_locks("memory://")
    def test_the_lock_of_a_view_outlives_its_transaction(self):
        from celery_etcdlock import EtcdLocks
        Order.objects.create(customer="anna")
        held = []
        def at_the_commit():
            held.append(bool(EtcdLocks.from_app(app).holders("orders:anna")))
        def look(execute, *rest):
            transaction.on_commit(at_the_commit)
            return execute(*rest)
        with connection.execute_wrapper(look):
            assert self.client.post("/close/anna").status_code == 200
        assert True in held and False not in held
        assert not EtcdLocks.from_app(app).holders("orders:anna")
        assert Order.objects.get().closed

    @use_locks("memory://")
    def test_the_admin_sends_and_says_who_is_at_it(self):
        from django.core import mail
        from celery_etcdlock.testing import hold
        from shop.tasks import send_statement
        Order.objects.create(customer="anna")
        model_admin, said = admin.site._registry[Order], []
        model_admin.message_user = lambda request, text, level: said.append(text)
        model_admin.send_statements(RequestFactory().post("/"), Order.objects.all())
        assert len(mail.outbox) == 1 and not said
        with hold(send_statement, "anna"):
            model_admin.send_statements(RequestFactory().post("/"), Order.objects.all())
        assert said and "one is being made on" in said[0]
"""


def test_the_project_of_the_page(tmp_path: Path) -> None:
    settings, celery, package = python_blocks(PAGE, "Settings")
    files = {
        "__init__": package,
        "celery": celery,
        "settings": SETTINGS + settings + EAGER,
        "models": MODELS,
        "urls": URLS,
        "tasks": "\n".join(python_blocks(PAGE, "Tasks")),
        "views": "\n".join(python_blocks(PAGE, "Call when the transaction commits")),
        "extra": "\n".join(python_blocks(PAGE, "Locks in a view")),
        "admin": "\n".join(python_blocks(PAGE, "In the admin")),
        "tests": "\n".join(python_blocks(PAGE, "In tests")),
        "test_more": MORE_TESTS,
    }
    for name, text in files.items():
        path = tmp_path / "shop" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ETCDLOCK_", "CELERY_"))}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "django", "test", "shop"],
        cwd=tmp_path,
        env={**environment, "DJANGO_SETTINGS_MODULE": "shop.settings", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Ran 6 tests" in ran.stderr
