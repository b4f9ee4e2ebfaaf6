"""The table of limits is the library's and the schema's alike: the same bounds, and the same words."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation
from psycopg.sql import SQL, Identifier, Placeholder
from psycopg.types.json import Jsonb

from engine.errors import InvalidJob, Problem
from engine.ids import uuid7
from engine.limits import (
    CONTENT,
    DELAY_SECONDS,
    MAX_ATTEMPTS,
    METADATA,
    PRESET,
    PRIORITY,
    RUN_AT,
    TIMEOUT_SECONDS,
    USER_ID,
    Limit,
)
from engine.moves.enqueue import enqueue
from engine.moves.validation import check
from tests.support.database import Conn, fetchone, new

YEAR_9999 = datetime(9999, 1, 1, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)


class Case(NamedTuple):
    """Values at the bounds, and the next ones outside."""

    limit: Limit
    inside: tuple[Any, ...]
    outside: tuple[Any, ...]


STORED = {
    "user_id": Case(USER_ID, ("a", "a" * 255, "\U0001f600" * 255), ("", "a" * 256)),
    "preset": Case(
        PRESET,
        ("a", "0", "a" * 63, "a_.-"),
        ("", "a" * 64, "A", "_a", ".a", "-a", "a b", "a\n", "\na", "é", "aé", "a/b"),
    ),
    "content": Case(
        CONTENT,
        ("x", "x" * 262_144, "é" * 131_072, "\U0001f600" * 65_536),
        ("", "x" * 262_145, "é" * 131_072 + "x", "\U0001f600" * 65_536 + "x"),
    ),
    "priority": Case(PRIORITY, (1, 4), (0, 5, -1)),
    "max_attempts": Case(MAX_ATTEMPTS, (1, 25), (0, 26, -1)),
    "timeout_seconds": Case(TIMEOUT_SECONDS, (1, 86_400), (0, 86_401, -1)),
    "run_at": Case(
        RUN_AT,
        (
            datetime(1970, 1, 1, tzinfo=UTC),
            YEAR_9999,
            YEAR_9999 - INSTANT,
            YEAR_9999.replace(hour=1, tzinfo=timezone(timedelta(hours=1))),
        ),
        (
            YEAR_9999 + INSTANT,
            YEAR_9999.replace(tzinfo=timezone(timedelta(hours=-1))),
            datetime.max.replace(tzinfo=UTC),
        ),
    ),
}
"""What is stored, and what the schema checks too."""

ASKED = {
    "delay_seconds": Case(
        DELAY_SECONDS,
        (0, 0.0, 31_536_000),
        (-5e-324, math.nextafter(31_536_000, math.inf), math.inf, math.nan),
    ),
    "metadata": Case(
        METADATA,
        ({}, {"a": "x" * (262_144 - 8)}, {"a": "é" * (131_072 - 4)}),
        ({"a": "x" * (262_144 - 7)}, {"a": "é" * (131_072 - 4) + "x"}),
    ),
    "run_at": Case(RUN_AT, (), (datetime(2030, 1, 1), datetime.min)),  # noqa: DTZ001, DTZ901 - without a zone
}
"""What only the library knows: it is not stored as it is asked for."""


SHORTER: dict[str, Any] = {
    "metadata": lambda given: {name: text[:-1] for name, text in given.items()},
}


def inside(*tables: dict[str, Case]) -> list[Any]:
    return [
        pytest.param(field, value, id=f"{field}: {ascii(value)[:30]}")
        for table in tables
        for field, case in table.items()
        for value in case.inside
    ]


def outside(*tables: dict[str, Case]) -> list[Any]:
    return [
        pytest.param(field, value, case.limit, id=f"{field}: {ascii(value)[:30]}")
        for table in tables
        for field, case in table.items()
        for value in case.outside
    ]


async def insert(conn: Conn, field: str, value: Any) -> None:
    """As a stranger would, past the library."""
    columns = {"id": uuid7(), "user_id": "ann", "preset": "p", "content": "text"} | {field: value}
    await conn.execute(
        SQL("INSERT INTO jobs ({}) VALUES ({})").format(
            SQL(", ").join(map(Identifier, columns)),
            SQL(", ").join(map(Placeholder, columns)),
        ),
        columns,
    )


async def by_sql(conn: Conn, field: str, value: Any) -> None:
    """As an application in any language would."""
    members = {"user_id": "ann", "preset": "p", "content": "text"} | {
        field: Jsonb(value) if field == "metadata" else value
    }
    named = SQL(", ").join(SQL("{} => {}").format(Identifier(name), Placeholder(name)) for name in members)
    await conn.execute(SQL("SELECT outrider_enqueue({})").format(named), members)


@pytest.mark.parametrize(("field", "value"), inside(STORED, ASKED))
def test_the_library_takes_a_value_at_a_bound(field: str, value: Any) -> None:
    check(new(**{field: value}))


@pytest.mark.parametrize(("field", "value", "limit"), outside(STORED, ASKED))
def test_the_library_refuses_the_next_one_in_the_limits_words(field: str, value: Any, limit: Limit) -> None:
    with pytest.raises(InvalidJob) as refused:
        check(new(**{field: value}))
    assert refused.value.problems == (Problem(f"/{field}", limit.fault),)


def test_the_library_reports_every_limit_that_is_broken_at_once() -> None:
    broken = {field: case.outside[0] for field, case in STORED.items()}
    with pytest.raises(InvalidJob) as refused:
        check(new(**broken))
    assert dict(refused.value.problems) == {f"/{field}": case.limit.fault for field, case in STORED.items()}


async def test_the_schema_takes_every_value_at_a_bound(conn: Conn) -> None:
    for field, case in STORED.items():
        for value in case.inside:
            await insert(conn, field, value)


@pytest.mark.parametrize("field", STORED)
async def test_the_schema_refuses_the_next_ones_by_the_same_words(conn: Conn, field: str) -> None:
    case = STORED[field]
    for value in case.outside:
        with pytest.raises(CheckViolation) as refused:
            await insert(conn, field, value)
        assert refused.value.diag.constraint_name == f"{field}: {case.limit.fault}", ascii(value)[:30]
    assert await fetchone(conn, "SELECT count(*) FROM jobs") == (0,)


async def test_the_sql_function_takes_every_value_at_a_bound(conn: Conn) -> None:
    for field, case in [*STORED.items(), *ASKED.items()]:
        for value in case.inside:
            # PostgreSQL writes its JSON with a space after each colon.
            await by_sql(conn, field, SHORTER.get(field, lambda given: given)(value))


@pytest.mark.parametrize("field", [*STORED, "delay_seconds", "metadata"])
async def test_the_sql_function_refuses_the_next_ones_by_the_same_words(conn: Conn, field: str) -> None:
    case = (ASKED | STORED)[field]
    wider = (32_768, -2_147_483_648) if field in ("priority", "max_attempts") else ()
    for value in (*case.outside, *wider):
        with pytest.raises(CheckViolation) as refused:
            await by_sql(conn, field, value)
        assert refused.value.diag.constraint_name == f"{field}: {case.limit.fault}", ascii(value)[:30]
    assert await fetchone(conn, "SELECT count(*) FROM jobs") == (0,)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ("job_id => '0197b3c0-0000-4000-8000-000000000000'", "job_id: not a version 7 UUID"),
        ("delay_seconds => 1, run_at => now()", "delay_seconds: not together with run_at"),
        ("traceparent => 'x'", "traceparent: not a W3C trace context"),
    ],
)
async def test_the_sql_function_uses_the_librarys_words_for_what_is_no_limit(
    conn: Conn, members: str, words: str
) -> None:
    with pytest.raises(CheckViolation) as refused:
        await conn.execute(f"SELECT outrider_enqueue('ann', 'p', 'text', {members})".encode())
    assert refused.value.diag.constraint_name == refused.value.diag.message_primary == words
    broken = {
        "id": UUID(int=4 << 76 | 2 << 62),
        "delay_seconds": 1.0,
        "run_at": YEAR_9999,
        "traceparent": "x",
    }
    with pytest.raises(InvalidJob) as by_python:
        check(new(**broken))
    assert words.replace("job_id", "id") in [
        f"{each.pointer[1:]}: {each.detail}" for each in by_python.value.problems
    ]


async def test_the_schema_has_words_for_each_limit_and_no_others(conn: Conn) -> None:
    (body,) = await fetchone(conn, "SELECT prosrc FROM pg_proc WHERE proname = 'outrider_job_fits'")
    words = set(re.findall(r"(?:THEN|ELSE) '([^']+)'", body))
    unasked = {"metadata: not an object", "created_at: not a time up to the year 9999"}
    assert words - unasked == {f"{field}: {case.limit.fault}" for field, case in STORED.items()}


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=-14))),
    ],
)
async def test_a_time_before_1970_means_at_once_to_the_library_and_is_refused_by_the_schema(
    conn: Conn, moment: datetime
) -> None:
    job = await enqueue(conn, new(run_at=moment))
    stored = await fetchone(conn, "SELECT status, run_at FROM outbox WHERE job_id = %s", job.id)
    assert stored == ("ready", RUN_AT.first)
    with pytest.raises(CheckViolation) as refused:
        await insert(conn, "run_at", datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    assert refused.value.diag.constraint_name == f"run_at: {RUN_AT.fault}"


async def test_what_is_not_asked_for_is_no_fault(conn: Conn) -> None:
    unset = dict.fromkeys(("run_at", "delay_seconds", "max_attempts", "timeout_seconds"))
    check(new(**unset))
    await insert(conn, "max_attempts", None)
    await insert(conn, "timeout_seconds", None)


@pytest.mark.parametrize(
    "written",
    [
        "2030",
        "20300101",
        "tomorrow",
        "now",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-01-01 00:00:00+00",
        "epoch",
        "",
    ],
)
async def test_a_time_that_the_session_would_have_to_guess_is_refused_in_json(
    conn: Conn, written: str
) -> None:
    job = {"user_id": "ann", "preset": "p", "content": "text", "run_at": written}
    with pytest.raises(CheckViolation) as refused:
        await conn.execute("SELECT job_id FROM outrider_enqueue_many(%s::json)", [json.dumps([job])])
    assert refused.value.diag.constraint_name == f"run_at: {RUN_AT.fault}"


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Europe/Amsterdam", "Asia/Kolkata"])
async def test_every_time_that_postgresql_has_is_taken_or_refused_as_the_library_does(
    conn: Conn, zone: str
) -> None:
    await conn.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    for past in (
        "0001-01-01 00:00+00",
        "0001-01-02",
        "1890-06-01",
        "1969-12-31 00:00+00",
    ):
        (job_id,) = await fetchone(conn, "SELECT outrider_enqueue('ann', 'p', 'x', run_at => %s)", past)
        stored = await fetchone(conn, "SELECT status, run_at FROM outbox WHERE job_id = %s", job_id)
        assert stored == ("ready", RUN_AT.first)
    for beyond in (
        "-infinity",
        "0001-12-31 23:59:59.999999+00 BC",
        "0001-01-01 00:00+05",
        "4714-11-24 00:00:00+00 BC",
        "infinity",
        "294276-12-31 23:59:59+00",
        "10000-01-01",
        "9999-06-01",
    ):
        with pytest.raises(CheckViolation) as refused:
            await conn.execute("SELECT outrider_enqueue('ann', 'p', 'x', run_at => %s)", [beyond])
        assert refused.value.diag.constraint_name == f"run_at: {RUN_AT.fault}"
