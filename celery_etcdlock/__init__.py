"""Celery tasks that run one at a time, whatever dies, under etcd lease locks."""
