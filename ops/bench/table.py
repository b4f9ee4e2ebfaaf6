"""Prints figures as tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from ops.bench.figures import Row, number

WIDE: Final = 130
"""Width in columns if standard output is not a terminal."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", min_width=58)
    for heading in ("median", "lowest", "highest", "", "goal", ""):
        table.add_column(heading, justify="right")
    for row in rows:
        spread = (number(min(row.samples)), number(max(row.samples))) if len(row.samples) > 1 else ("", "")
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        table.add_row(row.name, number(row.median), *spread, row.unit, row.goal, verdict)
    console.print(table)
    console.print()
