"""A task's options: what may be written on a task, checked when it is defined.

`OPTIONS` is the only place where an option's name, default, check and meaning are written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.core.lifetimes import LIFETIMES, Lifetime
from celery_etcdlock.core.lock_names import normalise_unique_on
from celery_etcdlock.core.policies import Policies, check_on_conflict, having
from celery_etcdlock.core.value_checks import (
    check_limit,
    check_whole_seconds,
    choice,
    did_you_mean,
    least_seconds,
    number_of_seconds,
    shown,
)
from celery_etcdlock.errors import InvalidOption


@dataclass(frozen=True)
class Option:
    """One option: ``check`` returns the value as it is used, or raises ``ValueError`` ("must be ...")."""

    name: str
    default: Any
    check: Callable[[Any], Any]
    doc: str


def _or_setting(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``None`` stands for the setting of the same meaning."""
    return lambda value: None if value is None else check(value)


def _check_lock_key(value: Any) -> Any:
    """The shape alone: a template's fields and a callable need the signature, which `LockNaming` knows."""
    if isinstance(value, (list, tuple)):
        if not value or not all(isinstance(each, str) for each in value):
            raise ValueError("as a list must hold template strings, at least one")
        return tuple(value)
    if value is not None and not isinstance(value, str) and not callable(value):
        raise ValueError(f"must be a template string or a callable, not {shown(value)}")
    return value


OPTIONS: tuple[Option, ...] = (
    Option(
        "lock",
        "while_executing",
        choice(*LIFETIMES),
        "when the lock is held: `while_executing`, around the body; `until_executing`, from the call until it starts; "
        "`until_executed`, from the call until it ends; `until_and_while_executing`, both apart, so that one runs and "
        "one is queued; `until_expired`, for `unique_for` seconds from the call",
    ),
    Option(
        "unique_on",
        None,
        normalise_unique_on,
        'argument names that make the key; `"*"` all of them; `None` the task\'s name alone',
    ),
    Option(
        "lock_key",
        None,
        _check_lock_key,
        "explicit lock name: a format template over the bound arguments, a callable of them, or several: a list of "
        "templates, a callable that returns a list",
    ),
    Option(
        "lock_ttl",
        None,
        _or_setting(check_whole_seconds),
        "whole seconds until a dead holder's lock is free; `None`: the setting `etcdlock_ttl`",
    ),
    Option(
        "on_conflict",
        None,
        _or_setting(check_on_conflict),
        "what a loser gets: `skip`, `raise`, `retry`, `wait`, `join`, `replace`; `{'enqueue': ..., 'run': ...}`; a "
        "callable of the `LockConflict` that returns one of them; `None`: the setting `etcdlock_on_conflict`",
    ),
    Option(
        "wait_timeout",
        300.0,
        number_of_seconds,
        "seconds that `retry`, `wait` and `join` keep trying before the task fails with LockConflict",
    ),
    Option("lock_limit", 1, check_limit, "how many may hold the lock at once"),
    Option(
        "pending_ttl",
        None,
        _or_setting(number_of_seconds),
        "seconds, from when it is due, that a lock taken at enqueue stands for a message that hasn't started; `None`: "
        "until the message expires, else 3600",
    ),
    Option(
        "unique_for",
        None,
        _or_setting(number_of_seconds),
        "`until_expired`: seconds that the key stays taken, counted from the call",
    ),
    Option("lock_at_least_for", 0.0, least_seconds, "least hold: seconds that the lock stays taken from when it was"),
    Option(
        "on_lock_lost",
        "raise",
        choice("raise", "flag"),
        "what happens in a running task whose lock is lost: `raise` LockLost in it where the pool can, or `flag`: "
        "`current_lock().lost` says so",
    ),
)
OPTION_NAMES: tuple[str, ...] = tuple(option.name for option in OPTIONS)


@dataclass(frozen=True)
class TaskOptions:
    """The options of one task, checked. ``None`` in ``lock_ttl`` and ``on_conflict`` means the setting.

    ``lock_ttl`` and ``wait_timeout`` are in seconds. Their defaults and meanings are in `OPTIONS`.
    """

    lock: str
    unique_on: tuple[str, ...] | str | None
    lock_key: str | tuple[str, ...] | Callable[..., object] | None
    lock_ttl: int | None
    on_conflict: str | Callable[..., object] | Policies | None
    wait_timeout: float
    lock_limit: int
    pending_ttl: float | None
    unique_for: float | None
    lock_at_least_for: float
    on_lock_lost: str

    @classmethod
    def from_attributes(cls, task_name: str, attributes: Mapping[str, Any]) -> TaskOptions:
        """From what is written on the task. Absent options have their default, names we don't know are passed over.

        Raises `InvalidOption`, which names the task and the option.
        """
        values: dict[str, Any] = {}
        for option in OPTIONS:
            value = attributes.get(option.name, option.default)
            try:
                values[option.name] = option.check(value)
            except ValueError as error:
                raise InvalidOption(f"task {task_name!r}: {option.name} {error}") from None
        if values["unique_on"] is not None and values["lock_key"] is not None:
            raise InvalidOption(
                f"task {task_name!r}: unique_on and lock_key are both given, and each makes the whole key: "
                "leave one out"
            )
        options = cls(**values)
        try:
            options._check_together()
        except ValueError as error:
            raise InvalidOption(f"task {task_name!r}: {error}") from None
        return options

    @property
    def lifetime(self) -> Lifetime:
        return LIFETIMES[self.lock]

    @property
    def policies(self) -> Policies:
        """What the task itself says about conflicts; ``None`` where it says nothing."""
        if isinstance(self.on_conflict, Policies):
            return self.on_conflict
        return Policies(self.on_conflict, self.on_conflict)

    def _check_together(self) -> None:
        lifetime = self.lifetime
        if self.lock == "until_expired" and self.unique_for is None:
            raise ValueError("lock='until_expired' needs unique_for, the seconds that the key stays taken")
        if self.lock != "until_expired" and self.unique_for is not None:
            raise ValueError(f"unique_for is for lock='until_expired', not for {self.lock!r}")
        if self.pending_ttl is not None and (not lifetime.at_enqueue or self.lock == "until_expired"):
            raise ValueError(f"pending_ttl is for locks that a queued message holds, not for lock={self.lock!r}")
        if self.lock_at_least_for and not lifetime.while_running:
            raise ValueError(f"lock_at_least_for needs a lock that is held while the task runs, not {self.lock!r}")
        self.policies.check_for(lifetime, is_pair=isinstance(self.on_conflict, Policies))
        for name in having(self.policies.names, lambda facts: facts.replaces):
            if self.lock_limit > 1:
                raise ValueError(f"on_conflict={name!r} can't tell which of several holders to replace: lock_limit=1")
        for name in having(self.policies.names, lambda facts: facts.in_order):
            if isinstance(self.lock_key, tuple):
                raise ValueError(f"on_conflict={name!r} is for one lock, not for a list in lock_key: use 'retry'")


def check_option_names(
    names: Iterable[str], known_celery_names: Collection[str], *, task_name: str | None = None
) -> None:
    """Refuse the keywords of a decorator that neither we nor Celery know, which Celery would take in silence.

    Raises `InvalidOption` with the nearest name.
    """
    known = {*OPTION_NAMES, *known_celery_names}
    for name in names:
        if name not in known:
            task = f"task {task_name!r}: " if task_name else ""
            raise InvalidOption(
                f"{task}unknown option {name!r}{did_you_mean(name, known)}; "
                f"celery-etcdlock's options are {', '.join(OPTION_NAMES)}"
            )
