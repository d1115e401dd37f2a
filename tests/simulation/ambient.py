"""Puts the simulated clock, threads, ids and chance in the place of the real ones, for the time of a run.

Modules of the package and of Celery find ``time``, ``threading``, ``queue``, ``random``, ``secrets`` as globals, took
functions out of them (``from time import monotonic``), or keep some as defaults of arguments. All three are looked for
and replaced by *identity*, in all loaded modules, so that a new use of one of them needs nothing here. ``os.getpid`` is
replaced where it lives. All of it is undone at the end.
"""

from __future__ import annotations

import os
import queue
import random
import secrets
import sys
import threading
import time
import types
import uuid as uuid_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any

from kombu.utils import uuid as kombu_uuid_module

from celery_etcdlock.locking import clock as clock_module
from tests.simulation.primitives import SimEvent, SimLock, SimQueue, SimRLock
from tests.simulation.scheduler import EPOCH, Scheduler

__all__ = ["simulated"]

PACKAGES = ("celery_etcdlock", "celery", "kombu.utils.uuid", "kombu.asynchronous.timer")
RealDatetime = datetime


class _Shim:
    """A module with some names replaced."""

    def __init__(self, real: types.ModuleType, **names: Any) -> None:
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _AnyDatetime(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, RealDatetime)


class Ambient:
    """What simulated threads see of their surroundings."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        chance = self.chance = random.Random(scheduler.chance.random())

        def wall() -> float:
            current = scheduler.current
            return EPOCH + scheduler.now + (current.process.wall_offset if current is not None else 0.0)

        def boot() -> float:
            return scheduler.now

        def sleep(seconds: float) -> None:
            scheduler.sleep(seconds)

        def clock_gettime(_: int) -> float:
            return scheduler.now

        def getpid() -> int:
            current = scheduler.current
            return current.process.pid if current is not None else real_getpid()

        def get_ident() -> int:
            return id(scheduler.current) if scheduler.current is not None else threading.get_ident()

        def token_hex(length: int = 32) -> str:
            return f"{chance.getrandbits(8 * length):0{2 * length}x}"

        def new_uuid(*_: object) -> str:
            return str(uuid_module.UUID(int=chance.getrandbits(128), version=4))

        class SimThread:
            def __init__(
                self,
                group: None = None,
                target: Callable[..., Any] = lambda: None,
                name: str = "thread",
                args: tuple[Any, ...] = (),
                kwargs: dict[str, Any] | None = None,
                *,
                daemon: bool | None = None,
            ) -> None:
                self._run = lambda: target(*args, **(kwargs or {}))
                self.name = name
                self.daemon = daemon

            def start(self) -> None:
                assert scheduler.current is not None
                scheduler.spawn(scheduler.current.process, self.name, self._run)

        class SimDatetime(datetime, metaclass=_AnyDatetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return RealDatetime.fromtimestamp(wall(), tz)

            @classmethod
            def utcnow(cls) -> datetime:  # type: ignore[override]
                return RealDatetime.utcfromtimestamp(wall())

        real_getpid = os.getpid
        self.getpid = getpid
        self.wall = wall
        sim_chance = random.Random(chance.random())

        def original(module: str, name: str) -> Any:
            if (module, name) == ("_thread", "allocate_lock"):
                return lambda: SimLock(scheduler, switches=True)
            if (module, name) == ("_thread", "RLock"):
                return lambda: SimRLock(scheduler, switches=True)
            raise NotImplementedError(f"{module}.{name}")

        def start_thread(target: Callable[[], None], name: str) -> None:
            SimThread(target=target, name=name).start()

        shims = {
            time: _Shim(time, time=wall, monotonic=boot, sleep=sleep, clock_gettime=clock_gettime),
            threading: _Shim(
                threading,
                Lock=lambda: SimLock(scheduler),
                RLock=lambda: SimRLock(scheduler),
                Event=lambda: SimEvent(scheduler),
                Thread=SimThread,
                get_ident=get_ident,
            ),
            queue: _Shim(queue, SimpleQueue=lambda: SimQueue(scheduler)),
            random: _Shim(
                random,
                random=sim_chance.random,
                uniform=sim_chance.uniform,
                randrange=sim_chance.randrange,
                choice=sim_chance.choice,
            ),
            secrets: _Shim(secrets, token_hex=token_hex, randbits=chance.getrandbits, token_bytes=chance.randbytes),
        }
        native = sys.modules["celery_etcdlock.native"]
        self.replacements: dict[int, tuple[Any, Any]] = {}
        for real, shim in shims.items():
            self._replace(real, shim)
        self._replace(time.time, wall)
        self._replace(time.monotonic, boot)
        self._replace(time.sleep, sleep)
        self._replace(clock_module.boot_time, boot)
        self._replace(kombu_uuid_module.uuid if hasattr(kombu_uuid_module, "uuid") else kombu_uuid_module, new_uuid)
        self._replace(datetime, SimDatetime)
        self._replace(native.original, original)
        self._replace(native.start_thread, start_thread)
        self.sim_chance = sim_chance

    def _replace(self, real: Any, simulated: Any) -> None:
        self.replacements[id(real)] = (real, simulated)

    def of(self, value: Any) -> Any:
        """What stands for ``value`` in the simulation; itself, if nothing does."""
        found = self.replacements.get(id(value))
        return found[1] if found is not None and found[0] is value else value


_Site = tuple[Any, str, Any]


def _modules() -> list[types.ModuleType]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if module is not None and (name in PACKAGES or name.startswith(tuple(f"{each}." for each in PACKAGES)))
    ]


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    for value in list(vars(module).values()):
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for each in list(vars(value).values()):
                function = getattr(each, "__func__", each)
                if isinstance(function, types.FunctionType):
                    yield function


class _Places:
    """All places where something is that may have to be replaced: looked for once, since that takes a while."""

    def __init__(self) -> None:
        self.count = 0
        self.globals: list[tuple[dict[str, Any], str, Any]] = []
        self.defaults: list[types.FunctionType] = []

    def refresh(self, ambient: Ambient) -> None:
        modules = _modules()
        if len(modules) == self.count:
            return
        self.count = len(modules)
        self.globals = [
            (vars(module), name, value)
            for module in modules
            for name, value in list(vars(module).items())
            if ambient.of(value) is not value or isinstance(value, random.Random)
        ]
        self.defaults = [
            function
            for module in modules
            for function in _functions(module)
            if any(ambient.of(each) is not each for each in function.__defaults__ or ())
            or any(ambient.of(each) is not each for each in (function.__kwdefaults__ or {}).values())
        ]


_places = _Places()


@contextmanager
def simulated(scheduler: Scheduler) -> Iterator[Ambient]:
    """See the module."""
    ambient = Ambient(scheduler)
    _places.refresh(ambient)
    undo: list[Callable[[], None]] = []
    for namespace, name, value in _places.globals:
        namespace[name] = ambient.sim_chance if isinstance(value, random.Random) else ambient.of(value)
        undo.append(lambda namespace=namespace, name=name, value=value: namespace.__setitem__(name, value))  # type: ignore[misc]
    for function in _places.defaults:
        before = function.__defaults__, function.__kwdefaults__
        if function.__defaults__:
            function.__defaults__ = tuple(ambient.of(each) for each in function.__defaults__)
        if function.__kwdefaults__:
            function.__kwdefaults__ = {name: ambient.of(each) for name, each in function.__kwdefaults__.items()}

        def put_back(function: types.FunctionType = function, before: Any = before) -> None:
            function.__defaults__, function.__kwdefaults__ = before

        undo.append(put_back)
    real_getpid = os.getpid
    os.getpid = ambient.getpid
    try:
        yield ambient
    finally:
        os.getpid = real_getpid
        for each in reversed(undo):
            each()
