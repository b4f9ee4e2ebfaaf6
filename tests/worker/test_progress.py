"""What an attempt last said of itself: the latest wins, whatever the order of arrival."""

from __future__ import annotations

import pytest

from engine.ids import uuid7
from engine.tables.progress import Progress, report
from tests.support.database import Conn, fetchone

JOB = uuid7()


@pytest.mark.parametrize(
    ("attempt", "n", "kept"),
    [(1, 3, False), (1, 4, False), (1, 5, True), (2, 1, True), (3, 9, True)],
)
async def test_only_a_later_report_replaces_one(conn: Conn, attempt: int, n: int, kept: bool) -> None:
    await report(conn, [Progress(JOB, 1, 4, 0.4, "before")])
    await report(conn, [Progress(JOB, attempt, n, 0.5, "after")])
    (message,) = await fetchone(conn, "SELECT message FROM job_progress")
    assert message == ("after" if kept else "before")


async def test_reports_of_many_jobs_are_one_statement_and_any_text_survives(conn: Conn) -> None:
    texts = ["", 'quote " and \\ backslash', "{braces, commas}", "NULL", "newline\n", "ünïcödé 🎈"]
    latest = [Progress(uuid7(), 1, 1, number / 10, text) for number, text in enumerate(texts)]
    await report(conn, latest)
    rows = await (await conn.execute("SELECT job_id, message FROM job_progress")).fetchall()
    assert dict(rows) == {each.job_id: each.message for each in latest}
