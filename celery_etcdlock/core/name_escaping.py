"""A lock's name as one segment of an etcd key.

A lock's keys are ``{prefix}v1/{segment}/{token}``, and its range is everything that begins with
``{prefix}v1/{segment}/``. A segment never holds a ``/``, so no name's range holds another name's keys (``a``
and ``a/b``). Long names are cut and end in ``~`` and a digest of the whole; ``~`` is always escaped
elsewhere, so nobody can write a name that collides with a cut one.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

from celery_etcdlock.errors import InvalidKey

MAX_SEGMENT_BYTES = 200
_KEPT_BYTES = 150
_SAFE = "._:=,@-"
_plain = re.compile(r"[A-Za-z0-9._:=,@-]+").fullmatch


def escape_name(name: str) -> str:
    """The etcd key segment for a lock name: ASCII, without ``/``, at most `MAX_SEGMENT_BYTES` long.

    Different names have different segments (those that are cut: by 128 bits of SHA-256). Raises `InvalidKey`
    for an empty name.
    """
    if not name:
        raise InvalidKey("a lock's name can't be empty")
    if len(name) <= MAX_SEGMENT_BYTES and _plain(name):
        return name
    # surrogatepass: a name that came from a broken file name or JSON's "\ud800" is odd, but it is a name.
    escaped = quote(name, safe=_SAFE, errors="surrogatepass").replace("~", "%7E")
    if len(escaped) <= MAX_SEGMENT_BYTES:
        return escaped
    kept = escaped[:_KEPT_BYTES]
    percent = kept.rfind("%", -2)  # a %XX that the cut would halve
    if percent >= 0:
        kept = kept[:percent]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kept}~{digest[:32]}"


def unescape_name(segment: str) -> str:
    """The lock name that a segment was made from. Of one that was cut, what is left of it, with the digest behind it.

    Never raises: whoever may write under our prefix may write what no name comes to.
    """
    kept, tilde, digest = segment.partition("~")
    try:
        return unquote(kept, errors="surrogatepass") + tilde + digest
    except UnicodeDecodeError:
        # The cut may have parted the bytes of a character.
        return unquote(kept, errors="replace").rstrip("\N{REPLACEMENT CHARACTER}") + tilde + digest
