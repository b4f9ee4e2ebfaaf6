"""The descriptors of gRPC, so that a forked child can give up its share of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

CLIENT: Final = "engine.pubsub.client"
SELF: Final = Path("/proc/self")
WATCHED: Final = re.compile(r"tfd:\s*(\d+)")


def descriptors() -> Iterator[int]:
    """Each epoll instance of gRPC with all that it watches; nothing unless this process uses Pub/Sub, and on Linux.

    gRPC tells no one its sockets, but the kernel lists what an epoll instance watches. One that watches an eventfd is
    gRPC's: Python's event loops wake up by a socket.
    """
    if CLIENT not in sys.modules or not SELF.is_dir():
        return
    kinds = dict(_kinds())
    for poll in [each for each, kind in kinds.items() if kind == "anon_inode:[eventpoll]"]:
        watched = [int(each) for each in WATCHED.findall((SELF / f"fdinfo/{poll}").read_text())]
        if any(kinds.get(each) == "anon_inode:[eventfd]" for each in watched):
            yield poll
            yield from watched


def _kinds() -> Iterator[tuple[int, str]]:
    for link in (SELF / "fd").iterdir():
        # The descriptor by which the folder was read is closed again.
        with suppress(FileNotFoundError):
            yield int(link.name), str(link.readlink())
