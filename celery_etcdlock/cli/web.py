"""``celery etcdlock web``: the page of locks."""

from __future__ import annotations

import os
import secrets
from typing import Any

import click

from celery_etcdlock.cli.common import PORT, WRONG_USAGE, fail, inspecting, settings_for

TOKEN_VARIABLE = "ETCDLOCK_WEB_TOKEN"  # noqa: S105 - a name, not a token
#: Seconds that the workers have to answer with their figures.
ANSWER_SECONDS = 1.0


@click.command(name="web")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=8228, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.pass_context
def command(context: click.Context, host: str, port: int) -> None:
    """Serve a page with the locks, live, to look at and to release. Needs: pip install 'celery-etcdlock[web]'.

    On a loopback address it is open to whoever is on this machine. On any other the address needs a token, which is
    printed, or is the variable ETCDLOCK_WEB_TOKEN; put a proxy with TLS in front of it.
    """
    try:
        from celery_etcdlock.web.server import is_loopback, make_app, serve
    except ImportError:
        fail("`web` needs bottle: pip install 'celery-etcdlock[web]'", WRONG_USAGE)
    from celery_etcdlock.web.follower import Follower

    app = context.obj.app
    settings = settings_for(context)
    about = {"app": app.main or "", "prefix": settings.prefix, "endpoints": settings.endpoints}
    about["store"] = "Redis" if settings.in_redis else "etcd"
    token = os.environ.get(TOKEN_VARIABLE) or (None if is_loopback(host) else secrets.token_urlsafe(24))

    def figures() -> dict[str, dict[str, int]]:
        answers: dict[str, Any] = app.control.inspect(timeout=ANSWER_SECONDS).stats() or {}
        return {worker: stats["etcdlock"] for worker, stats in answers.items() if "etcdlock" in stats}

    with inspecting(context) as (inspector, place):
        follower = Follower(inspector, figures, about)
        follower.start()

        def ready(bound_port: int) -> None:
            query = "" if token is None else f"?token={token}"
            whose = f"{app.main or 'the app'}, {place}"
            click.echo(f"locks of {whose}: http://{host}:{bound_port}/{query}   (ctrl-c ends)")

        try:
            serve(make_app(follower, inspector, token), host, port, ready)
        except OSError as error:
            fail(f"can't listen on {host}:{port}: {error.strerror or error}", WRONG_USAGE)
        finally:
            follower.stop()
