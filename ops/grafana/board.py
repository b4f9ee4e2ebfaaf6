"""A dashboard: rows of panels, with the variables and links of all dashboards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType

from ops.grafana.panels import SOURCE, Panel

TAG: Final = "outrider"
WIDTH: Final = 24
PAGES: Final = 'ALERTS{alertname=~"Outrider.+", alertstate="firing", severity="page"}'


@dataclass(frozen=True, slots=True)
class Row:
    """The panels of a row share the width. `height` is in Grafana's units of 30 pixels."""

    title: str
    panels: Sequence[Panel]
    height: int = 8


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    description: str
    rows: Sequence[Row]


def render(board: Board) -> str:
    """The JSON that Grafana imports."""
    return json.dumps(_built(board).build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _built(board: Board) -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables([_datasource(), _runbooks()])
        .link(
            dashboard.DashboardLink("Outrider").type(DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
        )
        .annotation(_pages())
    )
    ids = iter(range(1, 1000))
    for row in board.rows:
        made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            made.with_panel(panel.id(next(ids)).height(row.height).span(WIDTH // len(row.panels)))
    return made


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _runbooks() -> dashboard.TextBoxVariable:
    return (
        dashboard.TextBoxVariable("runbooks")
        .label("Address of ops/runbooks.md")
        .default_value("ops/runbooks.md")
    )


def _pages() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Pages")
        .datasource(SOURCE)
        .expr(PAGES)
        .icon_color("red")
        .enable(True)
    )
