"""A job's history over HTTP: in pages, in a stream, and never whole."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from yarl import URL

from engine.queries import audit
from engine.queries.audit import PAGE, AuditRow
from tests.engine.queries.test_long_history import snooze
from tests.support.web_harness import ManualWorker, get, submit
from tests.web.api.test_streams import ids
from web.api import streams
from web.wire import paging

Conn = AsyncConnection[Any]


async def pages(client: Any, job_id: str, **parameters: Any) -> list[list[int]]:
    """The `seq` of every transition, page by page, by following next_cursor; Link must lead to the same page."""
    path, found = f"/pipeline/job/{job_id}/history", []
    while True:
        async with client.get(path, params=parameters) as response:
            assert response.status == 200, await response.text()
            body = await response.json()
        found.append([row["seq"] for row in body["history"]])
        if body["next_cursor"] is None:
            assert "Link" not in response.headers
            return found
        following = URL(response.links["next"]["url"])
        assert following.path == path
        assert following.query["cursor"] == body["next_cursor"]
        parameters = dict(following.query)


async def test_pages_cover_a_history_exactly_once_oldest_first(
    ann: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    await snooze(conn, UUID(job_id), 2)
    await manual_worker.finish(await manual_worker.claim())
    seqs = [0, 1, 2, 3, 4, 5, 6]
    assert await pages(ann, job_id) == [seqs]
    assert await pages(ann, job_id, limit=7) == [seqs]
    assert await pages(ann, job_id, limit=3) == [seqs[:3], seqs[3:6], seqs[6:]]
    assert await pages(ann, job_id, cursor=paging.cursor_after_seq(6)) == [[]]


async def test_a_long_history_is_never_answered_whole(ann: Any, conn: Conn) -> None:
    job_id = await submit(ann)
    await snooze(conn, UUID(job_id), PAGE)
    first = await get(ann, job_id, "/history")
    assert [row["seq"] for row in first["history"]] == [*range(PAGE)]
    assert [len(page) for page in await pages(ann, job_id)] == [PAGE, PAGE, 1]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        f"limit={PAGE + 1}",
        "limit=all",
        "cursor=",
        "cursor=AAAAAB",
        "cursor=gAAAAA",
        "cursor=AAAAAA==",
    ],
)
async def test_422_for_a_page_that_there_cannot_be(ann: Any, query: str) -> None:
    async with ann.get(f"/pipeline/job/{await submit(ann)}/history?{query}") as response:
        assert response.status == 422
        [fault] = (await response.json())["errors"]
        assert fault["pointer"] == f"/{query.partition('=')[0]}"


@pytest.mark.parametrize("seq", [0, 1, 170_000, 2**31 - 1])
def test_every_seq_has_a_cursor_that_leads_back_to_it(seq: int) -> None:
    import re

    cursor = paging.cursor_after_seq(seq)
    assert re.fullmatch(paging.HISTORY_CURSOR, cursor)
    assert paging.seq_before(cursor) == seq


async def test_a_stream_reads_a_long_history_a_page_at_a_time(
    ann: Any, conn: Conn, manual_worker: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    await snooze(conn, UUID(job_id), 10)
    await manual_worker.finish(await manual_worker.claim())
    read: list[int] = []
    history = audit.history

    async def counted(*args: Any, **kwargs: Any) -> list[AuditRow] | None:
        rows = await history(*args, **kwargs)
        read.append(len(rows or ()))
        return rows

    monkeypatch.setattr(audit, "history", counted)
    monkeypatch.setattr(streams, "PAGE", 5)
    async with asyncio.timeout(10):
        assert await ids(ann, job_id) == [str(seq) for seq in range(23)]
        assert read == [5, 5, 5, 5, 3]
        assert await ids(ann, job_id, "11") == [str(seq) for seq in range(12, 23)]
