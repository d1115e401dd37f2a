"""Deterministic simulation of the whole: production's code on a model of everything around it.

All processes of a deployment (producers, workers' MainProcesses, pool children) run in this one, each of their threads
as a greenlet, in virtual time, driven by one seeded random number generator. What is real: the package from
``SingletonTask.apply_async`` down to the bytes for etcd; Celery's tracer, requests, strategy and message format. What
is a model: etcd (``tests.model.model_etcd``), the broker, the result backend, the pool, the kernel, clocks.

Threads are switched where they wait: for the network, a lock, the time; in some runs also where they take a mutex.
What may happen between two other lines isn't explored here.

======================  ===============================================================================
``scheduler``           virtual time; threads, processes that freeze and die
``primitives``          locks, events and queues for them
``ambient``             puts the simulated clock, threads, ids and chance in the place of the real ones
``etcd``                one etcd behind each process's own bad network
``broker``, ``backend`` messages and results
``apps``                one Celery app for each process; tasks by their options; the script of a body
``worker``, ``pool``    a worker: MainProcess with the real strategy and gate, and its children
``plan``                what happens in a run, drawn from a seed; can be made smaller
``world``               all of it together; plays a plan
``director``            does what a plan says, at its time
``in_place``            puts the models where production asks for the real things
``ledger``              what was seen: calls, runs, results, claims
``properties``          what must hold, after every step and in the end
``coverage``            what was reached
``shrink``              makes a plan that fails smaller
``mutations``           production with one fix taken out
======================  ===============================================================================
"""
