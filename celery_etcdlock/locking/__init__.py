"""Runs the core's protocol against a lock store. Knows neither etcd nor Celery."""
