"""Everything that a run's fixtures made in Docker, taken away at its end: also what Ctrl-C left half made.

A fixture that is interrupted while its container starts has no finalizer yet, so the container would stay, and with it
its network and volume. So all that pytest-docker-tools makes is labelled with this run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

import docker
from docker.errors import APIError

LABEL = "celery-etcdlock.e2e"
RUN = f"{os.getpid()}-{os.urandom(4).hex()}"


def label_everything() -> None:
    for kind in ("container", "network", "volume"):
        factory = importlib.import_module(f"pytest_docker_tools.factories.{kind}")
        set_labels = factory.set_reusable_labels

        def and_ours(kwargs: dict[str, Any], request: Any, set_labels: Any = set_labels) -> None:
            set_labels(kwargs, request)
            kwargs["labels"][LABEL] = RUN

        factory.set_reusable_labels = and_ours


def sweep() -> int:
    """Returns how many containers were still there."""
    ours = {"label": f"{LABEL}={RUN}"}
    client = docker.from_env()
    try:
        left = client.containers.list(all=True, filters=ours)
        for each in left:
            with contextlib.suppress(APIError):
                each.remove(force=True, v=True)
        for each in (*client.networks.list(filters=ours), *client.volumes.list(filters=ours)):
            with contextlib.suppress(APIError):
                each.remove()
        return len(left)
    finally:
        client.close()
