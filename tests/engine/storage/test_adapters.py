"""Our connections keep psycopg's own adapters, whatever an author's code registers for the process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import psycopg
import pytest
from psycopg.types.array import ListDumper
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import JsonbDumper
from psycopg.types.string import TextLoader

from engine.storage.connections import borrow, connect, open_pool


@pytest.fixture
def registered() -> Iterator[None]:
    psycopg.adapters.register_loader("timestamptz", TextLoader)
    psycopg.adapters.register_dumper(list, JsonbDumper)
    yield
    psycopg.adapters.register_loader("timestamptz", TimestamptzLoader)
    psycopg.adapters.register_dumper(list, ListDumper)


@pytest.mark.usefixtures("registered")
async def test_adapters_of_the_process_reach_no_connection_of_ours(database_url: str) -> None:
    asked = "SELECT now(), %s::text[]"
    async with await connect(database_url, name="t") as conn:
        [(now, listed)] = await (await conn.execute(asked, [["a"]])).fetchall()
    assert (type(now), listed) == (datetime, ["a"])
    async with open_pool(database_url, name="t", size=1) as pool, borrow(pool) as conn:
        [(now, listed)] = await (await conn.execute(asked, [["a"]])).fetchall()
    assert (type(now), listed) == (datetime, ["a"])
