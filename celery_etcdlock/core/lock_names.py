"""From a task's call to the name of its lock.

    bound call  ->  canonical text  ->  lock name

A `LockNaming` is made once for a task and knows which of its arguments make the key:

* ``unique_on=None``: none of them. The name is the task's name, and the call isn't even looked at.
* ``unique_on=[...]`` or ``"*"``: the chosen arguments, or all. The call is bound to the task's signature
  (`call_arguments.py`); the chosen arguments' canonical text (`canonical.py`) is hashed. The name is
  ``{task name}:{32 hex digits}``.
* ``lock_key``: a template or a callable. Its text is the whole name, without the task's: so several tasks, and
  locks without a task, can share one. Several templates, or a callable that returns several names, make several locks.

Where the task is wrapped in a decorator that hides its signature, `decorated_signature.py` has the names.

Nothing about a call is in a name but its digest, unless ``lock_key`` puts it there. A plain digest of a value
that can be guessed (a phone number) can be found by trial, so a ``hash_key`` makes it keyed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from json.encoder import encode_basestring_ascii
from typing import Any

from celery_etcdlock.core.about import IsShown, about
from celery_etcdlock.core.call_arguments import CallArguments
from celery_etcdlock.core.canonical import canonical_text
from celery_etcdlock.core.decorated_signature import Decorated, hides
from celery_etcdlock.core.name_template import NameTemplate
from celery_etcdlock.core.value_checks import kind_of, no_such_argument
from celery_etcdlock.errors import InvalidKey, InvalidOption

DIGEST_HEX_DIGITS = 32
_BLAKE2B_MAX_KEY_BYTES = 64
_PERSONALISATION = b"celery-etcdlock"


class LockNames(tuple[str, ...]):
    """The names of a call's locks; ``about`` are the arguments that make them, for people, if they may be shown."""

    about: str | None = None

    @classmethod
    def of(cls, names: Iterable[str], about: str | None) -> LockNames:
        made = cls(names)
        made.about = about
        return made


class LockNaming:
    """How one task's lock is named.

    ``signature`` is that of the task's ``run`` without ``self``; ``checked`` is what Celery checks a call against: a
    decorator's wrapper may hide ``signature``, else it counts. Digests are keyed by `with_hash_key`, once the settings
    are known. Raises `InvalidOption` when the options don't fit the signature.
    """

    def __init__(
        self,
        task_name: str,
        signature: Signature,
        *,
        unique_on: tuple[str, ...] | str | None = None,
        lock_key: tuple[str, ...] | str | Callable[..., object] | None = None,
        checked: Signature | None = None,
    ) -> None:
        decorated: Decorated | None = None
        if checked is not None and hides(checked, signature):
            decorated = Decorated(checked, signature)
        else:
            signature = checked or signature
        self.task_name = task_name
        self.signature = signature
        self._hash_key: bytes | None = None
        parameters = signature.parameters.values()
        self._open_ended = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
        self._defaults = {each.name: each.default for each in parameters if each.default is not Parameter.empty}
        self._arguments = decorated or CallArguments(signature)
        templates = (lock_key,) if isinstance(lock_key, str) else lock_key if isinstance(lock_key, tuple) else ()
        self._callable = lock_key if callable(lock_key) and not templates else None
        try:
            self._chosen = self._choose(unique_on)
            if inspect.iscoroutinefunction(lock_key):
                name = _callable_name(lock_key)
                raise InvalidOption(f"lock_key {name} is an async function: use a plain one that returns a str")
            self._templates = tuple(
                NameTemplate(text, self._arguments.names, open_ended=self._open_ended) for text in templates
            )
        except InvalidOption as error:
            error.args = (f"task {task_name!r}: {error}",)
            raise
        if decorated is not None and unique_on != "*":
            fields = [name for template in self._templates for name in template.arguments]
            decorated.chosen = frozenset(fields or [name for name, _ in self._chosen or ()])

    def with_hash_key(self, hash_key: bytes | None) -> LockNaming:
        """The same naming, its digests keyed with ``hash_key``."""
        keyed = LockNaming.__new__(LockNaming)
        keyed.__dict__.update(self.__dict__, _hash_key=hash_key)
        return keyed

    def names_for(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], is_shown: IsShown | None = None
    ) -> tuple[str, ...]:
        """The names of the locks for a call, each once. ``is_shown``: as for ``core.about``. Raises `InvalidKey`."""
        try:
            if self._chosen is not None:
                bound = self._arguments.bind(args, kwargs) if self._chosen else {}
                name = f"{self.task_name}:{self._digest(self._canonical_text(bound))}"
                return LockNames.of([name], self._about(bound, is_shown))
            if self._templates:
                bound = self._arguments.bind(args, kwargs)
                names = [_checked_name(template.render(bound)) for template in self._templates]
                return tuple(dict.fromkeys(names))
            if self._callable is not None:
                return self._called_names(self._callable, args, kwargs)
        except InvalidKey as error:
            error.args = (f"task {self.task_name!r}: {error}",)
            raise
        return (self.task_name,)

    def _canonical_text(self, bound: Mapping[str, Any]) -> str:
        """What is hashed: the chosen arguments by name, ``{}`` without any. It holds argument values."""
        texts = [
            prefix + canonical_text(bound[name], name)
            for name, prefix in self._chosen or ()
            if name in bound  # what only **kwargs can carry may be absent, which is a value of its own
        ]
        return "{" + ",".join(texts) + "}"

    def _about(self, bound: Mapping[str, Any], is_shown: IsShown | None) -> str | None:
        """The chosen arguments for people, in the order of the signature; ``None`` where digests are keyed."""
        if self._hash_key is not None:
            return None
        chosen = {name for name, _ in self._chosen or ()}
        order = dict.fromkeys(name for name in (*self.signature.parameters, *sorted(chosen)) if name in chosen)
        values = [(name, bound[name]) for name in order if name in bound]
        # A default is in the code, and in no text of the call.
        return about((n, v, None if n in self._defaults and v is self._defaults[n] else is_shown) for n, v in values)

    def _choose(self, unique_on: tuple[str, ...] | str | None) -> tuple[tuple[str, str], ...] | None:
        """The chosen names, sorted, each with the text that precedes its value."""
        if unique_on is None:
            return None
        known = self._arguments.names
        names = known if unique_on == "*" else unique_on
        for name in names:
            if name not in known and not (self._open_ended and name.isidentifier()):
                raise InvalidOption(f"unique_on {no_such_argument(name, known)}")
            try:
                canonical_text(self._defaults.get(name), name)
            except InvalidKey as error:
                raise InvalidOption(f"the default of an argument in unique_on can't be used: {error}") from None
        return tuple((name, f"{encode_basestring_ascii(name)}:") for name in sorted(set(names)))

    def _digest(self, text: str) -> str:
        data = text.encode("ascii")
        key = self._hash_key
        if key is None:
            return hashlib.sha256(data).hexdigest()[:DIGEST_HEX_DIGITS]
        if len(key) > _BLAKE2B_MAX_KEY_BYTES:
            key = hashlib.blake2b(key).digest()
        return hashlib.blake2b(data, digest_size=DIGEST_HEX_DIGITS // 2, key=key, person=_PERSONALISATION).hexdigest()

    def _called_names(
        self, lock_key: Callable[..., object], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[str, ...]:
        args, kwargs = self._arguments.call(args, kwargs)
        source = _callable_name(lock_key)
        try:
            name = lock_key(*args, **kwargs)
        except Exception as error:
            problem = f"its lock_key {source} raised {type(error).__name__}; it is called with the task's arguments"
            raise InvalidKey(f"{problem} and must return a str") from error
        names = name if isinstance(name, list | tuple) else [name]
        if not names:
            raise InvalidKey(f"its lock_key {source} returned no name at all")
        return tuple(dict.fromkeys(_checked_name(each, source) for each in names))


def _checked_name(name: object, source: str = "template") -> str:
    if not isinstance(name, str):
        raise InvalidKey(f"its lock_key {source} must return a str or a list of them, not {kind_of(name)}")
    if not name:
        raise InvalidKey(f"its lock_key {source} came to an empty str, which can't name a lock")
    return str.__str__(name)


def _callable_name(function: object) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}.{name}"
