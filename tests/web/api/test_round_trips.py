"""What is accepted is returned so that it can be posted again: by HTTP, by the library and by SQL."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.errors import CheckViolation
from psycopg.types.json import Jsonb

from engine.errors import InvalidJob
from engine.limits import METADATA
from engine.moves.enqueue import enqueue
from tests.support.database import Conn, fetchone, new
from tests.support.web_harness import JOB, ManualWorker, get, submit


def nested(levels: int) -> str:
    """Metadata with so many containers inside one another, the metadata included."""
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def filled(number: str, size: int) -> str:
    """Metadata of at most `size` bytes, full of one number."""
    return '{"a":[' + ",".join([number] * ((size - 8) // (len(number) + 1))) + "]}"


ACCEPTED = [
    '{"a": 1e20}',
    '{"a": [1e16, 1e19, 1e22, 1e23, -1e100, 1.5e300]}',
    '{"a": [1.7976931348623157e308, -1.7976931348623157e308]}',
    '{"a": [5e-324, 2.2250738585072014e-308, 1e-7, 1e-400]}',
    '{"a": [-0.0, 0.0, -0, 0]}',
    '{"a": [9007199254740993, 18446744073709551615, -9223372036854775808]}',
    '{"a": [1.0, 2.50, 1E5, 1e0, 100e-2]}',
    '{"a": [0.1, 0.30000000000000004, 123456789012345678.0]}',
    '{"a": [0.1000000000000000055511151231257827, 3.14159265358979323846264338327950288]}',
    '{"a": [100000000000000000000, -100000000000000000000]}',
    '{"a": 1' + "0" * 308 + "}",
    '{"a": 1, "a": 2}',
    '{"b": 1, "a": {"": {"": []}}, "": null}',
    '{"\\u2028": "\\u2029\\ud83d\\ude00\\u0001\\u007f", "\\\\u0000": "\\\\"}',
    '{"1e20": "1e20 [{"}',
    nested(64),
    filled("1e15", METADATA.high // 4),
    filled("1.0", METADATA.high),
    filled("1e20", METADATA.high // 5),
    filled("5e-324", METADATA.high // 54),
]
REFUSED = {
    "beyond doubles": '{"a": 1E400}',
    "minus infinity": '{"a": -1e309}',
    "an integer that a double would change": '{"a": 18446744073709551616}',
    "an integer between two doubles": '{"a": 123456789012345678901234567890}',
    "full digits beyond doubles": '{"a": 1' + "0" * 309 + "}",
    "U+0000": '{"a": "\\u0000"}',
    "a lone surrogate": '{"a": "\\ud800"}',
    "65 levels": nested(65),
    "66 levels": nested(66),
    "numbers that fill more than the limit in the database": filled("1e20", METADATA.high),
    "such small ones": filled("5e-324", METADATA.high),
}


def in_javascript(text: str) -> str:
    """Doubles that are whole are written without a point, and up to 1e21 in full digits."""

    def written(digits: str) -> Any:
        number = float(digits)
        return int(Decimal(repr(number))) if number.is_integer() and abs(number) < 1e21 else number

    return json.dumps(json.loads(text, parse_float=written))


async def posted(client: aiohttp.ClientSession, metadata: str) -> str:
    """The metadata as GET shows them."""
    body = '{"content": "x", "preset": "echo", "metadata": ' + metadata + "}"
    async with client.post(
        "/pipeline/run", data=body, headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 202, (metadata[:200], await response.text())
        path = response.headers["Location"]
    async with client.get(path) as response:
        shown = await response.text()
    # Python's parser keeps every digit.
    return json.dumps(json.loads(shown)["metadata"])


def value(text: str) -> Any:
    """With numbers as the decimals that they are, those with a point or an exponent as the shortest of their double."""
    return json.loads(text, parse_int=Decimal, parse_float=lambda digits: Decimal(repr(float(digits))))


@pytest.mark.parametrize("metadata", ACCEPTED, ids=lambda text: text[:40])
async def test_accepted_metadata_are_returned_equal_and_are_accepted_again(
    anyone: aiohttp.ClientSession, metadata: str
) -> None:
    shown = await posted(anyone, metadata)
    assert value(shown) == value(metadata)
    assert value(await posted(anyone, shown)) == value(shown)
    # As JavaScript writes them: without a point, and in full digits up to 1e21.
    assert value(await posted(anyone, in_javascript(shown))) == value(shown)


@pytest.mark.parametrize("metadata", REFUSED.values(), ids=REFUSED.keys())
async def test_what_could_not_be_posted_again_is_refused_at_first(
    anyone: aiohttp.ClientSession, metadata: str
) -> None:
    body = '{"content": "x", "preset": "echo", "metadata": ' + metadata + "}"
    async with anyone.post(
        "/pipeline/run", data=body, headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 422, await response.text()
        assert (await response.json())["errors"][0]["pointer"].startswith("/metadata")


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-308, 308).map(lambda exponent: float(f"1e{exponent}")),
)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(metadata=st.dictionaries(TEXTS, VALUES, max_size=5))
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
async def test_any_metadata_make_the_round_twice(anyone: aiohttp.ClientSession, metadata: Any) -> None:
    shown = await posted(anyone, json.dumps(metadata))
    assert value(shown) == value(json.dumps(metadata))
    assert value(await posted(anyone, shown)) == value(shown)


@pytest.mark.parametrize("metadata", ACCEPTED, ids=lambda text: text[:40])
async def test_the_library_and_sql_take_what_http_has_returned(
    conn: Conn, ann: aiohttp.ClientSession, metadata: str
) -> None:
    shown = await posted(ann, metadata)
    by_library = await enqueue(conn, new(metadata=json.loads(shown)))
    by_sql = await by_function(conn, shown)
    for job_id in (by_library.id, by_sql):
        (stored,) = await fetchone(conn, "SELECT metadata::text FROM jobs WHERE id = %s", job_id)
        assert value(stored) == value(metadata)


async def by_function(conn: Conn, metadata: str) -> UUID:
    (job_id,) = await fetchone(conn, "SELECT outrider_enqueue('ann', 'echo', 'x', %s::jsonb)", metadata)
    return UUID(str(job_id))


BY_SQL = {name: text for name, text in REFUSED.items() if "U+" not in name and "lone" not in name}


@pytest.mark.parametrize("metadata", BY_SQL.values(), ids=BY_SQL.keys())
async def test_sql_and_the_library_refuse_what_http_refuses(conn: Conn, metadata: str) -> None:
    with pytest.raises(CheckViolation, match=r"^metadata: "):
        await by_function(conn, metadata)
    jobs = '[{"user_id": "ann", "preset": "echo", "content": "x", "metadata": ' + metadata + "}]"
    with pytest.raises(CheckViolation, match=r"^metadata: "):
        await conn.execute("SELECT job_id FROM outrider_enqueue_many(%s::json)", [jobs])
    with pytest.raises(InvalidJob):
        await enqueue(conn, new(metadata=json.loads(metadata)))
    assert await fetchone(conn, "SELECT count(*) FROM jobs") == (0,)


async def test_sql_without_exact_floats_takes_a_double_in_full_digits(conn: Conn) -> None:
    await conn.execute("SET extra_float_digits = -15")
    assert await by_function(conn, '{"a": 123456789012345680000}')
    with pytest.raises(CheckViolation, match="beyond 64 bits"):
        await by_function(conn, '{"a": 123456789012345680001}')


async def test_a_result_is_returned_as_the_pipeline_gave_it_and_can_be_posted_as_metadata(
    ann: aiohttp.ClientSession, manual_worker: ManualWorker
) -> None:
    output = {"a": [1e20, 1e308, 5e-324, -0.0, 2**53 + 1, 2**64 - 1, 0.1], "": {"é": None}}
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim(), output=output)
    shown = await get(ann, job_id)
    assert shown["result"] == output
    again = await get(ann, await submit(ann, metadata=shown["result"]))
    assert value(json.dumps(again["metadata"])) == value(json.dumps(output))


async def test_a_whole_job_can_be_posted_as_it_was_returned(ann: aiohttp.ClientSession) -> None:
    asked = JOB | {
        "metadata": {"a": 1e20},
        "run_at": "2030-01-01T00:00:00.5Z",
        "priority": 4,
        "max_attempts": 2,
    }
    shown = await get(ann, await submit(ann, **asked))
    members = ("content", "preset", "metadata", "priority", "run_at", "max_attempts", "timeout_seconds")
    again = await get(ann, await submit(ann, **{name: shown[name] for name in members}))
    assert {name: again[name] for name in members} == {name: shown[name] for name in members}


async def test_a_job_by_sql_can_be_posted_by_http(conn: Conn, ann: aiohttp.ClientSession) -> None:
    (job_id,) = await fetchone(
        conn,
        "SELECT outrider_enqueue('ann', 'echo', 'x', %s, run_at => '2030-01-01T00:00+01:00')",
        Jsonb({"a": [1e20, 1e308]}),
    )
    shown = await get(ann, job_id)
    again = await get(ann, await submit(ann, metadata=shown["metadata"], run_at=shown["run_at"]))
    assert (again["metadata"], again["run_at"]) == (shown["metadata"], shown["run_at"])
