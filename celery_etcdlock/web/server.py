"""The page's server: WSGI by bottle, on the standard library's server with a thread for each request.

*Who may look and release.* On a loopback address: whoever is on this machine. On any other: who has the token. It comes
once in the address (``/?token=...``), then in a cookie that other sites can't make a browser send. A request must name
this server as its host, or a page elsewhere could reach it by a name of its own (DNS rebinding). A release must carry a
header that a form of another site can't set.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socketserver
import time
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle

from celery_etcdlock.app.celery_settings import user_name
from celery_etcdlock.errors import LockUnavailable
from celery_etcdlock.locking.inspector import Inspector
from celery_etcdlock.web.follower import Follower
from celery_etcdlock.web.view import View

COOKIE = "etcdlock_token"
RELEASE_HEADER = "X-Etcdlock-Release"
#: Between two states of one browser at least so long, and so many times what making one took; and one now and then, so
#: that a connection that is gone is noticed.
LEAST_SECONDS = 0.4
REST_FACTOR = 4
HEARTBEAT_SECONDS = 10.0
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_PAGE = resources.files("celery_etcdlock.web") / "page"
_SAFETY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_app(follower: Follower, inspector: Inspector, token: str | None) -> bottle.Bottle:
    """The page and what it asks for. ``token``: who may use it; ``None``: everybody who comes by a loopback name."""
    app = bottle.Bottle()

    def admit() -> None:
        request = bottle.request
        if token is None:
            host = (request.get_header("Host") or "").rsplit(":", 1)[0]
            if host not in LOCAL_NAMES:
                raise _refused(403, "this page is for localhost; give `celery etcdlock web` a --host for others")
            return
        given = request.query.get("token") or request.get_cookie(COOKIE) or ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise _refused(401, "the address needs the token that `celery etcdlock web` printed: /?token=...")

    def be_safe() -> None:
        for name, value in _SAFETY.items():
            bottle.response.set_header(name, value)

    def page() -> Any:
        if token is not None and bottle.request.query.get("token"):
            # Out of the address, where it would be seen and kept.
            bottle.response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
            bottle.response.status = 303
            bottle.response.set_header("Location", "/")
            return ""
        return _file("index.html")

    def view() -> View:
        try:
            return View.from_query(bottle.request.query.decode())
        except ValueError as error:
            raise _refused(400, str(error)) from None

    def events() -> Iterator[bytes]:
        looked_at = view()
        bottle.response.content_type = "text/event-stream"
        return _events(follower, looked_at)

    def file(name: str) -> Any:
        return _file(name) if _PAGE.joinpath(name).is_file() else _refused(404, "no such file")

    def release() -> dict[str, Any]:
        if not bottle.request.get_header(RELEASE_HEADER):
            raise _refused(403, "a release must come from the page itself")
        wanted = bottle.request.json
        if not isinstance(wanted, dict):
            raise _refused(400, "no JSON object")
        entry = follower.entry(str(wanted.get("lock")), str(wanted.get("token")), wanted.get("fencing_token"))
        if entry is None:
            return {"outcome": "gone"}
        try:
            if wanted.get("force") is True:
                return {"outcome": "deleted" if inspector.delete(entry) else "gone"}
            by = f"{user_name()} (web page, from {bottle.request.remote_addr})"
            return {"outcome": "asked" if inspector.ask_to_release(entry, by) else "gone"}
        except LockUnavailable as error:
            raise _refused(503, str(error)) from None

    app.add_hook("before_request", admit)
    app.add_hook("after_request", be_safe)
    app.route("/", "GET", page)
    app.route("/<name:re:[a-z]+[.](js|css)>", "GET", file)
    app.route("/favicon.ico", "GET", lambda: bottle.HTTPResponse(status=204))
    app.route("/api/state", "GET", lambda: follower.state(view()))
    app.route("/api/events", "GET", events)
    app.route("/api/release", "POST", release)
    return app


def serve(app: bottle.Bottle, host: str, port: int, ready: Callable[[int], None] = lambda _: None) -> None:
    """Serve until interrupted. ``ready`` is told the port once it is bound. Raises ``OSError`` if it can't be."""
    with make_server(host.strip("[]"), port, app, server_class=_Server, handler_class=_Handler) as server:
        ready(server.server_port)
        server.serve_forever()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Silent: an address may hold the token."""


def _file(name: str) -> bytes:
    bottle.response.content_type = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    return _PAGE.joinpath(name).read_bytes()


def _events(follower: Follower, view: View) -> Iterator[bytes]:
    version = -1
    while True:
        version = follower.wait(version, HEARTBEAT_SECONDS)
        began = time.monotonic()
        yield f"data: {json.dumps(follower.state(view))}\n\n".encode()
        # What changes meanwhile is in the next state.
        time.sleep(max(LEAST_SECONDS, REST_FACTOR * (time.monotonic() - began)))


def _refused(status: int, why: str) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(why, status, {"Content-Type": "text/plain; charset=utf-8", **_SAFETY})
