"""Gives locks to tasks that have none, as ``etcdlock_dedup`` says, before the worker forks its pool.

Our class is put in front of a task's own. So a task with its own base, ``autoretry_for`` or ``bind`` works as before. A
``SingletonTask`` keeps its own options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery, Task, bootsteps
from celery.exceptions import ImproperlyConfigured

from celery_etcdlock.app.etcd_locks import EtcdLocks
from celery_etcdlock.core.dedup_rules import BUILT_IN, DedupRule, rule_for
from celery_etcdlock.core.task_options import OPTION_NAMES, unknown_option
from celery_etcdlock.errors import InvalidOption
from celery_etcdlock.tasks.definition.checks import NotLockable
from celery_etcdlock.tasks.entry.seam import guard_instance
from celery_etcdlock.tasks.once_per_message import OncePerMessage
from celery_etcdlock.tasks.singleton_task import SingletonTask
from celery_etcdlock.tasks.task_classes import in_front_of

logger = logging.getLogger("celery_etcdlock")


class ApplyDedup(bootsteps.Step):
    """Applies the setting when a worker starts. A broken option keeps it from starting."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        rules = EtcdLocks.from_app(worker.app).settings.dedup
        if rules:
            deduplicate(worker.app, rules)


def deduplicate(app: Celery, rules: Iterable[DedupRule]) -> list[str]:
    """Give each matched task its lock. Returns their names. Raises ``ImproperlyConfigured``."""
    app.finalize()
    rules = tuple(rules)
    locked: list[str] = []
    used: set[str] = set()
    for name, task in sorted(app.tasks.items()):
        rule = rule_for(rules, name)
        if rule is None:
            continue
        used.add(rule.pattern)
        if rule.locks and not isinstance(task, SingletonTask):
            _give_lock(task, rule)
            locked.append(name)
    for rule in rules:
        if rule.pattern not in used:
            logger.warning(
                "celery-etcdlock: the pattern %r in etcdlock_dedup applies to no task of this worker. Its tasks: %s",
                rule.pattern,
                ", ".join(name for name in sorted(app.tasks) if not name.startswith(BUILT_IN)) or "none",
            )
    logger.info("celery-etcdlock: etcdlock_dedup gives locks to %s", ", ".join(locked) or "no task")
    return locked


def _give_lock(task: Task[Any, Any], rule: DedupRule) -> None:
    ours: type[SingletonTask[Any, Any]] = OncePerMessage if rule.options is None else SingletonTask
    options = dict(rule.options or {})
    own = type(task)
    try:
        for option in options:
            if option not in OPTION_NAMES:
                raise InvalidOption(f"task {task.name!r}: {unknown_option(option)}")
        attributes = {"__qualname__": own.__qualname__, "abstract": own.abstract, "_etcdlock_base_was_chosen": True}
        locked: Any = in_front_of(own, ours, **attributes | options)
        locked.__name__ = own.__name__
        locked._etcdlock_prepare(task.app)
    except InvalidOption as error:
        remedy = f". {{{task.name!r}: False}} in front of it leaves the task alone"
        remedy = remedy if isinstance(error, NotLockable) else ""
        raise ImproperlyConfigured(f"etcdlock_dedup[{rule.pattern!r}]: {error}{remedy}") from None
    task.__class__ = locked
    guard_instance(task)
