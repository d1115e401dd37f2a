"""Whether there is a Docker engine to test with, and if not, what to do about it."""

from __future__ import annotations

import os

import docker
from docker.errors import DockerException, ImageNotFound

PYTHON_IMAGE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
#: The released image, else the one that scripts/docker_images.sh makes where no registry answers.
ETCD_IMAGES = (os.environ.get("ETCD_IMAGE", "quay.io/coreos/etcd:v3.6.14"), "quay.io/coreos/etcd:v3.5.1")
REDIS_IMAGE = "redis:latest"
RABBITMQ_IMAGE = "rabbitmq:latest"


def etcd_image() -> str:
    """The first of `ETCD_IMAGES` that is here."""
    client = docker.from_env()
    try:
        here = {tag for image in client.images.list() for tag in image.tags}
    finally:
        client.close()
    return next((image for image in ETCD_IMAGES if image in here), ETCD_IMAGES[0])


def why_no_docker() -> str | None:
    """One line: what is wrong and the remedy. ``None`` when all is there."""
    try:
        client = docker.from_env(timeout=10)
        client.ping()
    except DockerException as error:
        text = str(error)
        if "Permission denied" in text or "PermissionError" in text:
            return "no permission on Docker's socket: add yourself to the group docker, or run as root"
        if "FileNotFoundError" in text or "Connection refused" in text or "ConnectionRefused" in text:
            return "no Docker engine answers: start it (scripts/docker_engine.sh, or systemctl start docker)"
        return f"Docker's engine doesn't answer ({text[:200]}): check DOCKER_HOST and `docker version`"
    try:
        for image in (PYTHON_IMAGE, etcd_image(), REDIS_IMAGE, RABBITMQ_IMAGE):
            client.images.get(image)
    except ImageNotFound:
        return f"the image {image} is missing: `make e2e` gets it, or scripts/docker_images.sh"
    finally:
        client.close()
    return None
