"""Every query of the dashboards in this folder, as Prometheus takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ops.grafana.promql import WINDOW


class Query(NamedTuple):
    board: str
    panel: str
    expr: str


def queries(rate_interval: str = "2m") -> Iterator[Query]:
    """The queries of the committed JSON, with Grafana's rate interval filled in."""
    for file in sorted(Path(__file__).parent.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield Query(file.stem, panel["title"], target["expr"].replace(WINDOW, rate_interval))
