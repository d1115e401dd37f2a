"""The page of locks: its server's manners, and the page itself in a real headless Chromium."""

from __future__ import annotations

import contextlib
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
from celery_etcdlock.core.waiting_counts import WaitingCount, WaitingCounts, write_note
from celery_etcdlock.core.worker_notes import NoteKind
from celery_etcdlock.locking.lock import Lock
from celery_etcdlock.wiring import open_inspector
from tests.conftest import missing
from tests.etcd_server import free_ports, running_etcd
from tests.integration.cli.conftest import run_on
from tests.waiting import wait_for

bottle = pytest.importorskip("bottle")

from celery_etcdlock.web.follower import Figures, Follower  # noqa: E402 - they need bottle
from celery_etcdlock.web.server import is_loopback, make_app, serve  # noqa: E402

DASH = "\N{EN DASH}"


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

    def start(token: str | None = None, of: Celery = app, reached: bool = True) -> Page:
        settings = EtcdLocks.from_app(of).settings
        inspector = open_inspector(settings)
        figures: Figures = {"w1@host": {"conflicts": 0}}
        about = {"app": "proj", "prefix": "/locks/", "endpoints": settings.endpoints, "store": "etcd"}
        follower = Follower(inspector, lambda: {worker: dict(counts) for worker, counts in figures.items()}, about)
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
        if token is None and reached:
            wait_for(lambda: page.state()["seen_at"] is not None, "the page follows etcd")
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
    (row,) = page.state()["timeline"]
    (bar,) = row["bars"]
    assert row["lock"] == "a"
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
    for path in ("", "app.js", "locks.js", "api/state", "api/events", "?token=wrong"):
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


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_a_usage_error(app: Celery, port: str) -> None:
    assert run_on(app, "web", "--port", port).code == 2


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
    tab.wait_for_selector("text=No locks held")
    locks = EtcdLocks.from_app(app)
    held = locks.lock("<b>proj.rebuild</b>")
    lock = held.__enter__()
    with locks.lock("proj.other"):
        tab.wait_for_selector("td.lock:has-text('proj.other')")
        assert tab.locator("#locks .opener").count() == 2
        assert tab.locator("#held").inner_text() == "2"
        tab.fill("#filter", "rebuild")
        tab.wait_for_selector("td.lock:has-text('proj.other')", state="detached")
        assert "filter=rebuild" in tab.url
        tab.fill("#filter", "")
        tab.wait_for_selector("td.lock:has-text('proj.other')")
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
    tab.wait_for_selector("text=No locks held")
    assert tab.problems == []
    assert tab.outside == []


def test_the_page_shows_the_beat(app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]) -> None:
    locks = EtcdLocks.from_app(app)
    lock = locks.manager.acquire("beat:app", locks.record(Delivery("no task, beat"), "celery beat"), ttl_seconds=3)
    assert isinstance(lock, Lock)
    state = EntryState("<b>nightly</b>", "proj.report", "every 60 s", time.time() - 50, 7, Phase.PUBLISHED)
    nightly = replace(state, next_at=time.time() + 3600)
    work = WorkState("beathost", 12, time.time() - 130, lock.fencing_token, 2)
    locks.manager.saved_states("beat:app", lock).save({"nightly": encode_state(nightly), "~work": encode_state(work)})
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


def test_the_page_counts_those_that_wait_without_a_queue_position(
    app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    page = start_page()
    counts = {"proj.sync": WaitingCount(1234, 56), "proj.free": WaitingCount(2, 0)}
    inspector = open_inspector(EtcdLocks.from_app(app).settings)
    with EtcdLocks.from_app(app).lock("proj.sync"):
        note = write_note(WaitingCounts(counts, WaitingCount(0, 3)))
        inspector.write_note(NoteKind.WAITING, "w1", note, 60)
        wait_for(lambda: page.state()["retrying"] == 1236, "they are counted")
        state = page.state()
        assert (state["held"], state["listed"], state["waiting"], state["joining"]) == (1, 2, 0, 59)
        shown = [(lock["lock"], lock["retrying"], lock["joining"], len(lock["owners"])) for lock in state["locks"]]
        assert shown == [("proj.sync", 1234, 56, 1), ("proj.free", 2, 0, 0)]
        tab = new_tab(page.url, viewport={"width": 390, "height": 740})
        tab.wait_for_selector("td.waiting:has-text('1,234 retrying')")
        assert tab.locator("#held").inner_text() == "1"
        assert tab.locator("#waiting-others").inner_text() == "1,236 retrying, 59 joining"
        assert [" ".join(text.split()) for text in tab.locator("td.waiting").all_inner_texts()] == [
            "1,234 retrying 56 joining",
            "2 retrying",
        ]
        assert "free: nobody holds it now" in tab.locator("td.task").all_inner_texts()[1]
        assert tab.locator("text=Release…").evaluate_all(
            "buttons => buttons.map(one => one.offsetParent !== null)"
        ) == [
            True,
            False,
        ]
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.problems == []
    inspector.delete_note(NoteKind.WAITING, "w1")
    inspector.close()
    tab.wait_for_selector("text=No locks held")


def test_a_page_that_never_reached_etcd_claims_nothing(
    new_app: Callable[..., Celery], start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    (port,) = free_ports(1)
    page = start_page(of=new_app(etcdlock_endpoints=f"127.0.0.1:{port}", etcdlock_timeout=1), reached=False)
    tab = new_tab(page.url)
    tab.wait_for_selector('#stale:has-text("hasn\'t answered")')
    assert [tab.locator(f"#{figure}").inner_text() for figure in ("held", "waiting")] == [DASH, DASH]
    assert "Not known" in tab.locator("#nothing").inner_text()
    assert "No locks" not in tab.locator("body").inner_text()
    assert f"/locks/ on 127.0.0.1:{port}" in tab.locator("header").inner_text()


def test_the_page_with_more_locks_than_one_page(
    app: Celery, start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    locks = EtcdLocks.from_app(app)
    with contextlib.ExitStack() as held:
        for number in range(24):
            held.enter_context(locks.lock(f"proj.sync:{number:02}"))
        evil = "\u202egnp.\x1b[2J" + "x" * 120
        held.enter_context(locks.lock(evil))
        tab = new_tab(start_page().url)
        tab.wait_for_selector(f"#range:has-text('1{DASH}20 of 25')")
        tab.focus("text=Next")
        tab.keyboard.press("Enter")
        tab.wait_for_selector(f"#range:has-text('21{DASH}25 of 25')")
        assert tab.evaluate("document.activeElement.id") == "next"
        assert tab.locator("#announce").text_content() == f"Locks 21{DASH}25 of 25"
        opener = tab.locator(".opener:has-text('gnp')")
        opener.focus()
        tab.keyboard.press("Enter")
        assert opener.get_attribute("aria-expanded") == "true"
        assert tab.locator(".detail:visible dd").first.inner_text().startswith("\\u202egnp.\\x1b[2Jxx")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # One that others wait for comes first.
        waiter = threading.Thread(target=lambda: _hold_for_a_moment(locks, "proj.sync:23"))
        tab.select_option("#sort", "name")
        tab.wait_for_selector(f"#range:has-text('1{DASH}20 of 25')")
        waiter.start()
        tab.select_option("#sort", "contended")
        tab.wait_for_selector("#locks tbody:nth-of-type(1) .waiting:has-text('1')")
        assert tab.locator(".opener").first.inner_text() == "proj.sync:23"
        assert tab.problems == []
    waiter.join(20)


def _hold_for_a_moment(locks: EtcdLocks, name: str) -> None:
    with locks.lock(name, wait_timeout=60):
        pass


def test_the_page_says_when_its_server_is_gone_and_when_etcd_is(
    new_app: Callable[..., Celery], start_page: Callable[..., Page], new_tab: Callable[..., Any]
) -> None:
    with running_etcd(fsync=False) as server:
        tab = new_tab(start_page(of=new_app(etcdlock_endpoints=server.endpoint, etcdlock_timeout=1)).url)
        tab.wait_for_selector("#status:has-text('live')")
        server.kill()
        tab.wait_for_selector('#status.bad:has-text("etcd can\'t be reached")')
        assert "what was held at" in tab.locator("#stale").inner_text()
        server.start()
        tab.wait_for_selector("#status:has-text('live')")
    tab.route("**/api/events*", lambda route: route.abort())
    tab.reload()
    tab.wait_for_selector("#status.bad:has-text('trying again')")


def test_conflicts_are_counted_from_the_workers_figures(start_page: Callable[..., Page]) -> None:
    page = start_page()
    now = time.monotonic()
    page.follower._conflicts.clear()
    page.follower._conflicts.append((now - 30, {"w1": {"conflicts": 5}, "gone": {"conflicts": 9}}))
    page.follower._conflicts.append((now, {"w1": {"conflicts": 12}, "new": {"conflicts": 99}}))
    assert page.state()["conflicts_per_minute"] == 14.0
