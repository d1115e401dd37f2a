"""A network of its own: a bridge, and network namespaces on it among which packets can be made to get lost.

Everything hangs on processes that hold the namespaces: when they end, however that comes, nothing is left behind. This
machine is on the network too, as ``outside``.

A packet gets lost because its sender believes its receiver's network card to be another that doesn't exist. So each
direction is cut by itself, nobody is told, and ``ip`` is all that it needs; and Linux, and root.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

from tests.waiting import wait_for

__all__ = ["Namespace", "Network", "why_none"]

#: A namespace's holder ends of itself after so many seconds.
LONGEST_SECONDS = 4 * 3600
NOWHERE = "02:00:00:00:00:01"
CARD = "card0"


def why_none() -> str | None:
    """Why there can be no such network here, if there can't."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.getuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} isn't installed (iproute2, util-linux)"
    try:
        network = Network()
    except (subprocess.CalledProcessError, AssertionError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"this container may make no network namespace: {said.strip()}"
    network.stop()
    return None


class Namespace:
    """One network namespace, held by a process of its own. ``enter`` goes before a command that is to run in it."""

    def __init__(self) -> None:
        self.address = ""
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sleep", str(LONGEST_SECONDS)], stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(self._is_apart, "there is a network namespace", 10)
        self.run("ip", "link", "set", "lo", "up")

    def _is_apart(self) -> bool:
        if self._holder.poll() is not None:
            raise AssertionError("unshare --net failed")
        return os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def run(self, *command: str) -> None:
        _run(*self.enter, *command)

    def lose_packets_to(self, other: Namespace) -> None:
        self.run("ip", "neighbour", "replace", other.address, "lladdr", NOWHERE, "dev", CARD, "nud", "permanent")

    def heal(self, others: list[Namespace]) -> None:
        """Send to all of them again. Those to whom it did already notice nothing."""
        for other in others:
            # Fails where there is nothing to forget.
            command = [*self.enter, "ip", "neighbour", "del", other.address, "dev", CARD]
            subprocess.run(command, capture_output=True, check=False)

    def stop(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Network:
    """See the module. ``outside`` is this machine's address on it."""

    def __init__(self) -> None:
        # Not one that anybody's network has: set aside for measurements (RFC 2544).
        self._subnet = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        self.outside = f"{self._subnet}.1"
        self.namespaces: list[Namespace] = []
        self._hub = Namespace()
        try:
            self._hub.run("ip", "link", "add", "bridge0", "type", "bridge")
            self._hub.run("ip", "link", "set", "bridge0", "up")
            self._card = f"chaos{self._hub.pid}"
            _run("ip", "link", "add", self._card, "type", "veth", "peer", "name", "port1", "netns", str(self._hub.pid))
            _run("ip", "address", "add", f"{self.outside}/24", "dev", self._card)
            _run("ip", "link", "set", self._card, "up")
            self._plug_in("port1")
        except BaseException:
            self.stop()
            raise

    def namespace(self) -> Namespace:
        """One more."""
        namespace = Namespace()
        self.namespaces.append(namespace)
        number = len(self.namespaces) + 1
        namespace.address = f"{self._subnet}.{number}"
        peer = ["peer", "name", f"port{number}", "netns", str(self._hub.pid)]
        namespace.run("ip", "link", "add", CARD, "type", "veth", *peer)
        namespace.run("ip", "address", "add", f"{namespace.address}/24", "dev", CARD)
        namespace.run("ip", "link", "set", CARD, "up")
        self._plug_in(f"port{number}")
        return namespace

    def _plug_in(self, port: str) -> None:
        self._hub.run("ip", "link", "set", port, "master", "bridge0")
        self._hub.run("ip", "link", "set", port, "up")

    def stop(self) -> None:
        for namespace in self.namespaces:
            namespace.stop()
        self._hub.stop()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
