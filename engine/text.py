"""What PostgreSQL and JSON can hold: checks made at the door, so that nothing stored is unreadable later."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from engine.errors import Problem

MAX_DEPTH = 64
INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def text_fault(text: str) -> str | None:
    """Why `text` cannot be stored, or None: NUL has no place in PostgreSQL, a lone surrogate none in UTF-8."""
    if found := UNSTORABLE.search(text):
        return f"U+{ord(found[0]):04X} cannot be stored"
    return None


def json_faults(value: Any, pointer: str = "") -> Iterator[Problem]:
    """Everything in a parsed JSON value that could not be stored and read back as it is.

    Iterative: a value nested deeply enough to be refused would also exhaust a recursive check.
    """
    stack: list[tuple[Any, str, int]] = [(value, pointer, 0)]
    while stack:
        item, where, depth = stack.pop()
        if depth > MAX_DEPTH:
            yield Problem(where, f"nested deeper than {MAX_DEPTH}")
        elif isinstance(item, dict):
            for name, member in item.items():
                if not isinstance(name, str):
                    yield Problem(where, "a member's name is not a string")
                elif fault := text_fault(name):
                    yield Problem(where, f"a member's name: {fault}")
                else:
                    stack.append((member, f"{where}/{escape(name)}", depth + 1))
        elif isinstance(item, list | tuple):
            stack.extend((member, f"{where}/{index}", depth + 1) for index, member in enumerate(item))
        elif fault := _scalar_fault(item):
            yield Problem(where, fault)


def whole(value: Any) -> Any:
    """For `BeforeValidator` at a lax integer: takes 2.0, which is an integer in JSON, but neither text nor true."""
    if isinstance(value, str | bool):
        raise ValueError("not an integer")  # noqa: TRY004 - pydantic makes findings of ValueErrors only
    return value


def escape(name: str) -> str:
    """One step of a JSON pointer (RFC 6901 §3)."""
    return name.replace("~", "~0").replace("/", "~1")


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
