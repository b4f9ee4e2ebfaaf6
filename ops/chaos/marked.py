"""Workers whose processes and connections are all found, however they try to leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, LiteralString
from urllib.parse import quote, urlencode
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

NAME: Final = "CHAOS_MARK"
CONNECTED: LiteralString = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"


class Mark:
    """A variable of the environment, which every process below inherits, and a role of PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.role = f"marked_{uuid4().hex[:12]}"
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(sql.Identifier(self.role)))
        options = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
        name = options.pop("dbname")
        self._admin = url
        self.url = f"postgresql:///{name}?{urlencode(options | {'user': self.role}, quote_via=quote)}"

    @property
    def environ(self) -> Mapping[str, str]:
        return {NAME: self.role}

    def processes(self) -> list[int]:
        """The living processes."""
        wanted = f"{NAME}={self.role}".encode()
        return [pid for pid, environ in _environs() if wanted in environ.split(b"\0")]

    def connections(self) -> int:
        with psycopg.connect(self._admin) as conn:
            row: tuple[Any, ...] | None = conn.execute(CONNECTED, [self.role]).fetchone()
        assert row is not None
        return int(row[0])


def children_of(pid: int) -> list[int]:
    """The children of a process, which may have ended."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _environs() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").glob("[0-9]*"):
        # It has ended, or is not ours.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            yield int(entry.name), (entry / "environ").read_bytes()
