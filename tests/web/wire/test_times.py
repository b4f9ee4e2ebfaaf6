"""A time in a request is a date-time of RFC 3339 and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from engine.errors import InvalidJob
from engine.limits import RUN_AT
from web.wire.parsing import parsed
from web.wire.request_models import JobToRun
from web.wire.times import FAULT, moment

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2030-01-31T12:00:00Z", NOON),
        ("2030-01-31t12:00:00z", NOON),
        ("2030-01-31T12:00:00-00:00", NOON),
        ("2030-01-31T13:30:00+01:30", NOON),
        ("2030-01-30T12:01:00-23:59", NOON),
        ("2030-02-01T11:59:00+23:59", NOON),
        ("2030-01-31T12:00:00.5Z", NOON + timedelta(seconds=0.5)),
        ("2030-01-31T12:00:00.0000019999999Z", NOON + timedelta(microseconds=1)),
        ("2030-01-31T12:00:00." + "9" * 1000 + "Z", NOON + timedelta(microseconds=999_999)),
        ("2028-02-29T00:00:00Z", datetime(2028, 2, 29, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2030-06-30T16:59:60.25-07:00", datetime(2030, 7, 1, microsecond=250_000, tzinfo=UTC)),
        ("2030-07-01T05:29:60+05:30", datetime(2030, 7, 1, tzinfo=UTC)),
    ],
)
def test_a_date_time_means_its_moment(written: str, meant: datetime) -> None:
    assert moment(written) == meant


REFUSED: list[Any] = [
    *("20300101", "2030", "1900000000000", "-1", "0", "1e9", "2030-01", "2030-01-31", "20300131T120000Z"),
    *("2030-01-31T12:00:00", "2030-01-31T12:00Z", "2030-01-31 12:00:00Z", "2030-01-31_12:00:00Z"),
    *("2030-01-31T12Z", "2030-01-31T12:00:00.Z", "2030-01-31T12:00:00,5Z", "2030-01-31T12:00:00+01"),
    *("2030-01-31T12:00:00+0100", "2030-01-31T12:00:00+24:00", "2030-01-31T12:00:00+05:60"),
    *("2030-01-31T12:00:00+05:99", "2030-01-31T12:00:00+01:00:00", "2030-01-31T12:00:00 Z"),
    *("2030-01-31T12:00:00 +01:00", "2030-01-31T12:00:00UTC", "2030-01-31T12:00:00ZZ"),
    *(" 2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z ", "2030-01-31T12:00:00Z\n"),
    *("2030-13-01T00:00:00Z", "2030-02-29T00:00:00Z", "2030-00-01T00:00:00Z", "2030-01-00T00:00:00Z"),
    *("2030-01-31T24:00:00Z", "2030-01-31T12:60:00Z", "2030-01-31T12:00:61Z"),
    *("2030-06-30T12:00:60Z", "2030-06-30T23:58:60Z", "2030-06-30T23:59:60+01:00", "2030-06-30T23:59:61Z"),
    *("0000-01-01T00:00:00Z", "+2030-01-31T12:00:00Z", "-2030-01-31T12:00:00Z", "12030-01-31T12:00:00Z"),
    *("٢٠٣٠-01-31T12:00:00Z", "2030-01-31T12:00:00.\u0665Z", "2030-01-31T12:00:00+\u06601:00"),
    *(
        "2030-W05-4T12:00:00Z",
        "2030-031T12:00:00Z",
        "P1D",
        "now",
        "tomorrow",
        "infinity",
        "-infinity",
        "NaN",
        "",
    ),
    *("2030-01-31T12:00:00Z[Europe/Berlin]", "Thu, 31 Jan 2030 12:00:00 GMT", "2030-01-31T12:00:00Z/P1D"),
    *("9999-12-31T23:59:60Z",),
    *(0, 2030, 20300101, 1.9e9, 1_900_000_000_000, -1, True, [], {}, ["2030-01-31T12:00:00Z"]),
]


@pytest.mark.parametrize("given", REFUSED, ids=ascii)
def test_whatever_else_a_lenient_parser_takes_for_a_time_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        moment(given)


@pytest.mark.parametrize("given", ["2030", 2030, 1.5, True, "2030-01-31", "2030-01-31T12:00:00"])
def test_the_fault_is_named_at_its_place(given: Any) -> None:
    with pytest.raises(InvalidJob) as refused:
        parsed(JobToRun, job(given))
    assert [tuple(problem) for problem in refused.value.problems] == [("/run_at", FAULT)]


@pytest.mark.parametrize(
    "written", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00-05:00", "1969-12-31T23:59:59Z"]
)
def test_a_time_long_past_is_accepted_and_counts_as_the_first(written: str) -> None:
    asked = parsed(JobToRun, job(written))
    assert asked.run_at is not None
    assert RUN_AT.clamped(asked.run_at) == RUN_AT.first


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_outside_the_calendar_in_utc_is_refused(written: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        parsed(JobToRun, job(written))
    assert [tuple(problem) for problem in refused.value.problems] == [("/run_at", RUN_AT.fault)]


def job(run_at: Any) -> bytes:
    return orjson.dumps({"content": "x", "preset": "p", "run_at": run_at})
