"""Flask's documented recipe: each body has its application context, and its lock."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Task

from celery_etcdlock import SingletonTask, singleton_task
from tests.companions.packages import package
from tests.unit.tasks.lab import Lab, run_message

flask = package("flask")
web = flask.Flask("shop")
web.config["GREETING"] = "hi"


class FlaskTask(Task):  # type: ignore[type-arg]
    """As Flask's documentation has it."""

    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        with web.app_context():
            return self.run(*args, **kwargs)


class Over(SingletonTask[Any, Any]):
    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        with web.app_context():
            return self.run(*args, **kwargs)


class Before(FlaskTask, SingletonTask[Any, Any]):
    abstract = True


class Behind(SingletonTask[Any, Any], FlaskTask):
    abstract = True


MAKERS: dict[str, Any] = {
    "the app's": lambda app: singleton_task(app=app, name="task", shared=False),
    "base": lambda app: singleton_task(app=app, base=FlaskTask, name="task", shared=False),
    "over": lambda app: app.task(base=Over, name="task", shared=False),
    "before": lambda app: app.task(base=Before, name="task", shared=False),
    "behind": lambda app: app.task(base=Behind, name="task", shared=False),
}


@pytest.mark.parametrize("how", MAKERS)
def test_context_and_lock(lab: Lab, how: str) -> None:
    lab.app.Task = FlaskTask

    def body() -> str:
        lab.body()
        return str(flask.current_app.config["GREETING"])

    task = MAKERS[how](lab.app)(body)
    result, message = lab.publish(task)
    run_message(lab.app, message)
    assert result.get(timeout=5) == task() == task.apply().get() == "hi"
    assert lab.bodies == ["task"] * 3
    with lab.locks.lock("task"):
        result, message = lab.publish(task)
        run_message(lab.app, message)
    assert result.state == "REVOKED"
    assert lab.bodies == ["task"] * 3
