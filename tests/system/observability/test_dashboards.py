"""The committed dashboards are what their code makes, and ask only for what there is."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from ops.grafana.__main__ import BOARDS, FOLDER
from ops.grafana.board import PAGES, WIDTH, render
from ops.grafana.empty import EMPTY, reason
from ops.grafana.queries import Query, queries
from tests.system.observability.catalogue import faults
from tests.system.observability.rules import ALERTS, known

QUERIES: Final = list(queries())
RUNBOOKS: Final = "${runbooks}#"


def panels(name: str) -> list[dict[str, Any]]:
    document = json.loads((FOLDER / name).read_text())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_committed_dashboard_is_what_its_code_makes(name: str) -> None:
    assert (FOLDER / name).read_bytes() == render(BOARDS[name]).encode(), "run python -m ops.grafana"


def test_no_other_dashboard_lies_about() -> None:
    assert {file.name for file in FOLDER.glob("*.json")} == BOARDS.keys()


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.board}-{query.panel}")
def test_a_query_parses_and_names_what_is_scraped_or_recorded(query: Query) -> None:
    assert faults(query.expr, known()) == []


def test_the_annotation_is_a_query_too() -> None:
    assert faults(PAGES, known()) == []


@pytest.mark.parametrize("query", ["rate(outrider_attempts[2m])", "outrider_outbox_rows{state='ready'}",
                                   "sum by (preset) (outrider_heartbeats_total)",
                                   "outrider_job_wait_seconds_bucket{le='30'}",
                                   "outrider_outbox_rows{status='redy'}"])  # fmt: skip
def test_a_query_for_what_there_is_not_is_found(query: str) -> None:
    assert faults(query, known()) != []


@pytest.mark.parametrize("name", BOARDS)
def test_a_panel_explains_itself_and_takes_its_data_from_the_chosen_source(name: str) -> None:
    for panel in panels(name):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("name", BOARDS)
def test_panels_stand_side_by_side(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(name):
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < WIDTH
        assert not taken & cells
        taken |= cells


def test_every_alert_is_linked_from_a_panel_and_every_link_leads_to_an_alert() -> None:
    links = [link["url"] for name in BOARDS for panel in panels(name) for link in panel.get("links", [])]
    assert {link.removeprefix(RUNBOOKS) for link in links} == {alert.lower() for alert in ALERTS}


def test_what_may_be_empty_is_asked_for() -> None:
    used = {name for name in EMPTY for query in QUERIES if name in query.expr}
    assert used == EMPTY.keys()
    assert reason("sum(outrider_build_info)") is None
    assert (
        reason('sum by (le) (rate(outrider_publish_seconds_bucket{topic="a"}[2m]))') == "only in Pub/Sub mode"
    )


def test_the_default_installation_does_without_the_dashboards() -> None:
    """Grafana's library is a developer's: nothing outside this folder may import it."""
    root = FOLDER.parents[1]
    importers = [
        file.relative_to(root)
        for part in ("engine", "web", "relay", "worker", "migrations", "ops")
        for file in (root / part).rglob("*.py")
        if "grafana" in file.read_text() and FOLDER not in file.parents
    ]
    assert importers == []
