"""Ports of the loopback address."""

from __future__ import annotations

import socket
from typing import Final

HOST: Final = "127.0.0.1"


def free_port() -> int:
    """One that nobody listens on now, which is the most that can be said of a port."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
