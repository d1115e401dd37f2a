"""What interrupts a task from outside, whatever code its thread is in just then: nothing of ours may swallow it.

It is raised by a signal's handler or as an asynchronous exception, so it can come out of any line, also of a
listener's. Others that do so aren't of class ``Exception``, and are swallowed by nobody.
"""

from __future__ import annotations

from celery.exceptions import SoftTimeLimitExceeded

from celery_etcdlock.errors import LockLost


def interrupts(error: BaseException) -> bool:
    """Whether ``error`` was thrown in from outside, rather than raised by the code that ran."""
    return isinstance(error, SoftTimeLimitExceeded) or (isinstance(error, LockLost) and error.thrown_in)
