"""Whatever a field holds, the library takes it or raises InvalidJob with its place: never another error."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest

from engine.errors import InvalidJob
from engine.limits import RUN_AT
from engine.moves.enqueue import enqueue
from engine.moves.validation import check
from tests.support.database import Conn, fetchone, new


class Zone(tzinfo):
    """A zone that says whatever it was made with, or raises it."""

    def __init__(self, said: Any) -> None:
        self._said = said

    def utcoffset(self, _moment: datetime | None) -> Any:
        if isinstance(self._said, BaseException):
            raise self._said
        return self._said

    def dst(self, _moment: datetime | None) -> None:
        return None

    def tzname(self, _moment: datetime | None) -> str:
        return "odd"


class Stamp(datetime):
    """As pandas and pendulum have them."""


class Level(IntEnum):
    HIGH = 1


EXTREMES = [
    pytest.param(
        bound.replace(tzinfo=timezone(timedelta(minutes=minutes))),
        bound.year == 1 and minutes <= 0,
        id=f"{bound} {minutes}",
    )
    for bound in (datetime.min, datetime.max)  # noqa: DTZ901 - each gets a zone
    for minutes in (-1439, -300, -1, 0, 1, 300, 1439)
]


@pytest.mark.parametrize(("moment", "past"), EXTREMES)
async def test_the_ends_of_the_calendar_are_past_or_refused_in_every_zone(
    conn: Conn, moment: datetime, past: bool
) -> None:
    if not past:
        with pytest.raises(InvalidJob, match="/run_at: not a time with a zone, up to the year 9999"):
            await enqueue(conn, new(run_at=moment))
        return
    job = await enqueue(conn, new(run_at=moment))
    stored = await fetchone(conn, "SELECT status, run_at FROM outbox WHERE job_id = %s", job.id)
    assert stored == ("ready", RUN_AT.first)


@pytest.mark.parametrize(
    "zone",
    [Zone(timedelta(seconds=1)), Zone(timedelta(hours=-23, seconds=-59, microseconds=-1)), UTC],
    ids=["a second", "almost a day back", "UTC"],
)
async def test_an_odd_zone_is_a_zone(conn: Conn, zone: tzinfo) -> None:
    for moment in (datetime(2030, 1, 1, tzinfo=zone), Stamp(2030, 1, 1, tzinfo=zone)):
        job = await enqueue(conn, new(run_at=moment))
        offset = moment.utcoffset()
        assert offset is not None
        stored = await fetchone(conn, "SELECT run_at FROM jobs WHERE id = %s", job.id)
        assert stored == (datetime(2030, 1, 1, tzinfo=UTC) - offset,)


NO_TIMES: list[Any] = [
    datetime(2030, 1, 1),  # noqa: DTZ001 - without a zone
    datetime.min,  # noqa: DTZ901
    datetime.max,  # noqa: DTZ901
    date(2030, 1, 1),
    time(12, tzinfo=UTC),
    timedelta(1),
    "2030-01-01T00:00:00Z",
    "2030",
    2030,
    1.9e9,
    True,
    *(
        datetime(2030, 1, 1, tzinfo=Zone(said))
        for said in (None, 5, timedelta(hours=24), ValueError("no"), KeyError("no"), ZeroDivisionError())
    ),
    Stamp(2030, 1, 1),
]


@pytest.mark.parametrize("given", NO_TIMES, ids=lambda given: f"{type(given).__name__}")
def test_what_is_no_time_with_a_zone_is_refused(given: Any) -> None:
    with pytest.raises(InvalidJob) as refused:
        check(new(run_at=given))
    assert [tuple(each) for each in refused.value.problems] == [("/run_at", RUN_AT.fault)]


Point = namedtuple("Point", "x y")
STRANGE: list[Any] = [
    *(("content", value) for value in (None, 5, b"x", ["x"], True)),
    *(("user_id", value) for value in (None, 5, b"x", ["x"], UUID(int=5))),
    *(("preset", value) for value in (None, 5, b"p", ["p"])),
    *(("priority", value) for value in (2.0, "2", True, Level.HIGH, Decimal(2), [2], object())),
    *(("max_attempts", value) for value in (2.0, "2", True, [2])),
    *(("timeout_seconds", value) for value in (2.5, "2", True, timedelta(1), float("nan"))),
    *(
        ("delay_seconds", value)
        for value in ("5", True, Decimal(5), timedelta(5), [5], float("nan"), 1e400, 10**400)
    ),
    *(("traceparent", value) for value in ("", 5, b"00", "00-" + "0" * 32 + "-" + "1" * 16 + "-01")),
    *(("id", value) for value in ("0197b3c0-0000-7000-8000-000000000000", 5, UUID(int=0))),
    *(("metadata", value) for value in ([], "{}", 5, [("a", 1)], True)),
    *(("metadata", {"a": value}) for value in (object(), {1: 2}, b"x", Decimal(1), 2**64, {1, 2})),
]


@pytest.mark.parametrize(
    ("field", "value"), STRANGE, ids=lambda given: given if isinstance(given, str) else type(given).__name__
)
async def test_a_value_of_another_type_is_a_fault_at_its_place(conn: Conn, field: str, value: Any) -> None:
    with pytest.raises(InvalidJob) as refused:
        await enqueue(conn, new(**{field: value}))
    assert {each.pointer.split("/")[1] for each in refused.value.problems} == {field}


@pytest.mark.parametrize(
    "optional",
    [
        "metadata",
        "priority",
        "run_at",
        "delay_seconds",
        "max_attempts",
        "timeout_seconds",
        "traceparent",
        "id",
    ],
)
async def test_none_and_null_are_absent_for_every_optional_field(conn: Conn, optional: str) -> None:
    assert new(**{optional: None}) == new()
    await enqueue(conn, new(**{optional: None}))
    name = {"id": "job_id"}.get(optional, optional)
    await conn.execute(f"SELECT outrider_enqueue('ann', 'p', 'text', {name} => NULL)".encode())
    await conn.execute(
        "SELECT job_id FROM outrider_enqueue_many(json_build_array(json_build_object("
        "'user_id', 'ann', 'preset', 'p', 'content', 'text', %s::text, NULL)))",
        [name],
    )
    rows = await (
        await conn.execute(
            "SELECT DISTINCT priority, metadata::text, max_attempts, timeout_seconds, run_at <= now() FROM jobs"
        )
    ).fetchall()
    assert rows == [(2, "{}", None, None, True)]


async def test_mappings_of_other_kinds_are_metadata(conn: Conn) -> None:
    job = await enqueue(conn, new(metadata=OrderedDict(a=10**20, p=Point(1, 2), b=(1, {"c": [10**30]}))))
    assert await fetchone(conn, "SELECT metadata FROM jobs WHERE id = %s", job.id) == (
        {"a": 10**20, "p": [1, 2], "b": [1, {"c": [10**30]}]},
    )
