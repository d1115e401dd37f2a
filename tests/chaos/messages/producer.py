"""A producer: a process that makes calls on command. One line of JSON in, one out, several at once.

With ``CHAOS_DOOMED`` it is killed in the moment in which it would publish.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery_etcdlock import LockConflict
from tests.chaos.messages.app import app

THREADS = 12


def call(task: str, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    try:
        result = app.tasks[task].apply_async(args, **options)
    except LockConflict as conflict:
        return {"conflict": True, "id": conflict.task_id, "raised": True}
    conflict = getattr(result, "lock_conflict", None)
    return {"conflict": conflict is not None, "id": result.id, "raised": False}


def revoke(task_id: str, terminate: bool) -> dict[str, Any]:
    app.control.revoke(task_id, terminate=terminate)
    return {}


def states(ids: list[str]) -> dict[str, Any]:
    found = {}
    for task_id in ids:
        meta = app.backend.get_task_meta(task_id)
        value = meta.get("result")
        if isinstance(value, BaseException):
            value = f"{type(value).__name__}: {value}"
        found[task_id] = [meta["status"], value if isinstance(value, dict | str | None) else repr(value)]
    app.backend._cache.clear()
    return found


COMMANDS = {"call": call, "revoke": revoke, "states": states}


def main() -> None:
    def answer(line: str) -> None:
        command = json.loads(line)
        number, what = command.pop("n"), command.pop("do")
        began = time.clock_gettime(time.CLOCK_MONOTONIC)
        try:
            said = COMMANDS[what](**command)
        except Exception as error:
            said = {"error": repr(error)}
        said = {"n": number, "began": began, "ended": time.clock_gettime(time.CLOCK_MONOTONIC), "said": said}
        # One write, for others answer too.
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()

    print("ready", flush=True)
    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin:
            pool.submit(answer, line)


if __name__ == "__main__":
    main()
