"""The pure core: keys, options, records, and the lock protocol. No clock, thread, network or Celery."""
