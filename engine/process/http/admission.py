"""Which connections a server keeps open: the caps, and who makes room for a newcomer. Pure; all events are O(1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final, Generic, TypeVar

C = TypeVar("C", bound=Hashable)

UNKNOWN: Final = ""
"""The address of a client that has gone before it could be asked."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a server before it knows its clients. `head_seconds`: the time that a request's head may take."""

    connections: int = 10_000
    per_address: int = 1000
    head_seconds: float = 10.0


class Full(Exception):
    """No connection can make room: all of them have a request in flight."""


class _Group(Generic[C]):
    """Connections that are capped together. `silent` and `idle` begin with the one that has waited longest."""

    __slots__ = ("address", "idle", "open", "silent")

    def __init__(self, address: str = UNKNOWN) -> None:
        self.address = address
        self.open = 0
        self.silent: OrderedDict[C, None] = OrderedDict()
        self.idle: OrderedDict[C, None] = OrderedDict()

    def longest_waiting(self) -> C | None:
        return next(iter(self.silent), None) or next(iter(self.idle), None)

    def forget(self, connection: C) -> None:
        self.silent.pop(connection, None)
        self.idle.pop(connection, None)


class OpenConnections(Generic[C]):
    """The open connections of a server, by what they do.

    A connection is silent until its first whole head, busy while a request is in flight, and idle between requests.
    Beyond a cap a newcomer takes the place of the connection, of its address or of all, that has been silent longest,
    or else idle longest. So nobody locks others out by connections that ask nothing, not even behind one address.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._all: _Group[C] = _Group()
        self._by_address: dict[str, _Group[C]] = {}
        self._groups: dict[C, tuple[_Group[C], _Group[C]]] = {}
        """Of each connection: that of all, and that of its address."""

    def __len__(self) -> int:
        return self._all.open

    def admit(self, newcomer: C, address: str) -> C | None:
        """Count `newcomer` as silent. Returns the connection that it replaces, which the caller closes.

        Raises Full.
        """
        group = self._by_address.get(address)
        replaced = None
        if group is not None and group.open >= self._limits.per_address:
            replaced = group.longest_waiting()
            if replaced is None:
                raise Full
        elif self._all.open >= self._limits.connections:
            replaced = self._all.longest_waiting()
            if replaced is None:
                raise Full
        if replaced is not None:
            self.remove(replaced)
        groups = self._groups[newcomer] = self._all, self._by_address.setdefault(address, _Group(address))
        for each in groups:
            each.open += 1
            each.silent[newcomer] = None
        return replaced

    def everyone(self) -> list[C]:
        return list(self._groups)

    def silent(self, connection: C) -> None:
        """`connection` has sent a part of its first head."""
        for each in self._groups.get(connection, ()):
            each.forget(connection)
            each.silent[connection] = None

    def busy(self, connection: C) -> None:
        """A request of `connection` is in flight: it makes room for nobody."""
        for each in self._groups.get(connection, ()):
            each.forget(connection)

    def idle(self, connection: C) -> None:
        """Nothing of `connection` is in flight any more."""
        for each in self._groups.get(connection, ()):
            each.forget(connection)
            each.idle[connection] = None

    def longest_waiting(self) -> C | None:
        """The connection that makes room first, if one does."""
        return self._all.longest_waiting()

    def remove(self, connection: C) -> bool:
        """Count `connection` no longer. False if it was not counted."""
        groups = self._groups.pop(connection, None)
        if groups is None:
            return False
        for each in groups:
            each.forget(connection)
            each.open -= 1
        _, mine = groups
        if not mine.open:
            del self._by_address[mine.address]
        return True


def address_of(peer: object) -> str:
    """The address by which connections are capped: IPv4 as it is, IPv6 by its /64, which one client may own whole."""
    host = peer[0] if isinstance(peer, tuple) and peer else None
    if not isinstance(host, str):
        return UNKNOWN
    if ":" not in host:
        return host
    parsed = IPv6Address(host.partition("%")[0])
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
