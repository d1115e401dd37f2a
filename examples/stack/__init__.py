"""What runs in ``docker-compose.yml``: an app with three locked tasks, and a demo that fires duplicates at them."""
