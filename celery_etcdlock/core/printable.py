"""Makes texts that others wrote safe to show to people, in a terminal, a log or a page. All of them pass here.

Whoever may write under the prefix chooses lock names, task names and hosts. Control characters would drive the
operator's terminal, line breaks forge log lines, and right-to-left marks turn the text around them; all of them
become visible escapes (``\\x1b``, ``\\u202e``). Letters of every script stay as they are. HTML is text here, and the
page puts it in as text too.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` without invisible characters. A command finds the lock by the text that is shown, too."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
