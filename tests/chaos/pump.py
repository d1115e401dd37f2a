"""Sends a lane's tasks, on command: one line in, and for those that say so a task id out.

``on SECONDS`` sends tasks all the time, ``off`` stops; ``keep SECONDS`` sends one that must run, whose id it says;
``again ID SECONDS`` delivers that message once more, as a broker does: past whatever the client library does to send.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
import uuid
from typing import Any

INTERVAL_SECONDS = 0.1


class Pump:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._seconds: float | None = None
        threading.Thread(target=self._send_often, daemon=True).start()

    def _send_often(self) -> None:
        while True:
            seconds = self._seconds
            if seconds is not None:
                try:
                    self._module.work.apply_async((seconds,))
                except Exception as error:
                    print(error, file=sys.stderr, flush=True)
            time.sleep(INTERVAL_SECONDS)

    def on(self, seconds: str) -> None:
        self._seconds = float(seconds)

    def off(self) -> None:
        self._seconds = None

    def keep(self, seconds: str) -> str:
        """Until it is accepted: some refuse to send while the lock is held, and answer with another's id."""
        while True:
            ident = uuid.uuid4().hex
            try:
                result = self._module.keep.apply_async((float(seconds),), task_id=ident, headers=_same_call(ident))
            except Exception as error:
                print(error, file=sys.stderr, flush=True)
            else:
                if result is not None and result.id == ident:
                    return ident
            time.sleep(INTERVAL_SECONDS)

    def again(self, ident: str, seconds: str) -> None:
        """As its broker would deliver it once more."""
        self._module.app.send_task(self._module.keep.name, (float(seconds),), task_id=ident, headers=_same_call(ident))


def _same_call(ident: str) -> dict[str, Any]:
    return {"etcdlock_call": [ident, "one"]}


def main(app: str) -> None:
    module = importlib.import_module(app)
    module.app.set_current()
    pump = Pump(module)
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        print(getattr(pump, command)(*arguments) or "done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
