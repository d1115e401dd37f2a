"""Which arguments of a call Celery shows: a caller hides one by an ``argsrepr`` or ``kwargsrepr`` of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_etcdlock.core.about import IsShown


def shown_by_celery(carrier: Any) -> IsShown | None:
    """Whether a value may be seen, by what Celery's log shows of the call. ``None``: nobody chose that.

    ``carrier`` is a request, or the options of a call. What these texts cut isn't shown either.
    """
    texts = [text for name in ("argsrepr", "kwargsrepr") if isinstance(text := _get(carrier, name), str)]
    if not texts:
        return None
    seen = " ".join(texts)
    return lambda text, value: text.strip("'\"") in seen or repr(value) in seen


def _get(carrier: Any, name: str) -> object:
    return carrier.get(name) if isinstance(carrier, Mapping) else getattr(carrier, name, None)
