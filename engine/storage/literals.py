"""PostgreSQL array literals. One literal for each column is the cheapest way to send a batch of rows."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID


def array(values: Iterable[object]) -> str:
    """An array literal of any values. None becomes NULL."""
    return "{" + ",".join(["NULL" if v is None else _quoted(str(v)) for v in values]) + "}"


def bare_array(values: Iterable[object]) -> str:
    """An array literal of values whose text needs no quotes: numbers and ids."""
    return "{" + ",".join(map(str, values)) + "}"


def uuid_array(values: Iterable[UUID]) -> str:
    """An array literal of ids. PostgreSQL reads them without hyphens, and Python writes them so in half the time."""
    return "{" + ",".join([value.hex for value in values]) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
