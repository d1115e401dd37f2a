"""What interrupts a task from outside, whatever code its thread is in just then: nothing of ours may swallow it.

Each of these is raised by a signal's handler or as an asynchronous exception, so it can come out of any line, also of
a listener's. Others that do so aren't of class ``Exception``, and are swallowed by nobody.
"""

from __future__ import annotations

from celery.exceptions import SoftTimeLimitExceeded

from celery_etcdlock.errors import LockLost

__all__ = ["INTERRUPTIONS"]

INTERRUPTIONS: tuple[type[Exception], ...] = (SoftTimeLimitExceeded, LockLost)
