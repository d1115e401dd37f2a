"""``pydantic=True``: models as arguments, as the caller has them and as they arrive, make one key."""

from __future__ import annotations

from typing import Any

import celery
import pytest

from celery_etcdlock import current_lock, singleton_task
from celery_etcdlock.testing import hold
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, messages, run_message

pydantic = package("pydantic")
pytestmark = pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery knows models from 5.5 on")


class Order(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    number: int
    note: str = ""


def define(lab: Lab, **options: Any) -> Any:
    def body(order: Order, full: bool = False) -> Order:
        assert isinstance(order, Order)
        return Order(number=order.number, note=current_lock().name)

    return singleton_task(app=lab.app, name="task", shared=False, pydantic=True, **options)(body)


def as_sent(order: Order) -> Any:
    """Before 5.7 the caller dumps."""
    return order if celery.VERSION >= (5, 7) else order.model_dump()


@pytest.mark.parametrize("options", [{"unique_on": ["order"]}, {"unique_on": "*"}, {"lock_key": "o:{order[number]}"}])
@pytest.mark.parametrize("lock", ["while_executing", "until_executed"])
def test_one_key_for_one_order(lab: Lab, options: dict[str, Any], lock: str) -> None:
    task = define(lab, lock=lock, on_conflict="raise" if lock == "while_executing" else "skip", **options)
    first = task.delay(as_sent(Order(number=1)))
    assert task.delay(as_sent(Order(number=2))).id != first.id
    if lock == "until_executed":
        assert task.delay(order=as_sent(Order(number=1))).id == first.id
    for message in messages(lab.app):
        run_message(lab.app, message)
    name = first.get(timeout=5)["note"]
    with hold(task, as_sent(Order(number=1))) as lock_held:
        assert lock_held.name == name
