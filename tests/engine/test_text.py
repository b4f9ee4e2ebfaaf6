"""What is not stored, because it could not be read back: each fault with its place and its words."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from typing import Any
from uuid import UUID

import orjson
import pytest
from psycopg.types.json import Jsonb

from engine.errors import Problem
from engine.text import (
    MAX_DEPTH,
    MAX_PROBLEMS,
    decimal,
    digits,
    escape,
    json_bytes,
    json_faults,
    stored_size,
    text_fault,
    too_deep,
    whole,
)
from tests.support.database import Conn, fetchone


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", None),
        ("plain\t\n\x01\x7f text", None),
        ("é \U0001f600 \U0010ffff", None),
        ("\ud7ff\ue000\ufffe\uffff", None),
        ("\\u0000", None),
        ("\0", "U+0000 cannot be stored"),
        ("a\0b", "U+0000 cannot be stored"),
        ("\ud800", "U+D800 cannot be stored"),
        ("ab\udfff\0", "U+DFFF cannot be stored"),
        ("\ude00\ud83d", "U+DE00 cannot be stored"),
    ],
    ids=ascii,
)
async def test_text_is_refused_for_nul_and_lone_surrogates_alone_and_all_other_is_stored(
    conn: Conn, text: str, fault: str | None
) -> None:
    assert text_fault(text) == fault
    if fault is None:
        assert await fetchone(conn, "SELECT %s::text", text) == (text,)


def nested(levels: int, of: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = of(value)
    return value


def in_a_list(value: Any) -> Any:
    return [value]


def in_an_object(value: Any) -> Any:
    return {"a": value}


SOUND = [
    None,
    True,
    "",
    -(2**63),
    2**64 - 1,
    5e-324,
    -1.7976931348623157e308,
    [],
    {},
    {"": [{}, (), [None]]},
    {"a/b": {"~": "é"}},
    nested(MAX_DEPTH, in_a_list),
    nested(MAX_DEPTH, in_an_object),
]


@pytest.mark.parametrize("value", SOUND, ids=lambda value: ascii(value)[:20])
async def test_what_is_sound_is_stored_and_comes_back(conn: Conn, value: Any) -> None:
    assert list(json_faults(value)) == []
    (stored,) = await fetchone(conn, "SELECT (%s)::text", Jsonb(value, orjson.dumps))
    assert orjson.loads(stored) == orjson.loads(orjson.dumps(value))


NUL = "U+0000 cannot be stored"
FAULTS = [
    pytest.param(2**64, "", "an integer beyond 64 bits", id="above an unsigned 64 bits"),
    pytest.param(-(2**63) - 1, "", "an integer beyond 64 bits", id="below a signed 64 bits"),
    pytest.param({"a": [0, math.nan]}, "/a/1", "not a finite number", id="NaN"),
    pytest.param([math.inf], "/0", "not a finite number", id="Infinity"),
    pytest.param([[-math.inf]], "/0/0", "not a finite number", id="-Infinity"),
    pytest.param({"a": "\0"}, "/a", NUL, id="NUL in text"),
    pytest.param([1, "\udc00"], "/1", "U+DC00 cannot be stored", id="a lone surrogate in text"),
    pytest.param({"a": {1: 2}}, "/a", "a member's name is not a string", id="a number as a name"),
    pytest.param({None: 2}, "", "a member's name is not a string", id="null as a name"),
    pytest.param({"a": [{"b\0": 1}]}, "/a/0", f"a member's name: {NUL}", id="NUL in a name"),
    pytest.param({"\ud800": 1}, "", "a member's name: U+D800 cannot be stored", id="a surrogate in a name"),
    pytest.param({"": {"": "\0"}}, "//", NUL, id="empty names are steps"),
    pytest.param({"a/b": {"c~d": "\0"}}, "/a~1b/c~0d", NUL, id="steps are escaped"),
    pytest.param({"~1": "\0"}, "/~01", NUL, id="what looks escaped is escaped again"),
    pytest.param({"a%20 ^": {'"\\': "\0"}}, '/a%20 ^/"\\', NUL, id="nothing else is escaped"),
    pytest.param([(1, "\0")], "/0/1", NUL, id="in a tuple"),
    pytest.param({"a": {1, 2}}, "/a", "set is not JSON", id="a set"),
    pytest.param([b"x"], "/0", "bytes is not JSON", id="bytes"),
    pytest.param([Decimal(1)], "/0", "Decimal is not JSON", id="a Decimal"),
    pytest.param([datetime.now(UTC)], "/0", "datetime is not JSON", id="a time"),
    pytest.param([UUID(int=1)], "/0", "UUID is not JSON", id="an id"),
    pytest.param(object(), "", "object is not JSON", id="an object"),
]


@pytest.mark.parametrize(("value", "pointer", "detail"), FAULTS)
def test_each_fault_is_reported_with_its_place(value: Any, pointer: str, detail: str) -> None:
    assert list(json_faults(value)) == [Problem(pointer, detail)]
    assert list(json_faults(value, "/metadata")) == [Problem("/metadata" + pointer, detail)]


def test_every_fault_of_a_value_is_reported_in_its_order() -> None:
    value = {"a": [math.nan, {"b": "\0"}, 1], "c\0": 1, "d": 2**64, "e": "fine"}
    assert [problem.pointer for problem in json_faults(value)] == ["/a/0", "/a/1/b", "", "/d"]


@pytest.mark.parametrize(("of", "step"), [(in_a_list, "/0"), (in_an_object, "/a")], ids=["lists", "objects"])
def test_a_value_holds_64_levels_and_the_one_beyond_is_reported_once(
    of: Callable[[Any], Any], step: str
) -> None:
    assert list(json_faults(nested(MAX_DEPTH, of))) == []
    assert not too_deep(orjson.dumps(nested(MAX_DEPTH, of)))
    assert list(json_faults(nested(MAX_DEPTH + 1, of))) == [
        Problem(step * MAX_DEPTH, f"nested deeper than {MAX_DEPTH}")
    ]
    assert too_deep(orjson.dumps(nested(MAX_DEPTH + 1, of)))


def test_depth_that_would_exhaust_recursion_is_reported_and_what_stands_beside_it_is_still_checked() -> None:
    value = [nested(100_000, in_a_list), "\0"]
    assert [problem.detail for problem in json_faults(value)] == [f"nested deeper than {MAX_DEPTH}", NUL]


def test_a_value_that_holds_itself_is_nested_too_deep() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    [problem] = json_faults(cycle)
    assert problem.detail == f"nested deeper than {MAX_DEPTH}"


class Endless(list[Any]):
    """Walked further than wanted, it fails."""

    def __iter__(self) -> Any:
        yield from islice(iter(lambda: "\0", None), MAX_PROBLEMS)
        raise AssertionError


def test_no_more_faults_are_looked_for_than_are_reported() -> None:
    assert len(list(json_faults(["\0"] * (MAX_PROBLEMS - 1)))) == MAX_PROBLEMS - 1
    assert [problem.pointer for problem in json_faults(Endless([1]))] == [
        f"/{n}" for n in range(MAX_PROBLEMS)
    ]


@pytest.mark.parametrize(
    ("name", "step"), [("", ""), ("a", "a"), ("/", "~1"), ("~", "~0"), ("~1/~0", "~01~1~00")]
)
def test_a_step_of_a_pointer_is_escaped_as_rfc_6901_says(name: str, step: str) -> None:
    assert escape(name) == step
    assert step.replace("~1", "/").replace("~0", "~") == name


@pytest.mark.parametrize("value", ["1", "", True, False])
def test_neither_text_nor_a_truth_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="not an integer"):
        whole(value)


@pytest.mark.parametrize("value", [1, 2.0, 1.5, None, [1]])
def test_everything_else_is_left_to_the_model(value: Any) -> None:
    assert whole(value) is value


@pytest.mark.parametrize(
    ("value", "deep"),
    [
        ([[]] * 1000, False),
        (["]" * 100, "[" * 100, '"[' * 100, "\\"] * 100, False),
        ([{"a": [{"[": "]"}] * 100}], False),
        (["][", nested(MAX_DEPTH, in_a_list)], True),
        ({'"': nested(MAX_DEPTH - 1, in_an_object), "b": "]}" * 100}, False),
        ({'"': nested(MAX_DEPTH, in_an_object), "b": "]}" * 100}, True),
    ],
)
def test_brackets_side_by_side_or_in_text_are_no_depth(value: Any, deep: bool) -> None:
    assert too_deep(orjson.dumps(value)) is deep


@pytest.mark.parametrize("number", [1e16, 1e19, 1e20, -1e20, 1e23, 1e100, 1.5e300, 1.7976931348623157e308])
def test_a_double_in_full_digits_is_that_double_and_its_neighbours_are_refused(number: float) -> None:
    whole_number = int(Decimal(repr(number)))
    assert list(json_faults({"a": whole_number})) == []
    assert orjson.loads(json_bytes({"a": [whole_number]})) == {"a": [number]}
    if abs(number) > 2**64:
        assert [each.detail for each in json_faults([whole_number + 1])] == ["an integer beyond 64 bits"]


@pytest.mark.parametrize(
    "number", [10**309, -(10**400), 2**64 + 1, int(1e23), 1 << 20_000], ids=lambda n: f"{n.bit_length()} bits"
)
def test_an_integer_that_is_no_double_in_full_digits_is_refused(number: int) -> None:
    assert [each.detail for each in json_faults([number])] == ["an integer beyond 64 bits"]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"a": "1e308", "b\\": '"1e5', "c": [1, True, None]},
        [1e308, -1e308, 5e-324, 1e16, 1.5e-10, 1.25e17, 0.1, 1e-7],
        {"1e20": [1e20, "\\"], "é": 2**64 - 1},
    ],
)
async def test_the_size_is_that_in_the_database_but_for_its_spaces(conn: Conn, value: Any) -> None:
    (stored,) = await fetchone(conn, "SELECT (%s::jsonb)::text", orjson.dumps(value).decode())
    assert stored_size(orjson.dumps(value)) == len(stored.replace(": ", ":").replace(", ", ",").encode())


@pytest.mark.parametrize(
    "text", ["1_0", " 10", "10 ", "10\n", "+10", "1e1", "٣", "", "-", "0x10", "inf", "nan"]
)
def test_a_number_in_text_is_digits_alone(text: str) -> None:
    with pytest.raises(ValueError, match="not an integer"):
        digits(text)
    with pytest.raises(ValueError, match="not a number"):
        decimal(text)
    assert digits("010") == decimal("010") == "010"
    assert digits(5) == 5
    assert decimal("-1.5") == "-1.5"
    with pytest.raises(ValueError, match="not an integer"):
        digits("10.0")
