"""The rules hold together: they parse, name what there is, and every alert is seen to fire and to stay quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.observability.catalogue import faults
from tests.system.observability.rules import ALERTS, FILES, RULES, Rule, cases, known, promtool

SEVERITIES = {"page", "ticket"}


def test_prometheus_takes_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", *map(str, FILES))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_what_is_scraped_or_recorded(rule: Rule) -> None:
    assert faults(rule["expr"], known()) == []


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_urgent_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"ops/runbooks.md#{alert.lower()}"
    assert "{{" not in rule["annotations"]["summary"]


def test_every_alert_is_seen_to_fire_and_to_stay_quiet() -> None:
    assert cases().keys() == ALERTS.keys()
    for alert, found in cases().items():
        assert any("fires" in case for case in found), alert
        assert any("quiet" in case for case in found), alert


def test_the_cases_are_made_of_series_that_are_scraped() -> None:
    wrong = [
        faults(series, known()) for found in cases().values() for case in found for series in case["series"]
    ]
    assert [fault for fault in wrong if fault] == []


def test_no_case_has_a_hexadecimal_number_where_it_means_a_row_of_zeros() -> None:
    values = [values for found in cases().values() for case in found for values in case["series"].values()]
    assert [each for each in values if any(part.startswith("0x") for part in str(each).split())] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    document = {
        "rule_files": [str(file) for file in FILES],
        "evaluation_interval": "1m",
        "tests": [promtool_test(alert, case) for case in cases()[alert]],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", str(file))


def promtool_test(alert: str, case: dict[str, Any]) -> dict[str, Any]:
    """The case as promtool has it: it wants all labels and annotations of the alert."""
    expected = []
    if "fires" in case:
        rule = ALERTS[alert]
        annotations = rule["annotations"] | {"description": case["fires"]}
        expected = [{"exp_labels": rule["labels"] | case.get("labels", {}), "exp_annotations": annotations}]
    return {
        "name": case.get("quiet", "fires"),
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case["series"].items()],
        "alert_rule_test": [{"eval_time": case["at"], "alertname": alert, "exp_alerts": expected}],
    }
