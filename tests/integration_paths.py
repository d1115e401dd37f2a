"""Where this machine has what some tests preload."""

from __future__ import annotations

from pathlib import Path

LIBFAKETIME = next(
    iter(
        [
            *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
            *Path("/opt/homebrew/lib").glob("faketime/libfaketime.1.dylib"),
        ]
    ),
    None,
)
