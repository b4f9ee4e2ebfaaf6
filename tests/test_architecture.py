"""ARCHITECTURE.md names what is there, and each module stands where its users are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import engine
from ops.harness.process import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = ("engine", "web", "relay", "worker", "migrations", "ops")
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE)))
PATHS = sorted(
    path
    for path in set(re.findall(r"`([\w./-]+)`", PAGE))
    if "/" in path and not path.startswith("/") and path != "web/ui/"
)

BY_KIND = (
    "engine.moves",
    "engine.queries",
    "engine.tables",
    "ops.cli",
    "ops.harness",
    "relay.maintenance",
    "web.api",
    "web.wire",
)
"""Rooms whose files stand together for what they are, one a move, a table, a resource or a command."""


@pytest.mark.parametrize("path", LINKS + PATHS)
def test_each_path_of_the_page_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_page_is_short_and_names_every_room() -> None:
    assert len(PAGE.splitlines()) <= 250
    rooms = [
        folder.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for folder in (ROOT / package, *(ROOT / package).iterdir())
        if (folder / "__init__.py").exists()
    ]
    missing = [room for room in rooms if room.partition("/")[0] not in PAGE or Path(room).name not in PAGE]
    assert missing == []


def test_every_move_has_a_row() -> None:
    moves = {path.name for path in (ROOT / "engine" / "moves").glob("[a-z]*.py")}
    assert {move for move in moves if f"engine/moves/{move}" in PAGE} | {"validation.py"} == moves


def test_a_module_with_one_user_is_inside_that_users_folder() -> None:
    assert list(misplaced()) == []


def misplaced() -> Iterator[str]:
    """Modules that only one other room uses, and nobody in their own."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for module in sorted(graph.modules - {*PACKAGES}):
        if module.endswith("__main__"):
            continue
        room = module.rpartition(".")[0]
        users = graph.find_modules_that_directly_import(module)
        users -= {user for user in users if user == module or user.startswith(f"{module}.")}
        elsewhere = {user for user in users if user != room and not user.startswith(f"{room}.")}
        rooms = {".".join(user.split(".")[:2]) for user in elsewhere}
        if len(rooms) == 1 and elsewhere == users and not module.startswith(BY_KIND):
            yield f"{module} is used by {rooms.pop()} alone"


def test_the_public_api_is_documented() -> None:
    for name in engine.__all__:
        assert getattr(engine, name).__doc__, name
