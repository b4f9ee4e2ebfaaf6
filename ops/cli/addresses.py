"""Hosts and ports: which are free, how to write the address of one, and where a running `up` listens."""

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

ANY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # what is listened on, not by us
MAX_PORT = 65_535
FILE = "up.json"


class PortTaken(OutriderError):
    """Something else listens there."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the three processes of one `up` listen."""

    http_host: str
    http: int
    admin_host: str
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
        return cls(settings.http_host, http, settings.admin_host, admin)

    @property
    def web(self) -> str:
        """The URL for clients."""
        return f"http://{reachable(self.http_host)}:{self.http}"

    def admin_url(self, role: str, path: str) -> str:
        return f"http://{reachable(self.admin_host)}:{self.admin[role]}{path}"


@contextmanager
def published(ports: Ports, data_dir: Path) -> Iterator[None]:
    """Lets commands find `ports` by the data directory until the block, or this process, ends.

    The file is whole and locked before it has its name, and the kernel frees the lock of whoever dies: a file that
    nobody has locked is stale. Of several `up`s of one directory the last one is found. Raises OSError.
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
    """Where the `up` of that data directory listens; None when none runs."""
    with suppress(OSError, ValueError, TypeError), (data_dir / FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Ports(**json.load(file))
    return None


def local(settings: Settings, what: Literal["http", "admin"]) -> Ports | None:
    """The running `up`, unless the settings name another host or a port: what is set wins."""
    host, port = f"{what}_host", f"{what}_port"
    named = settings.model_fields_set
    up = running(settings.data_dir)
    if up is None or (port in named and getattr(settings, port)):  # 0 is any port, which names none
        return None
    return None if host in named and getattr(settings, host) != getattr(up, host) else up


def web_address(settings: Settings) -> str:
    """The URL of the web process that commands mean: the configured one, else a local `up`'s, else the default."""
    up = local(settings, "http")
    return up.web if up else f"http://{reachable(settings.http_host)}:{settings.http_port}"


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
