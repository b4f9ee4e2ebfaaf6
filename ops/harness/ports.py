"""Ports of the loopback address."""

from __future__ import annotations

import socket
from typing import Final

HOST: Final = "127.0.0.1"


def free_port() -> int:
    """A port that is free now. Another process may still take it later."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])
