# Celery with celery-etcdlock out of this checkout: the workers, beat, Flower and demo of docker-compose.yml, and the
# worker of the e2e tests. What it installs is pinned, and stays in Docker's cache while only the source changes.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
FROM ${PYTHON_IMAGE}
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 celery
COPY constraints.txt /src/
RUN pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        -c /src/constraints.txt "celery[redis]" flower hpack protobuf psutil setuptools
COPY pyproject.toml README.md LICENSE /src/
COPY celery_etcdlock /src/celery_etcdlock
RUN pip install --quiet --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --no-deps --no-build-isolation /src
COPY examples/stack /app/examples/stack
WORKDIR /app
USER celery
CMD ["celery", "-A", "examples.stack.app", "worker", "-l", "INFO"]
