"""Writes the JSON of every dashboard, for import or provisioning in Grafana."""

from __future__ import annotations

from pathlib import Path

from ops.grafana import api, overview, postgres, relay, workers
from ops.grafana.board import render

FOLDER = Path(__file__).parent
BOARDS = {
    "overview.json": overview.BOARD,
    "relay.json": relay.BOARD,
    "workers.json": workers.BOARD,
    "postgres.json": postgres.BOARD,
    "api.json": api.BOARD,
}


def main() -> None:
    for name, board in BOARDS.items():
        (FOLDER / name).write_text(render(board))


if __name__ == "__main__":
    main()
