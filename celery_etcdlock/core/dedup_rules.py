"""Deduplication of whole workers: which tasks that know nothing of locks get one, and which (``etcdlock_dedup``).

Either ``"task_id"`` for all tasks, or a mapping from patterns of task names to ``"task_id"``, to options as a
``SingletonTask`` has them, or to ``False``, which leaves them alone; the first pattern that matches counts.
``"task_id"`` locks on the message itself: it is never run twice at once, nor again after it has run. Celery's own tasks
(``celery.*``) are matched by their whole name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from celery_etcdlock.core.value_checks import shown

TASK_ID = "task_id"
BUILT_IN = "celery."


@dataclass(frozen=True)
class DedupRule:
    """What tasks whose names match ``pattern`` get: ``options`` of a lock, or ``None`` for one on the message's id."""

    pattern: str
    options: Mapping[str, Any] | None
    #: Whether they get any.
    locks: bool = True


def check_dedup(value: Any) -> tuple[DedupRule, ...]:
    """The setting, checked for its shape. Raises ``ValueError`` with the end of a sentence."""
    if value in (None, "", [], {}):
        return ()
    if value == TASK_ID:
        return (DedupRule("*", None),)
    if not isinstance(value, Mapping):
        raise ValueError(f"must be '{TASK_ID}' or a dict of task name patterns, not {shown(value)}")
    rules = []
    for pattern, options in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"has a key that is no task name pattern: {shown(pattern)}")
        locks = options is not False
        if options == TASK_ID or not locks:
            options = None
        elif not isinstance(options, Mapping):
            raise ValueError(
                f"has for {pattern!r} neither '{TASK_ID}' nor a dict of lock options nor False, but {shown(options)}"
            )
        rules.append(DedupRule(pattern, options, locks))
    return tuple(rules)


def rules_from_words(words: Iterable[str]) -> str | dict[str, Any]:
    """The setting that ``--etcdlock-dedup`` stands for: ``task_id``, or patterns of tasks to lock by arguments."""
    setting: dict[str, Any] = {}
    for word in words:
        setting["*" if word == TASK_ID else word] = TASK_ID if word == TASK_ID else {"unique_on": "*"}
    if TASK_ID in setting.values():
        setting["*"] = setting.pop("*")  # last, since the first match counts
    return setting


def rule_for(rules: Iterable[DedupRule], task_name: str) -> DedupRule | None:
    """The first rule that matches."""
    for rule in rules:
        by_pattern = not task_name.startswith(BUILT_IN)
        if rule.pattern == task_name or (by_pattern and fnmatchcase(task_name, rule.pattern)):
            return rule
    return None
