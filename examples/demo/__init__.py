"""``make demo``: singleton tasks on two real workers, a real broker and a real etcd, and what happens at a kill -9.

``tasks`` is what a user would write. ``journal`` is what the bodies note down, ``evidence`` finds overlaps in it, and
``timeline`` draws it. ``servers`` and ``workers`` start and stop processes, ``scenes`` plays, ``__main__`` directs.
"""
