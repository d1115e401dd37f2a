"""The class that a locked task is made of: ours in front of the user's own, which is the app's unless they chose one.

Which class that is (``task_cls``, ``app.Task``, Django's, a tenant's) is known only when the app makes the task; a
shared task is made for each app. So the decorator passes a placeholder. Celery derives the task from it, with the app
in the namespace, and that moment replaces it.
"""

from __future__ import annotations

import types
from typing import Any, cast

from celery import Celery, Task

from celery_etcdlock.tasks.singleton_task import SingletonTask


class _Replaced(type):
    """Its ``__new__`` is asked when a class is derived from the placeholder, though it is by ``type(...)``."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> Any:
        app = namespace.get("app")
        if app is None or not any(isinstance(base, _Replaced) for base in bases):
            return super().__new__(mcs, name, bases, namespace, **keywords)
        found = tuple(in_front_of(app.Task) if isinstance(base, _Replaced) else base for base in bases)
        return types.new_class(name, found, keywords, lambda made: made.update(namespace))


class OfTheApp(metaclass=_Replaced):
    """Stands for the app's own task class, with a lock."""


def in_front_of(
    base: type[Task[Any, Any]], ours: type[SingletonTask[Any, Any]] = SingletonTask, **attributes: Any
) -> type[SingletonTask[Any, Any]]:
    """``base`` with ``ours`` before it, unless it is a locked task already."""
    if issubclass(base, SingletonTask):
        return base
    namespace = {"abstract": True, "__module__": base.__module__, "__doc__": base.__doc__} | attributes
    made = types.new_class(f"Singleton{base.__name__}", (ours, base), {}, lambda made: made.update(namespace))
    return cast("type[SingletonTask[Any, Any]]", made)


def known_class_of(app: Celery | None) -> type[Any] | None:
    """The app's own task class, as far as it is known without making or importing it."""
    if app is None:
        return None
    found = vars(app).get("Task", getattr(app, "task_cls", None))
    if found == Celery.task_cls:
        return Task
    return found if isinstance(found, type) else None
