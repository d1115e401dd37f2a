"""Locks that people hold without a task: ``EtcdLocks.lock`` for threads and greenlets, ``EtcdLocks.alock`` for asyncio.

States of one caller (a thread, a greenlet, a task of an event loop) on one lock object, which any number may share::

    state       how it is entered                       check()           owned()  remaining  acquire       release
    free        at first; after a release               NotLocked         no       0          waits         NotLocked
    waiting     acquire, while others hold the lock     NotLocked         no       0          an error      NotLocked
    held        acquire returned True, with entered     passes            yes      > 0        an error      -> free
    lost        it expired, its key was deleted,        LockLost          no       0          waits         LockLost
                or an operator asked for it
    released    of a holding that somebody kept         LockLost          -        0          -             -
    forked      held or lost, seen in a forked child    NotLocked         no       0          waits anew    NotLocked
    dropped     the object, its thread or its task is   the lock is released by the renewal's thread, with a
                gone, and nobody released it            ResourceWarning and an error in the log

*Whose it is.* Each acquire is its own caller's; what one does never touches what another holds. A ``with`` block
belongs to the function that it is in: a generator that web frameworks enter in one thread and leave in another leaves
its own block.

*Trust.* Each holding knows whether it can be trusted (``locking.lock``); the object only finds the caller's. One that
was released, lost, or copied into a fork can't be trusted.

``argument_checks`` checks what users pass, ``holdings`` knows whose a holding is, ``named_lock`` acquires and releases,
``etcd_lock`` and ``async_etcd_lock`` are the objects that users see, ``process_access`` has what they need of this
process.
"""
