"""Celery's side in the worker's MainProcess."""
