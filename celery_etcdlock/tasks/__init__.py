"""Celery's side: what runs in the producer and in the process that executes a task."""
