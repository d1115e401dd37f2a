"""The one function through which texts that others wrote go before people read them: in a terminal, a log or a page.

Whoever may write under the prefix chooses lock names, task names and hosts. Control characters would drive the
operator's terminal, line breaks forge log lines, and right-to-left marks turn the text around them; all of them
become visible escapes (``\\x1b``, ``\\u202e``). Letters of every script stay as they are. HTML is text here, and the
page puts it in as text too.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` without anything that isn't seen. What is shown can be given back to a command to find the lock."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
