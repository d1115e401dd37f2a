"""Calls with their canonical text and lock name, pinned: keys must not change between versions of Python or of us.

Also a script, without dependencies, so that other interpreters can check the same vectors: it prints the number
of vectors and ends with 1 at the first one that differs.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections import namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from uuid import UUID

if __name__ == "__main__":  # the package's own __init__ may import Celery, which need not be there
    package = types.ModuleType("celery_etcdlock")
    package.__path__ = [str(Path(__file__).parents[3] / "celery_etcdlock")]
    sys.modules["celery_etcdlock"] = package

from celery_etcdlock.core.lock_names import LockNaming
from celery_etcdlock.core.task_options import TaskOptions

Point = namedtuple("Point", "x y")


class IntColor(IntEnum):
    RED = 1


class StrColor(str, Enum):
    RED = "red"


def sync(account_id, full=False): ...
def everything(*args, limit=None, **options): ...


HASH_KEY = b"0123456789abcdef"
DAY = datetime(2024, 2, 29, 12, 30, 0, 250000, tzinfo=timezone(timedelta(hours=2)))

# (function, spec's options, args, kwargs, canonical text, name)
VECTORS = [
    (sync, {}, (1,), {}, "{}", "app.sync"),
    (sync, {"unique_on": "*"}, (1,), {}, '{"account_id":1,"full":false}', "app.sync:8fae5a41dd615a3f9287ca6a2185c6ba"),
    (
        sync,
        {"unique_on": "*"},
        (),
        {"full": False, "account_id": 1},
        '{"account_id":1,"full":false}',
        "app.sync:8fae5a41dd615a3f9287ca6a2185c6ba",
    ),
    (
        sync,
        {"unique_on": "*"},
        ("1", True),
        {},
        '{"account_id":"1","full":true}',
        "app.sync:ca11eafd07a1763a30726e08149e66d3",
    ),
    (
        sync,
        {"unique_on": ["account_id"]},
        (1, True),
        {},
        '{"account_id":1}',
        "app.sync:b90328b0d37424b73929b6e84961ddc6",
    ),
    (sync, {"unique_on": "account_id"}, (1.0,), {}, '{"account_id":1.0}', "app.sync:51c7972eaad8ed88165f98dbc38817d5"),
    (
        sync,
        {"unique_on": "account_id"},
        ("caf\u00e9 \ud800 \U0001f600",),
        {},
        '{"account_id":"caf\\u00e9 \\ud800 \\ud83d\\ude00"}',
        "app.sync:de2a594dcc635b78cf7be886f4a1a012",
    ),
    (
        sync,
        {"unique_on": "account_id"},
        ({"b": [None, 1e16, -0.0], 1: (float("-inf"), True)},),
        {},
        '{"account_id":{"1":[-inf,true],"b":[null,1e+16,0.0]}}',
        "app.sync:ab4ea435b1f7a3560db59759b63130a3",
    ),
    (
        sync,
        {"unique_on": "account_id"},
        ({"c", "a", "b", 10, 9},),
        {},
        '{"account_id":set("a","b","c",10,9)}',
        "app.sync:21dbcc5cfefe8344b7c6dbedca215cd3",
    ),
    (
        sync,
        {"unique_on": "account_id"},
        ([IntColor.RED, StrColor.RED, Point(1, 2)],),
        {},
        '{"account_id":[1,"red",[1,2]]}',
        "app.sync:d25dc4f01b98aec2d7ca13e8cf226782",
    ),
    (
        sync,
        {"unique_on": "account_id"},
        ([DAY, DAY.replace(tzinfo=None), DAY.date(), time(1, 2), timedelta(days=-1)],),
        {},
        '{"account_id":[datetime(2024-02-29T10:30:00.250000+00:00),datetime(2024-02-29T12:30:00.250000),date(2024-02-29),time(01:02:00),timedelta(-86400000000us)]}',
        "app.sync:3778d531ab8095c35e496d223e695350",
    ),
    (
        sync,
        {"unique_on": "account_id"},
        ([Decimal("10.50"), Decimal("1e-50"), UUID(int=255), b"\xff", date(1, 1, 1)],),
        {},
        '{"account_id":[decimal(10.5),decimal(1E-50),uuid(00000000-0000-0000-0000-0000000000ff),bytes(ff),date(0001-01-01)]}',
        "app.sync:c5e47c919fb53b1622f059b75239da8f",
    ),
    (
        everything,
        {"unique_on": "*"},
        (1, 2),
        {"limit": 3, "tenant": "a"},
        '{"args":[1,2],"limit":3,"options":{"tenant":"a"}}',
        "app.everything:16beaf6844278dcd7056d3904dd7bc7b",
    ),
    (
        everything,
        {"unique_on": ["tenant", "args"]},
        (),
        {},
        '{"args":[]}',
        "app.everything:3c5c082d43d0bdf951ee238c7220bdd8",
    ),
    (
        everything,
        {"unique_on": ["tenant", "args"]},
        (),
        {"tenant": None},
        '{"args":[],"tenant":null}',
        "app.everything:de213d48a0ab14aff5602cba59bb185a",
    ),
    (
        sync,
        {"unique_on": "*", "hash_key": HASH_KEY},
        (1,),
        {},
        '{"account_id":1,"full":false}',
        "app.sync:f6dfac80e821dac609244125604cf32b",
    ),
    (
        sync,
        {"unique_on": "*", "hash_key": HASH_KEY * 5},
        (1,),
        {},
        '{"account_id":1,"full":false}',
        "app.sync:fede7d42462adf27a51ae81811fe1d33",
    ),
    (sync, {"lock_key": "sync:{account_id}:{full}"}, (StrColor.RED,), {}, "{}", "sync:red:False"),
]


def naming(task_name, signature, *, checked=None, hash_key=None, **options):
    """As a task with these options has it."""
    checks = TaskOptions.from_attributes(task_name, options)
    made_of = {"unique_on": checks.unique_on, "lock_key": checks.lock_key}
    return LockNaming(task_name, signature, checked=checked, **made_of).with_hash_key(hash_key)


def spec_of(function, options):
    return naming(f"app.{function.__name__}", inspect.signature(function), **options)


def text_of(spec, args, kwargs):
    """What is hashed for a call."""
    return spec._canonical_text(spec._arguments.bind(args, kwargs) if spec._chosen else {})


def differing():
    for function, options, args, kwargs, text, name in VECTORS:
        spec = spec_of(function, options)
        if text_of(spec, args, kwargs) != text or spec.names_for(args, kwargs)[0] != name:
            yield text_of(spec, args, kwargs), spec.names_for(args, kwargs)[0]


if __name__ == "__main__":
    bad = list(differing())
    print(len(VECTORS), *bad, sep="\n")
    sys.exit(1 if bad else 0)
