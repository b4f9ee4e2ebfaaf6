"""Checks of text and JSON on entry, so that PostgreSQL can store every value and return it unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from engine.errors import Problem

MAX_DEPTH = 64
MAX_PROBLEMS = 20
"""The most faults reported for one input: a hostile input has millions. Further faults show at the next try."""
INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1
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
                if len(steps) > MAX_DEPTH:
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


def whole(value: Any) -> Any:
    """For `BeforeValidator` on a lax integer: accepts 2.0, an integer in JSON, but neither text nor booleans."""
    if isinstance(value, str | bool):
        raise ValueError("not an integer")  # noqa: TRY004 - pydantic reports ValueErrors only
    return value


def escape(name: str) -> str:
    """One step of a JSON pointer (RFC 6901 §3)."""
    return name.replace("~", "~0").replace("/", "~1")


def _pointer(steps: Sequence[Any]) -> str:
    """The JSON pointer of `steps`. The first step is a pointer already."""
    return "/".join([steps[0], *(escape(str(step)) for step in steps[1:])])


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
            return None if INT64_MIN <= item <= UINT64_MAX else "an integer beyond 64 bits"
        case float():
            return None if math.isfinite(item) else "not a finite number"
        case _:
            return f"{type(item).__name__} is not JSON"
