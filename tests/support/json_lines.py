"""Reads the log of processes that may be killed while they write it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


def events(log: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a log, in order. A process that is killed may leave half a line before the next."""
    return [found for line in log.read_bytes().splitlines() for found in _last_whole(line)]


def _last_whole(line: bytes) -> Iterator[dict[str, Any]]:
    for begin in re.finditer(rb'\{"', line):
        try:
            found = orjson.loads(line[begin.start() :])
        except orjson.JSONDecodeError:
            continue
        if "event" in found:
            yield found
        return
