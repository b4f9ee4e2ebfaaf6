"""The schema's versions."""

from __future__ import annotations

from pathlib import Path

import psycopg

SQL = Path(__file__).with_name("sql")


def up(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        for path in sorted(SQL.glob("*.sql")):
            if not path.name.endswith(".rollback.sql"):
                conn.execute(path.read_bytes())
    return []
