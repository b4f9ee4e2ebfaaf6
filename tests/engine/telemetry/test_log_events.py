"""Every event that the sources log is described, with its level and its fields; and no other is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ops.harness.process import ROOT

SOURCES = ("engine", "relay", "worker", "web", "migrations", "ops/cli", "ops/local")
CATALOGUE = ROOT / "ops" / "logs.md"
LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
VARYING = frozenset({"log", "log_at"})
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
ROW = re.compile(r"\| `([a-z_.]+)` \| ([^|]*) \| ([^|]*) \| ([^|]+) \|")


class Logged(NamedTuple):
    """A call that logs: its event, its level where the source says it, its fields."""

    where: str
    event: str
    level: str | None
    fields: frozenset[str]


def calls() -> Iterator[Logged]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield from logged(node, f"{path.relative_to(ROOT)}:{node.lineno}")


def logged(call: ast.Call, where: str) -> Iterator[Logged]:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in LEVELS | VARYING:
        return
    for argument in call.args[:2]:
        event = getattr(argument, "value", None)
        if isinstance(event, str) and EVENT.fullmatch(event):
            fields = frozenset(each.arg for each in call.keywords if each.arg)
            yield Logged(where, event, name if name in LEVELS else None, fields)


def described() -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """The levels and fields of each event in the catalogue."""
    rows = ROW.findall(CATALOGUE.read_text())
    found = {event: (words(levels), words(fields)) for event, levels, fields, _ in rows}
    assert len(found) == len(rows), "an event is described twice"
    return found


def words(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", cell))


KNOWN = described()
CALLS = list(calls())


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.event} {call.where}")
def test_what_is_logged_is_described(call: Logged) -> None:
    assert call.event in KNOWN
    levels, fields = KNOWN[call.event]
    assert call.level is None or call.level in levels
    assert call.fields <= fields


def test_what_is_described_is_logged() -> None:
    assert KNOWN.keys() == {call.event for call in CALLS}
    assert len(CALLS) >= 40
    for event, (levels, _) in KNOWN.items():
        assert levels
        assert levels <= LEVELS, event


def test_nothing_is_logged_at_info_that_happens_again_and_again_by_itself() -> None:
    info = {call.event for call in CALLS if call.level == "info"}
    noisy = ("heartbeat.", "claim.", "publish.", "maintenance.")
    assert {event for event in info if event.startswith(noisy)} == {
        "claim.recovered",
        "heartbeat.recovered",
        "maintenance.recovered",
    }
