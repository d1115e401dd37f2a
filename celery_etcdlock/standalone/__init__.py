"""Locks that people hold without a task: ``EtcdLocks.lock`` for threads and greenlets, ``EtcdLocks.alock`` for asyncio.

States of one caller (a thread, a greenlet, a task of an event loop) on one lock object, which any number may share::

    state       how it is entered                       check()           owned()  remaining  acquire       release
    free        at first; after a release               NotLocked         no       0          waits         NotLocked
    waiting     acquire, while others hold the lock     NotLocked         no       0          an error      NotLocked
    held        acquire returned True, with entered     passes            yes      > 0        an error      -> free
    lost        its time is over, its key was deleted,  LockLost          no       0          waits         LockLost
                or an operator asked for it
    released    of a holding that somebody kept         LockLost          -        0          -             -
    forked      held or lost, seen in a forked child    NotLocked         no       0          waits anew    NotLocked
    dropped     the object, its thread or its task is   the lock is released by the renewal's thread, with a
                gone, and nobody released it            ResourceWarning and an error in the log

*Whose it is.* Each acquire stands for its own caller; what one does never touches what another holds. A ``with`` block
belongs to whoever leaves it: a generator that is left in another thread than it was entered in (as web frameworks do)
leaves its own block.

*Trust.* A holding vouches for itself (``locking.lock``): the object only finds the caller's. What was released, lost,
or copied into a fork vouches for nothing.

``arguments`` checks what users pass, ``holdings`` knows whose a holding is, ``base`` acquires and releases,
``blocking`` and ``loop`` are the two objects that users see, ``access`` what they need of this process.
"""
