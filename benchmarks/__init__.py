"""Measurements of celery-etcdlock beside its peers: ``python -m benchmarks [NAME...] [--quick] [--json FILE]``."""
