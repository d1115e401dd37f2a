"""Tokens, which make the keys of a process's locks its own, and their use for the next lock of the same name.

A token tells one holding of a lock from another while both may be there: a late request, a copy, a successor. Once a
holding has come to an end that nobody can doubt, its token may serve again: whatever is still under way for it is
fenced, acquires by their session's epoch (rule 3) and releases by the key's ``mod_revision`` (rule 1).

Why it should: until the next compaction etcd walks over every key that was ever under a name when it reads or compares
that name. With a new key for each holding, a lock that is taken ten times a second makes each acquire a millisecond
slower within half an hour; an etcd that nobody compacts, ever slower. With a token that serves again a name has as
many keys as it had holders at once.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict

#: For how many names tokens are kept: those used last.
MOST_NAMES = 4096


class KeyTokenPool:
    """Tokens that are free, by lock name. Safe for threads and signal handlers' exceptions: at worst one is lost.

    There is no mutex, which a thread that is struck would leave locked: each step is a single operation, and atomic.
    """

    def __init__(self, most_names: int = MOST_NAMES) -> None:
        self._most_names = most_names
        self._free: OrderedDict[str, list[str]] = OrderedDict()

    def take(self, name: str) -> str:
        """A token under which nobody has a key of this name, and nobody else will ask for one."""
        tokens = self._free.get(name)
        if tokens:
            try:
                return tokens.pop()
            except IndexError:  # another thread was quicker
                pass
        return secrets.token_hex(12)

    def give_back(self, name: str, token: str) -> None:
        """Only after a definite answer that the token has no key any more, and none can come."""
        self._free.setdefault(name, []).append(token)
        try:
            self._free.move_to_end(name)
            if len(self._free) > self._most_names:
                self._free.popitem(last=False)
        except KeyError:  # another thread has forgotten this name, or them all
            pass
