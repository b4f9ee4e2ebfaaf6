"""Checks of text and JSON on entry, so that PostgreSQL can store every value and return it unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

import orjson

from engine.errors import Problem

MAX_DEPTH = 64
"""The most arrays and objects that are inside one another, the outermost included."""
MAX_PROBLEMS = 20
"""The most faults reported for one input: a hostile input has millions. Further faults show at the next try."""
INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1
STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
STRINGS = re.compile(STRING)
EXPONENT = re.compile(rb"\de[+-]?\d")
EXPONENTIAL = re.compile(STRING + rb"|(-?\d[\d.]*e[+-]?\d+)")
"""A text, or a number with an exponent, which is the group."""
DIGITS = re.compile("-?[0-9]+")
DECIMAL = re.compile("-?[0-9]+([.][0-9]+)?")
SQUARE = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def text_fault(text: str) -> str | None:
    """Why `text` cannot be stored, or None. PostgreSQL stores no NUL, and UTF-8 has no lone surrogates."""
    if found := UNSTORABLE.search(text):
        return f"U+{ord(found[0]):04X} cannot be stored"
    return None


def json_faults(value: Any, pointer: str = "") -> Iterator[Problem]:
    """What in a parsed JSON value could not be stored and read back unchanged: the first MAX_PROBLEMS faults."""
    return islice(_json_faults(value, pointer), MAX_PROBLEMS)


def _json_faults(value: Any, pointer: str) -> Iterator[Problem]:
    # Iterative, because a value that is nested too deeply would also exhaust a recursive check.
    # `walks` has one iterator for each open container, `steps` the path there. A pointer is built only for a fault.
    walks: list[tuple[bool, Iterator[tuple[Any, Any]]]] = [(False, iter([(pointer, value)]))]
    steps: list[Any] = []
    while walks:
        named, walk = walks[-1]
        for step, member in walk:
            if named and (fault := _name_fault(step)):
                yield Problem(_pointer(steps), fault)
            elif isinstance(member, dict | list | tuple):
                if len(steps) >= MAX_DEPTH:
                    yield Problem(_pointer([*steps, step]), f"nested deeper than {MAX_DEPTH}")
                    continue
                steps.append(step)
                by_name = isinstance(member, dict)
                walks.append(
                    (by_name, iter(member.items() if isinstance(member, dict) else enumerate(member)))
                )
                break
            elif fault := _scalar_fault(member):
                yield Problem(_pointer([*steps, step]), fault)
        else:
            walks.pop()
            del steps[-1:]


def double_of(number: int) -> float | None:
    """The double that `number` is in full digits, or None if a double cannot tell `number` from its neighbours.

    PostgreSQL, JavaScript and Go write 1e20 as 100000000000000000000.
    """
    try:
        double = float(number)
    except OverflowError:
        return None
    return double if Decimal(repr(double)) == number else None


def json_bytes(value: Any) -> bytes:
    """The JSON of a value without `json_faults`. An integer beyond 64 bits is written as the double that it is.

    Raises orjson.JSONEncodeError for a value that orjson takes for no JSON, such as a named tuple.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return orjson.dumps(_with_doubles(value))


def stored_size(written: bytes) -> int:
    """Bytes of the JSON `written` by orjson as PostgreSQL writes it: no number has an exponent there.

    The spaces that PostgreSQL adds are left out.
    """
    if not EXPONENT.search(written):
        return len(written)
    numbers = [number for number in EXPONENTIAL.findall(written) if number]
    return len(written) + sum(len(f"{Decimal(number.decode()):f}") - len(number) for number in numbers)


def too_deep(written: bytes) -> bool:
    """Whether the JSON text `written` is nested deeper than MAX_DEPTH."""
    if written.count(b"[") + written.count(b"{") <= MAX_DEPTH:
        return False
    brackets = STRINGS.sub(b"", written).translate(SQUARE, NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        # Each round takes the innermost level away.
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def whole(value: Any) -> Any:
    """For `BeforeValidator` on a lax integer: accepts 2.0, an integer in JSON, but neither text nor booleans."""
    if isinstance(value, str | bool):
        raise ValueError("not an integer")  # noqa: TRY004 - pydantic reports ValueErrors only
    return value


def digits(value: Any) -> Any:
    """For `BeforeValidator` on an integer that is given as text: digits alone, not the `1_0` or ` 5` of Python."""
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise ValueError("not an integer in digits")
    return value


def decimal(value: Any) -> Any:
    """For `BeforeValidator` on a number that is given as text: decimal digits, with a point or none."""
    if isinstance(value, str) and not DECIMAL.fullmatch(value):
        raise ValueError("not a number in digits")
    return value


def escape(name: str) -> str:
    """One step of a JSON pointer (RFC 6901 §3)."""
    return name.replace("~", "~0").replace("/", "~1")


def _pointer(steps: Sequence[Any]) -> str:
    """The JSON pointer of `steps`. The first step is a pointer already."""
    return "/".join([steps[0], *(escape(str(step)) for step in steps[1:])])


def _fits(number: int) -> bool:
    return INT64_MIN <= number <= UINT64_MAX


def _with_doubles(value: Any) -> Any:
    match value:
        case dict():
            return {name: _with_doubles(member) for name, member in value.items()}
        case list() | tuple():
            return [_with_doubles(member) for member in value]
        case int() if not _fits(value):
            return double_of(value)
        case _:
            return value


def _name_fault(name: Any) -> str | None:
    if not isinstance(name, str):
        return "a member's name is not a string"
    return (fault := text_fault(name)) and f"a member's name: {fault}"


def _scalar_fault(item: Any) -> str | None:
    match item:
        case None | bool():
            return None
        case str():
            return text_fault(item)
        case int():
            return None if _fits(item) or double_of(item) is not None else "an integer beyond 64 bits"
        case float():
            return None if math.isfinite(item) else "not a finite number"
        case _:
            return f"{type(item).__name__} is not JSON"
