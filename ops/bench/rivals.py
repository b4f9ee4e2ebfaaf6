"""Outrider beside its rivals, where their benchmark lies beside this checkout: its README says what it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from engine.errors import ConfigurationError
from ops.bench.figures import Row
from ops.bench.plan import Plan
from ops.harness.postgres import Databases
from ops.harness.process import ROOT

TITLE = "Outrider and its rivals, on one PostgreSQL"
FOLDER: Final = ROOT.parent / "shared" / "bench"
SYSTEMS: Final = ("outrider", "graphile-worker", "sketch", "pg-boss", "pgqueuer", "oban", "procrastinate")
FIGURES: Final = (
    ("enqueue, 16 at once", "W1", "jobs_per_s", "/s"),
    ("enqueue, client", "W1", "client_cpu_us_per_job", "µs"),
    ("enqueue, server", "W1", "server_cpu_us_per_job", "µs"),
    ("enqueue, WAL", "W1", "wal_bytes_per_job", "B"),
    ("in a transaction of one's own, 16 at once", "W1tx", "jobs_per_s", "/s"),
    ("a thousand at a time", "W2", "jobs_per_s", "/s"),
    ("drain, 1 process", "W3", "jobs_per_s", "/s"),
    ("drain, worker", "W3", "client_cpu_us_per_job", "µs"),
    ("drain, server", "W3", "server_cpu_us_per_job", "µs"),
    ("drain, WAL", "W3", "wal_bytes_per_job", "B"),
    ("drain, 2 processes", "W3-2", "jobs_per_s", "/s"),
    ("pick-up, p50", "W4", "p50_ms", "ms"),
    ("pick-up, p99", "W4", "p99_ms", "ms"),
)
"""What is shown: its name, the workload, the field of its result, the unit."""


def run(_server: Databases, plan: Plan) -> Iterator[Row]:
    """Install the rivals if need be, and run each workload of each system `plan.repeat` times.

    Raises ConfigurationError if the benchmark is not there.
    """
    if not FOLDER.is_dir():
        raise ConfigurationError([f"the rivals' benchmark is not at {os.path.relpath(FOLDER)}"])
    samples: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for result in _results(plan):
        for _, workload, field, _ in FIGURES:
            if result["workload"] == workload and result.get(field) is not None:
                samples[result["system"], workload, field].append(result[field])
    for name, workload, field, unit in FIGURES:
        for system in SYSTEMS:
            if found := samples.get((system, workload, field)):
                yield Row(f"{name}: {system}", found, unit)


def _results(plan: Plan) -> Iterator[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        described, out = Path(folder, "outrider.json"), Path(folder, "results.jsonl")
        described.write_text(json.dumps({"outrider": description()}))
        environ = os.environ | {"PEERBENCH_EXTRA": str(described)}
        workloads = ",".join(dict.fromkeys(workload for _, workload, _, _ in FIGURES))
        subprocess.run([FOLDER / "setup.sh"], check=True, stdout=sys.stderr, env=environ)
        try:
            for _ in range(plan.repeat):
                # A system that fails has no figures, and the others have theirs.
                for system in SYSTEMS:
                    command = [FOLDER / "run_one.sh", system, "--workloads", workloads, "--out", out]
                    subprocess.run(
                        [*command, "--scale", str(plan.rival_scale)], stdout=sys.stderr, env=environ
                    )
        finally:
            subprocess.run([FOLDER / "pg.sh", "stop"], stdout=sys.stderr, env=environ)
        yield from map(json.loads, out.read_text().splitlines())


def description() -> dict[str, Any]:
    """What the benchmark must know of Outrider: see "Adding a system" in its README."""
    search_path = os.pathsep.join([str(ROOT), str(FOLDER / "adapters")])
    return {
        # Only this process: a rival may have packages of our packages' names.
        "cmd": ["env", f"PYTHONPATH={search_path}", sys.executable, "-m", "ops.bench.peer"],
        "total": "SELECT count(*) FROM jobs",
        "done": "SELECT count(*) FROM job_results WHERE state = 'COMPLETED'",
        "bad": "SELECT count(*) FROM job_results WHERE state <> 'COMPLETED'",
        "open": "SELECT 1 FROM outbox LIMIT 1",
        "keeps": True,
    }
