"""The page of locks: its server's manners, and the page itself in a real headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_etcdlock import EtcdLocks, LockLost
from celery_etcdlock.core.beat_state import EntryState, Phase, WorkState, encode_state
from celery_etcdlock.core.record import Delivery
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.wiring import open_inspector
from tests.conftest import missing
from tests.etcd_server import running_etcd
from tests.waiting import wait_for

bottle = pytest.importorskip("bottle")

from celery_etcdlock.web.follower import Figures, Follower  # noqa: E402 - they need bottle
from celery_etcdlock.web.server import is_loopback, make_app, serve  # noqa: E402


@dataclass
class Page:
    url: str
    follower: Follower
    figures: Figures

    def request(self, path: str, data: object = None, **headers: str) -> tuple[int, str, Any]:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, headers | {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def state(self) -> Any:
        return json.loads(self.request("api/state")[1])


@pytest.fixture
def start_page(app: Celery) -> Iterator[Callable[..., Page]]:
    stops: list[Callable[[], None]] = []

    def start(token: str | None = None, of: Celery = app) -> Page:
        inspector = open_inspector(EtcdLocks.from_app(of).settings)
        figures: Figures = {"w1@host": {"conflicts": 0}}
        follower = Follower(inspector, lambda: {worker: dict(counts) for worker, counts in figures.items()})
        follower.start()
        bound: list[int] = []
        ready = threading.Event()

        def tell(port: int) -> None:
            bound.append(port)
            ready.set()

        web = make_app(follower, inspector, token)
        threading.Thread(target=serve, args=(web, "127.0.0.1", 0, tell), daemon=True).start()
        assert ready.wait(10)
        stops.extend((follower.stop, inspector.close))
        page = Page(f"http://127.0.0.1:{bound[0]}/", follower, figures)
        if token is None:
            wait_for(lambda: page.state()["error"] is None, "the page follows etcd")
        return page

    yield start
    for stop in stops:
        stop()


def test_the_state_tells_who_holds_and_held_what(app: Celery, start_page: Callable[..., Page]) -> None:
    page = start_page()
    with EtcdLocks.from_app(app).lock("a") as lock:
        wait_for(lambda: page.state()["held"] == 1, "the lock is seen")
        (shown,) = page.state()["locks"]
        assert shown["owners"][0]["fencing_token"] == lock.fencing_token
    wait_for(lambda: page.state()["held"] == 0, "the release is seen")
    (bar,) = page.state()["timeline"]
    assert bar["lock"] == "a"
    assert bar["began"] <= bar["ended"]


def test_a_release_needs_the_page_and_an_owner(app: Celery, start_page: Callable[..., Page]) -> None:
    page = start_page()
    held = EtcdLocks.from_app(app).lock("a")
    lock = held.__enter__()
    wait_for(lambda: page.state()["held"] == 1, "the lock is seen")
    [key] = EtcdLocks.from_app(app).holders("a")
    wanted = {"lock": "a", "token": key.token, "fencing_token": lock.fencing_token, "force": True}
    assert page.request("api/release", wanted)[0] == 403
    from_page = {"X-Etcdlock-Release": "1"}
    for other in ({"token": "x"}, {"fencing_token": lock.fencing_token - 1}):
        assert json.loads(page.request("api/release", wanted | other, **from_page)[1]) == {"outcome": "gone"}
    assert json.loads(page.request("api/release", wanted, **from_page)[1]) == {"outcome": "deleted"}
    assert page.request("api/release", ["no", "object"], **from_page)[0] == 400
    wait_for(lambda: page.state()["held"] == 0, "the release is seen")
    with pytest.raises(LockLost):
        held.__exit__(None, None, None)


def test_another_hosts_name_is_refused(start_page: Callable[..., Page]) -> None:
    assert start_page().request("api/state", Host="evil.example:80")[0] == 403


def test_with_a_token_nothing_goes_without_it(start_page: Callable[..., Page]) -> None:
    page = start_page("secret-token")
    for path in ("", "app.js", "api/state", "api/events", "?token=wrong"):
        status, text, _ = page.request(path)
        assert (status, "secret" in text) == (401, False)
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    answer = opener.open(page.url + "?token=secret-token", timeout=10)
    assert "token" not in answer.url
    assert opener.open(page.url + "api/state", timeout=10).status == 200


def test_answers_keep_other_sites_out(start_page: Callable[..., Page]) -> None:
    headers = start_page().request("")[2]
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)]
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local


# --- in a browser -----------------------------------------------------------------------------------------------


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM_BIN") or next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    binary = chromium()
    if binary is None:
        missing("chromium (Debian's package, or CHROMIUM_BIN)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def new_tab(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    contexts = []

    def open_tab(url: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.problems = []
        tab.on("console", lambda message: message.type == "error" and tab.problems.append(message.text))
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.outside = []
        tab.on("request", lambda request: request.url.startswith(url) or tab.outside.append(request.url))
        tab.goto(url)
        return tab

    yield open_tab
    for context in contexts:
        context.close()


def test_the_page_is_live_and_releases(
    app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    page = start_page()
    tab = new_tab(page.url)
    tab.wait_for_selector("text=No locks held.")
    locks = EtcdLocks.from_app(app)
    held = locks.lock("<b>proj.rebuild</b>")
    lock = held.__enter__()
    with locks.lock("proj.other"):
        tab.wait_for_selector("td.lock:has-text('proj.other')")
        assert tab.locator("#locks tbody tr").count() == 2
        assert tab.locator("#held").inner_text() == "2"
        tab.fill("#filter", "rebuild")
        assert tab.locator("#locks tbody tr").count() == 1
        tab.fill("#filter", "")
    tab.wait_for_selector("td.lock:has-text('proj.other')", state="detached")
    assert tab.locator("td.lock").inner_text() == "<b>proj.rebuild</b>"
    assert tab.locator("#timeline .bar").count() == 2
    assert tab.locator("#timeline .bar.going").count() == 1
    tab.click("text=Release…")
    assert "<b>proj.rebuild</b>" in tab.locator("#confirm-lock").inner_text()
    tab.click("#cancel")
    assert not lock.lost
    tab.click("text=Release…")
    tab.click("#release")
    tab.wait_for_selector("#outcome:has-text('Asked.')")
    wait_for(lambda: lock.lost, "the holder is told")
    held.__exit__(None, None, None)
    tab.wait_for_selector("text=No locks held.")
    assert tab.problems == []
    assert tab.outside == []


def test_the_page_shows_the_beat(app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]) -> None:
    locks = EtcdLocks.from_app(app)
    lock = locks.manager.acquire("beat:app", locks.record(Delivery("no task, beat"), "celery beat"), ttl_seconds=3)
    assert isinstance(lock, Lock)
    state = EntryState("<b>nightly</b>", "proj.report", "every 60 s", time.time() - 50, 7, Phase.PUBLISHED)
    nightly = replace(state, next_at=time.time() + 3600)
    work = WorkState("beathost", 12, time.time() - 130, lock.fencing_token, 2)
    locks.manager.book("beat:app", lock).save({"nightly": encode_state(nightly), "~work": encode_state(work)})
    tab = new_tab(start_page().url)
    tab.wait_for_selector("td.entry")
    assert tab.locator("td.entry").inner_text() == "<b>nightly</b>"
    assert "is at work for 2m1" in tab.locator("p.beat").inner_text()
    assert "nobody stands by; 2 takeovers before" in tab.locator("p.beat").inner_text()
    row = tab.locator("#beats tbody tr").inner_text()
    assert "ago" in row
    assert "in 59m" in row
    assert tab.problems == []
    locks.manager.release(lock)


def test_the_page_is_readable_on_a_phone(
    app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    page = start_page()
    with EtcdLocks.from_app(app).lock("proj.sync:da19f5751aa6d52722bbd3d9749237cf" * 2):
        tab = new_tab(page.url, viewport={"width": 360, "height": 740})
        tab.wait_for_selector("td.lock")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.locator("text=Release…").bounding_box()["height"] >= 32


def test_the_page_says_when_its_server_is_gone_and_when_etcd_is(
    new_app: Callable[..., Celery], start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    with running_etcd(fsync=False) as server:
        tab = new_tab(start_page(of=new_app(etcdlock_endpoints=server.endpoint, etcdlock_timeout=1)).url)
        tab.wait_for_selector("#status:has-text('live')")
        server.kill()
        tab.wait_for_selector("#status.bad:has-text('etcd:')")
        server.start()
        tab.wait_for_selector("#status:has-text('live')")
    tab.route("**/api/events", lambda route: route.abort())
    tab.reload()
    tab.wait_for_selector("#status.bad:has-text('trying again')")


def test_conflicts_are_counted_from_the_workers_figures(start_page: Callable[..., Page]) -> None:
    page = start_page()
    now = time.monotonic()
    page.follower._conflicts.clear()
    page.follower._conflicts.append((now - 30, {"w1": {"conflicts": 5}, "gone": {"conflicts": 9}}))
    page.follower._conflicts.append((now, {"w1": {"conflicts": 12}, "new": {"conflicts": 99}}))
    assert page.state()["conflicts_per_minute"] == 14.0
