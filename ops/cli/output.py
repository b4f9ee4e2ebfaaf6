"""Output of the commands: tables for people and JSON for programs. Other messages go to standard error."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

WIDE = 240
"""Width in columns if standard output is not a terminal: wide enough that no id is cut."""
LONG = 400
"""Most characters of a cell. --json prints longer values in full."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def echo(text: str) -> None:
    """Print a line of text unchanged: not wrapped, not styled."""
    print(text, flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def replace_unencodable() -> None:
    """Let the output streams escape what their encoding lacks: users' texts must not stop a command.

    A terminal may be Latin-1 or ASCII, and UTF-8 has no lone surrogates, as arguments that are no text give them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_json(value: Any) -> None:
    """Print one JSON document. Times, ids and enumerations become text."""
    # The escapes of a stream are no JSON, those of the document are.
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name
    echo(json.dumps(value, indent=2, ensure_ascii=encoding != "utf-8", default=_plain))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print a table, or the line `empty` if there are no rows."""
    filled = list(rows)
    if filled:
        _grid(filled, columns)
    else:
        echo(empty)


def card(fields: Mapping[str, Any]) -> None:
    """Print one record with one field a line. Fields that are None are left out."""
    _grid([(name, value) for name, value in fields.items() if value is not None])


def span(seconds: float) -> str:
    """A duration by its two largest units: 35 s, 4 min 10 s, 3 d 4 h."""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0 s"


def cell(value: Any) -> str:
    """`value` as one printable line of limited length. Mark-up and control codes in users' text have no effect."""
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case dict() | list():
            return cell(json.dumps(value, ensure_ascii=False, default=_plain))
    text = "".join(char if char.isprintable() else "·" for char in str(value)[: LONG + 1])
    return text if len(text) <= LONG else text[:LONG] + "…"


def _grid(rows: Iterable[Sequence[Any]], columns: Sequence[str] = ()) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, show_header=bool(columns), header_style="bold")
    for row in rows:
        shown.add_row(*(Text(cell(value), overflow="fold") for value in row))
    Console(width=None if sys.stdout.isatty() else WIDE).print(shown)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(value)
