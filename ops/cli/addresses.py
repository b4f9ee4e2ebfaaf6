"""Hosts and ports: finds free ports, writes addresses for URLs, and finds the ports of a running `up`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from engine.errors import OutriderError
from engine.process.admin import PORTS
from engine.settings import Settings

# Addresses that mean "any", each with its loopback address. Other processes listen on them.
ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104
MAX_PORT = 65_535
FILE = "up.json"


class PortTaken(OutriderError):
    """A port that is needed is not free."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The hosts and ports of the three processes of one `up`."""

    http_host: str
    http: int
    admin_host: str
    admin: Mapping[str, int]

    @classmethod
    def choose(cls, settings: Settings) -> Self:
        """The configured ports, or free ports for 0. OUTRIDER_ADMIN_PORT is web's; relay and worker get the next two.

        The ports are free now. Another process may still take one later. Raises PortTaken.
        """
        with ExitStack() as held:

            def take(host: str, port: int, variable: str) -> int:
                return _take(held, host, port, variable)

            http = take(settings.http_host, settings.http_port, "OUTRIDER_HTTP_PORT")
            wanted = zip(PORTS, _admin_ports(settings.admin_port), strict=True)
            admin = {role: take(settings.admin_host, port, "OUTRIDER_ADMIN_PORT") for role, port in wanted}
        return cls(settings.http_host, http, settings.admin_host, admin)

    @property
    def web(self) -> str:
        """The URL for clients."""
        return f"http://{reachable(self.http_host)}:{self.http}"

    def admin_url(self, role: str, path: str) -> str:
        return f"http://{reachable(self.admin_host)}:{self.admin[role]}{path}"


@contextmanager
def published(ports: Ports, data_dir: Path) -> Iterator[None]:
    """Let commands find `ports` by the data directory until the block or this process ends.

    The file is complete and locked before it gets its name. The kernel frees the lock of a process that dies, so a
    file without a lock is stale. If several `up`s share a directory, commands find the last one. Raises OSError.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    made, name = tempfile.mkstemp(dir=data_dir)
    with os.fdopen(made, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(ports), file)
        file.flush()
        Path(name).replace(data_dir / FILE)
        yield


def running(data_dir: Path) -> Ports | None:
    """The ports of the `up` that runs with this data directory. None if no `up` runs."""
    with suppress(OSError, ValueError, TypeError), (data_dir / FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Ports(**json.load(file))
    return None


def local(settings: Settings, what: Literal["http", "admin"]) -> Ports | None:
    """The ports of the running `up`. None if the settings name another host or a port: the settings win."""
    host, port = f"{what}_host", f"{what}_port"
    named = settings.model_fields_set
    up = running(settings.data_dir)
    # Port 0 means any free port, so it names no port.
    if up is None or (port in named and getattr(settings, port)):
        return None
    return None if host in named and getattr(settings, host) != getattr(up, host) else up


def web_address(settings: Settings) -> str:
    """The URL of the web process for commands: the configured one, else that of a local `up`, else the default."""
    up = local(settings, "http")
    return up.web if up else f"http://{reachable(settings.http_host)}:{settings.http_port}"


def reachable(host: str) -> str:
    """`host` as part of a URL. A host that means "any" becomes the loopback address."""
    host = ANY.get(host, host)
    return f"[{host}]" if ":" in host else host


def _admin_ports(port: int | None) -> Sequence[int]:
    if port is None:
        return list(PORTS.values())
    if port == 0:
        return [0] * len(PORTS)
    if port + len(PORTS) - 1 > MAX_PORT:
        raise PortTaken(f"OUTRIDER_ADMIN_PORT={port} leaves no ports above it for relay and worker")
    return range(port, port + len(PORTS))


def _take(held: ExitStack, host: str, port: int, variable: str) -> int:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = held.enter_context(socket.socket(family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # `bind` alone succeeds beside another listener that allows reuse. `listen` does not.
        listener.listen(1)
    except OSError as error:
        hint = f"set {variable} to another port, or to 0 for any free port"
        raise PortTaken(f"port {port} of {host} cannot be used ({error.strerror}): {hint}") from error
    return int(listener.getsockname()[1])
