"""tenant-schemas-celery: a body runs in its tenant's schema, and two tenants' calls have keys of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from celery_etcdlock import EtcdLocks, current_lock, singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import messages, run_message

django = package("django")
conf = package("django.conf")
package("django_tenants")
package("tenant_schemas_celery")


@pytest.fixture(scope="module", autouse=True)
def configured() -> None:
    """A schema is only named here, so no server is needed."""
    conf.settings.configure(
        DATABASES={"default": {"ENGINE": "django_tenants.postgresql_backend", "NAME": "none"}},
        DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
        INSTALLED_APPS=["django.contrib.contenttypes", "django_tenants"],
        SHARED_APPS=["django_tenants"],
        TENANT_APPS=["django.contrib.contenttypes"],
        TENANT_MODEL="none.None",
        TENANT_DOMAIN_MODEL="none.None",
        USE_TZ=True,
    )
    django.setup()


def tenant(headers: Mapping[str, Any]) -> str:
    """As docs/keys.md has it."""
    from django.db import connection

    return str(headers.get("_schema_name") or connection.schema_name)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from tenant_schemas_celery.app import CeleryApp
    from tenant_schemas_celery.task import TenantTask

    class Tenant:
        def __init__(self, schema_name: str) -> None:
            self.schema_name = schema_name

    monkeypatch.delenv("ETCDLOCK_ENDPOINTS", raising=False)
    monkeypatch.setattr(TenantTask, "get_tenant_for_schema", staticmethod(Tenant))
    app = CeleryApp("tenants", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(etcdlock_endpoints="memory://", etcdlock_scope=tenant)
    messages(app)
    yield app
    EtcdLocks.from_app(app).close()


@pytest.mark.parametrize("lock", ["while_executing", "until_executed"])
def test_schema_and_key(app: Any, lock: str) -> None:
    from django.db import connection

    seen: list[Any] = []

    @singleton_task(app=app, name="task", shared=False, lock=lock, unique_on="*")
    def task(number: int) -> None:
        seen.append((connection.schema_name, current_lock().name.split(":")[0]))

    ids = []
    for schema in ("acme", "globex"):
        connection.set_tenant(type("Tenant", (), {"schema_name": schema})())
        ids += [task.delay(1).id, task.delay(1).id]
    connection.set_schema_to_public()
    assert len(set(ids)) == (2 if lock == "until_executed" else 4)
    for message in messages(app):
        run_message(app, message)
    assert set(seen) == {("acme", "acme"), ("globex", "globex")}
    assert connection.schema_name == "public"
