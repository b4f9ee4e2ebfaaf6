"""What commands print: tables for people and JSON for programs on standard output, the rest on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

WIDE = 240
"""Columns where standard output is no terminal: room enough that no id is cut."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def echo(text: str) -> None:
    """A line of text, as it is: never wrapped, never styled."""
    print(text, flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """One JSON document; times, ids and enumerations in it as text."""
    echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing") -> None:
    """A table, or the line `empty`. Cells may hold what users sent: it is neither mark-up nor control codes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in shown.columns:
        column.overflow = "fold"
    for row in rows:
        shown.add_row(*(Text(cell(value)) for value in row))
    if not shown.row_count:
        echo(empty)
        return
    Console(width=None if sys.stdout.isatty() else WIDE).print(shown)


def cell(value: Any) -> str:
    """`value` as one printable line."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return "".join(char if char.isprintable() else "·" for char in str(value))


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)
