"""Go's ``concurrency.Mutex`` around a task's body: a helper process of each child holds the session, and is asked."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from tests.chaos.apps.common import DURABLE, LANE, STORE, TTL_SECONDS, new_app
from tests.chaos.body import inside

app = new_app()


class Helper:
    def __init__(self) -> None:
        command = [os.environ["CHAOS_GO_MUTEX"], STORE, LANE, str(TTL_SECONDS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the helper ended")
        return answer


_helpers: dict[int, Helper] = {}


def run(task: Any, seconds: float) -> bool:
    pid = os.getpid()
    try:
        if pid not in _helpers:
            _helpers[pid] = Helper()
        helper = _helpers[pid]
        answer = helper.ask("lock")
        if not answer.startswith("locked"):
            if answer.startswith("error"):
                _end(pid)
            return False
        try:
            inside(task.request.id, seconds, token=int(answer.split()[1]), helpers=[helper.process.pid])
        finally:
            if not helper.ask("unlock").startswith("unlocked"):
                _end(pid)
    except (OSError, RuntimeError):
        _end(pid)
        raise
    return True


def _end(pid: int) -> None:
    """Its session may be over: the next lock gets another."""
    helper = _helpers.pop(pid, None)
    if helper is not None:
        helper.process.kill()
        helper.process.wait()


@app.task(name="work", bind=True, **DURABLE)
def work(self: Any, seconds: float) -> None:
    run(self, seconds)


@app.task(name="keep", bind=True, max_retries=None, default_retry_delay=0.5, **DURABLE)
def keep(self: Any, seconds: float) -> None:
    try:
        done = run(self, seconds)
    except (OSError, RuntimeError) as error:
        raise self.retry(exc=error) from error
    if not done:
        raise self.retry()
