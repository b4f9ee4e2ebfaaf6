"""A shortened rule differs from its original in times alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.observability.rules import FILES, promtool
from tests.system.observability.shorten import shortened


def shape(rule: dict[str, Any]) -> dict[str, Any]:
    """With its times left out; limits that are no times stay."""
    expr = re.sub(r"\[\d+[smhd]\]", "[]", rule["expr"])
    return rule | {"expr": re.sub(r"(_seconds\)* >) \d+", r"\1", expr), "for": "for" in rule}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_only_times_differ(file: Path) -> None:
    original = yaml.safe_load(file.read_text())
    copy = shortened(original, 10)
    assert [each["name"] for each in copy["groups"]] == [each["name"] for each in original["groups"]]
    for given, made in zip(original["groups"], copy["groups"], strict=True):
        assert [shape(rule) for rule in made["rules"]] == [shape(rule) for rule in given["rules"]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_prometheus_takes_what_is_shortened(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / file.name
    copy.write_text(yaml.safe_dump(shortened(yaml.safe_load(file.read_text()), 10)))
    assert "SUCCESS" in promtool("check", "rules", str(copy))


def test_windows_waits_and_limits_are_divided_and_counts_are_not() -> None:
    rule = {
        "alert": "Late",
        "expr": "time() - max(outrider_a_timestamp_seconds) > 120 and rate(outrider_b_total[2m]) > 14.4",
        "for": "1m",
    }
    [group] = shortened({"groups": [{"name": "g", "rules": [rule]}]}, 10)["groups"]
    assert group["rules"] == [
        {
            "alert": "Late",
            "expr": "time() - max(outrider_a_timestamp_seconds) > 12 and rate(outrider_b_total[12s]) > 14.4",
            "for": "6s",
        }
    ]


def test_no_window_gets_too_short_for_a_rate() -> None:
    [group] = shortened({"groups": [{"name": "g", "rules": [{"expr": "rate(a[2m])"}]}]}, 600)["groups"]
    assert group["rules"] == [{"expr": "rate(a[3s])"}]
