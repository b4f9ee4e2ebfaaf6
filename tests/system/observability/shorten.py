"""The rules of ops/prometheus at a pace that a run of minutes can see: every time in them divided, every shape kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LEAST_SECONDS: Final = 3
"""A rate needs two scrapes, which come once a second."""


def shortened(document: Mapping[str, Any], by: int) -> dict[str, Any]:
    """A rule file with windows, `for` and limits in seconds divided; what rules record keeps its name."""
    return {
        "groups": [
            group | {"rules": [_rule(rule, by) for rule in group["rules"]]} for group in document["groups"]
        ]
    }


def _rule(rule: Mapping[str, Any], by: int) -> dict[str, Any]:
    expr = re.sub(r"(?<=\[)\d+[smhd](?=\])", lambda found: _divided(found[0], by), rule["expr"])
    expr = re.sub(r"(_seconds\)* > )(\d+)", lambda found: found[1] + str(int(found[2]) // by), expr)
    return {**rule, "expr": expr} | ({"for": _divided(rule["for"], by)} if "for" in rule else {})


def _divided(duration: str, by: int) -> str:
    return f"{max(LEAST_SECONDS, seconds(duration) // by)}s"


def seconds(duration: str) -> int:
    """Of Prometheus' `90s`, `2m`, `3h` or `1d`."""
    return int(duration[:-1]) * UNITS[duration[-1]]
