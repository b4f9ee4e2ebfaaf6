"""`python -m ops.bench [--quick] [--repeat N] [--json FILE] [section …]`"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from engine.errors import ConfigurationError
from engine.process.run import USAGE
from ops.bench.plan import FULL, QUICK, Plan
from ops.bench.processes import Checkout
from ops.bench.server import SETTINGS, bench_server
from ops.bench.table import console, show
from ops.harness.postgres import Databases

SECTIONS: Final[dict[str, str]] = {
    "submissions": "submissions",
    "calls": "calls",
    "web": "web_processes",
    "drain": "drain",
    "relay": "relay",
    "pickup": "pickup",
    "claim": "claim_cost",
    "held": "held_xmin",
    "overhead": "overhead",
    "children": "children",
}
"""The module of each section. It is imported only when needed: gRPC's hooks around a fork would swallow a Ctrl-C."""
BY_NAME: Final[dict[str, str]] = {"rivals": "rivals"}
"""Sections that take very long, and are left out unless they are named."""
ALL: Final = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table for each section. A missed goal does not change the exit code."""
    asked = _parser().parse_args(arguments)
    plan = QUICK if asked.quick else FULL
    if asked.repeat:
        plan = replace(plan, repeat=asked.repeat)
    if asked.against:
        plan = replace(plan, against=Checkout.at(asked.against))
    # SIGTERM acts like Ctrl-C: unwinding ends every process and the server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = measure(list(SECTIONS) if ALL in asked.sections else asked.sections, plan, console())
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except ConfigurationError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return USAGE
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0


def measure(sections: Sequence[str], plan: Plan, shown: Console) -> dict[str, Any]:
    """Run `sections` on a temporary server, print their tables and return their figures."""
    began = time.monotonic()
    figures: dict[str, list[dict[str, Any]]] = {}
    with bench_server() as server:
        report = {"machine": _machine(server), "server": SETTINGS, "sections": figures}
        shown.print("  ".join(f"{name} {value}" for name, value in report["machine"].items()) + "\n")
        for section in sections:
            module = import_module(f"ops.bench.{(SECTIONS | BY_NAME)[section]}")
            with shown.status(module.TITLE):
                rows = list(module.run(server, plan))
            show(shown, module.TITLE, rows)
            figures[section] = [row.as_dict() for row in rows]
    shown.print(f"{time.monotonic() - began:.0f} s; the load of the machine is {os.getloadavg()[0]:.1f}")
    return report


def _machine(server: Databases) -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "postgresql": server.version(),
        "fsync": SETTINGS["fsync"],
        "synchronous_commit": SETTINGS["synchronous_commit"],
    }


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench", description="Measure the engine on this machine."
    )
    parser.add_argument("--quick", action="store_true", help="measure less, and once: under a minute")
    parser.add_argument(
        "--repeat",
        type=_positive,
        metavar="N",
        help="measure each figure N times (default 3; with --quick 1)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="compare the CPU time of calls, drain and submissions with another clone, measured in turn",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "sections",
        nargs="*",
        choices=[*SECTIONS, *BY_NAME, ALL],
        default=ALL,
        help=f"default: all, which are all but {', '.join(BY_NAME)}",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
