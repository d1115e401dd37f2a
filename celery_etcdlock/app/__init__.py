"""What belongs to one Celery app: its locks (``EtcdLocks``), its settings, and whether etcd answers it."""
