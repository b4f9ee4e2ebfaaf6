"""Hosts and ports: which are free, and how to write the address of one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from engine.admin import PORTS
from engine.errors import OutriderError
from engine.settings import Settings

ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # what is listened on, not by us
MAX_PORT = 65_535


class PortTaken(OutriderError):
    """Something else listens there."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the three processes of one `up` listen."""

    http: int
    admin: Mapping[str, int]

    @classmethod
    def choose(cls, settings: Settings) -> Self:
        """The set ports, or free ones for 0; a set admin port is web's, and the next two the others'.

        They are free now, which is the most that can be said of a port. Raises PortTaken.
        """
        with ExitStack() as held:

            def take(host: str, port: int, variable: str) -> int:
                return _take(held, host, port, variable)

            http = take(settings.http_host, settings.http_port, "OUTRIDER_HTTP_PORT")
            wanted = zip(PORTS, _admin_ports(settings.admin_port), strict=True)
            admin = {role: take(settings.admin_host, port, "OUTRIDER_ADMIN_PORT") for role, port in wanted}
        return cls(http, admin)


def reachable(host: str) -> str:
    """`host` as part of a URL; one that means "any" becomes the loopback."""
    host = ANY.get(host, host)
    return f"[{host}]" if ":" in host else host


def _admin_ports(port: int | None) -> Sequence[int]:
    if port is None:
        return list(PORTS.values())
    if port == 0:
        return [0] * len(PORTS)
    if port + len(PORTS) - 1 > MAX_PORT:
        raise PortTaken(f"OUTRIDER_ADMIN_PORT={port} leaves no ports for relay and worker after it")
    return range(port, port + len(PORTS))


def _take(held: ExitStack, host: str, port: int, variable: str) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = held.enter_context(socket.socket(family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Bound alone, it would not see a listener that allows reuse as well.
        listener.listen(1)
    except OSError as error:
        hint = f"set {variable} to another one, or to 0 for any free one"
        raise PortTaken(f"port {port} of {host} cannot be had ({error.strerror}): {hint}") from error
    return int(listener.getsockname()[1])
