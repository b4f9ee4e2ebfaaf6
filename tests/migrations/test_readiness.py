"""The readiness checks look at the database as it is now."""

from __future__ import annotations

import pytest

from engine.errors import DatabaseUnavailable
from migrations.readiness import open_checks
from tests.support.database import Conn


async def test_a_read_only_default_that_is_gone_again_is_no_fault_any_more(
    database_url: str, conn: Conn
) -> None:
    name = conn.info.dbname
    await conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    async with open_checks(database_url, "web") as checks:
        with pytest.raises(DatabaseUnavailable, match="default_transaction_read_only"):
            await checks["writable"]()
        await conn.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        await checks["writable"]()
