"""A task's options: what may be written on a task, checked when it is defined.

`TaskOptions` is the only place where an option's name, type, default, check and meaning are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from celery_etcdlock.core import value_checks as checks
from celery_etcdlock.core.declared import declared, declared_in
from celery_etcdlock.core.lifetimes import LIFETIMES, Lifetime
from celery_etcdlock.core.policies import Policies, check_on_conflict, having
from celery_etcdlock.errors import InvalidOption


def _check_unique_on(value: object) -> tuple[str, ...] | str:
    """``"*"``, or a tuple of names; a plain string is one name."""
    if isinstance(value, str):
        return "*" if value == "*" else (str.__str__(value),)
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"must be a list of argument names, '*' for all, or None, not {checks.shown(value)}")
    if not value:
        raise ValueError("is empty: name at least one argument, or use None to lock on the task's name alone")
    for name in value:
        if not isinstance(name, str):
            raise ValueError(f"must hold argument names as str, not {checks.shown(name)}")
        if name == "*":
            raise ValueError("has '*' among other names: write unique_on='*' for all arguments")
    return tuple(map(str.__str__, value))


def _check_lock_key(value: Any) -> Any:
    """The shape alone: a template's fields and a callable need the signature, which `LockNaming` knows."""
    if isinstance(value, (list, tuple)):
        if not value or not all(isinstance(each, str) for each in value):
            raise ValueError("as a list must hold template strings, at least one")
        return tuple(value)
    if not isinstance(value, str) and not callable(value):
        raise ValueError(f"must be a template string or a callable, not {checks.shown(value)}")
    return value


@dataclass(frozen=True)
class TaskOptions:
    """The options of one task, checked. ``None`` in ``lock_ttl`` and ``on_conflict`` means the setting."""

    lock: str = declared(
        "while_executing",
        checks.choice(*LIFETIMES),
        "when the lock is held: `while_executing`, around the body; `until_executing`, from the call until it starts; "
        "`until_executed`, from the call until it ends; `until_and_while_executing`, both apart, so that one runs and "
        "one is queued; `until_expired`, for `unique_for` seconds from the call",
    )
    unique_on: tuple[str, ...] | str | None = declared(
        None, _check_unique_on, 'argument names that make the key; `"*"` all of them; `None` the task\'s name alone'
    )
    lock_key: str | tuple[str, ...] | Callable[..., object] | None = declared(
        None,
        _check_lock_key,
        "explicit lock name: a format template over the bound arguments, a callable of them, or several: a list of "
        "templates, a callable that returns a list",
    )
    lock_ttl: int | None = declared(
        None,
        checks.whole_seconds,
        "whole seconds until a dead holder's lock is free; `None`: the setting `etcdlock_ttl`",
    )
    on_conflict: str | Callable[..., object] | Policies | None = declared(
        None,
        check_on_conflict,
        "what a loser gets: `skip`, `raise`, `retry`, `wait`, `join`, `replace`; `{'enqueue': ..., 'run': ...}`; a "
        "callable of the `LockConflict` that returns one of them; `None`: the setting `etcdlock_on_conflict`",
    )
    wait_timeout: float = declared(
        300.0,
        checks.seconds,
        "seconds that `retry`, `wait` and `join` keep trying before the task fails with LockConflict",
    )
    lock_limit: int = declared(1, checks.whole_number(1, " of holders"), "how many may hold the lock at once")
    pending_ttl: float | None = declared(
        None,
        checks.seconds,
        "seconds, from when it is due, that a lock taken at enqueue stands for a message that hasn't started; `None`: "
        "until the message expires, else 3600",
    )
    unique_for: float | None = declared(
        None, checks.seconds, "`until_expired`: seconds that the key stays taken, counted from the call"
    )
    lock_at_least_for: float = declared(
        0.0, checks.seconds_or_none, "least hold: seconds that the lock stays taken from when it was"
    )
    on_lock_lost: str = declared(
        "raise",
        checks.choice("raise", "flag"),
        "what happens in a running task whose lock is lost: `raise` LockLost in it where the pool can, or `flag`: "
        "`current_lock().lost` says so",
    )

    @classmethod
    def from_attributes(cls, task_name: str, attributes: Mapping[str, Any]) -> TaskOptions:
        """From what is written on the task; names that we don't know are passed over. Raises `InvalidOption`."""
        values: dict[str, Any] = {}
        for option in OPTIONS:
            try:
                values[option.name] = option.checked(attributes.get(option.name, option.default))
            except ValueError as error:
                raise InvalidOption(f"task {task_name!r}: {option.name} {error}") from None
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
        if self.unique_on is not None and self.lock_key is not None:
            raise ValueError("unique_on and lock_key are both given, and each makes the whole key: leave one out")
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


OPTIONS = declared_in(TaskOptions)
OPTION_NAMES = tuple(option.name for option in OPTIONS)


def unknown_option(name: str, known_elsewhere: Iterable[str] = ()) -> str:
    """What to say of a keyword that neither we nor Celery know: Celery would take it in silence."""
    hint = checks.did_you_mean(name, {*OPTION_NAMES, *known_elsewhere})
    return f"unknown option {name!r}{hint}; celery-etcdlock's options are {', '.join(OPTION_NAMES)}"
