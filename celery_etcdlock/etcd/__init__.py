"""All knowledge of etcd: transport, messages, transactions. Knows nothing of Celery."""
