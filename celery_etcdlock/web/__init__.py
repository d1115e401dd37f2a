"""A page of locks for a browser: ``celery etcdlock web``."""
