"""The kinds of panels. `queries` maps each legend to its PromQL; `alerts` names those whose runbooks are linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS: Final = "${runbooks}"

SECONDS: Final = units.Seconds
PER_SECOND: Final = units.OpsPerSecond
SHARE: Final = units.PercentUnit
BYTES: Final = units.BytesIEC
COUNT: Final = units.Short

Panel = timeseries.Panel | stat.Panel
PanelT = TypeVar("PanelT", timeseries.Panel, stat.Panel)
Limits = Sequence[tuple[float, str]]
Queries = Mapping[str, str]


def above(warning: float, bad: float) -> Limits:
    return [(0, "green"), (warning, "orange"), (bad, "red")]


def below(bad: float) -> Limits:
    return [(0, "red"), (bad, "green")]


NONE_AT_ALL: Final[Limits] = [(0, "green"), (1, "red")]
"""A value of 1 is already bad."""


def graph(
    title: str,
    description: str,
    queries: Queries,
    *,
    unit: str = COUNT,
    limits: Limits = (),
    alerts: Sequence[str] = (),
    stacked: bool = False,
) -> Panel:
    """Lines over time. The limits are dashed lines."""
    panel = timeseries.Panel().unit(unit).min(0).fill_opacity(10).show_points(VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    )
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    if limits:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds(limits)).thresholds_style(style)
    return _finished(panel, title, description, queries, alerts)


def number(
    title: str,
    description: str,
    queries: Queries,
    *,
    unit: str = COUNT,
    limits: Limits = (),
    alerts: Sequence[str] = (),
) -> Panel:
    """The latest values in large type, in the colour of the limit that they exceed."""
    panel = stat.Panel().unit(unit).graph_mode(BigValueGraphMode.AREA).text_mode(BigValueTextMode.AUTO)
    panel.color_mode(BigValueColorMode.VALUE).thresholds(_thresholds(limits or [(0, "blue")]))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return _finished(panel, title, description, queries, alerts)


def _finished(panel: PanelT, title: str, description: str, queries: Queries, alerts: Sequence[str]) -> PanelT:
    for ref, (legend, query) in zip(ascii_uppercase, queries.items(), strict=False):
        panel.with_target(
            prometheus.Dataquery().expr(query).legend_format(legend).ref_id(ref).datasource(SOURCE).range()
        )
    return panel.title(title).description(description).datasource(SOURCE).links(_runbooks(alerts))


def _thresholds(limits: Limits) -> dashboard.ThresholdsConfig:
    # The first step holds from minus infinity, which Grafana writes as null.
    steps = [Threshold(value if i else None, color) for i, (value, color) in enumerate(limits)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def _runbooks(alerts: Sequence[str]) -> list[Builder[models.DashboardLink]]:
    return [
        dashboard.DashboardLink(f"Runbook: {alert}").url(f"{RUNBOOKS}#{alert.lower()}").target_blank(True)
        for alert in alerts
    ]
