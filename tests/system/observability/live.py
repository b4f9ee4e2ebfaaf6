"""A real Prometheus over a real `outrider up --pubsub` under load: do dashboards show data, and do pages come?

`python -m tests.system.observability.live [--seconds 120] [--screenshots DIR]` prints what each query returns, breaks
one thing after the other, and prints when each page was pending and when it fired. Exit code 1 where one did not, or a
query is empty without a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from engine.pubsub.client import EMULATOR
from engine.settings import PREFIX
from ops.grafana.empty import reason
from ops.grafana.queries import Query, queries
from tests.support.commands import running
from tests.system.acceptance import outcome_pipelines as fates
from tests.system.observability import picture
from tests.system.observability.faults import INCIDENTS, Incident, RunningUp
from tests.system.observability.load import Load, under_load
from tests.system.observability.prometheus import Prometheus, deployed, open_prometheus
from tests.system.observability.rules import ALERTS
from tests.system.observability.shorten import shortened

PACE: Final = 10
"""By how much the rules are shortened for the incidents."""
RATE_INTERVAL: Final = "20s"
LEASE_SECONDS: Final = 5
INCIDENT_SECONDS: Final = 120.0
CALM_SECONDS: Final = 90.0
POLL_SECONDS: Final = 0.5
PAGES: Final = [alert for alert, rule in ALERTS.items() if rule["labels"]["severity"] == "page"]


class Shown(NamedTuple):
    """What a query of a dashboard returned, and why that may be nothing."""

    query: Query
    series: int
    excuse: str | None

    @property
    def good(self) -> bool:
        return self.series > 0 or self.excuse is not None


class Seen(NamedTuple):
    """When an alert was first seen, in seconds since its fault began. Without `for` it is never pending."""

    incident: str
    alert: str
    pending: float | None = None
    firing: float | None = None


@asynccontextmanager
async def open_up(folder: Path) -> AsyncIterator[RunningUp]:
    """`outrider up --pubsub`, ready."""
    settings = {"pipelines": fates.__name__, "lease_seconds": LEASE_SECONDS, "worker_concurrency": 20}
    with running(folder, "up", "--pubsub", log_format="json", **settings) as up:
        await asyncio.to_thread(up.says, "\nready\n")
        yield RunningUp(up, folder)
        up.process.terminate()
        await asyncio.to_thread(up.ends, 0)


async def shown(prometheus: Prometheus, since: float) -> list[Shown]:
    return [
        Shown(query, len(await prometheus.range(query.expr, since)), reason(query.expr))
        for query in queries(RATE_INTERVAL)
    ]


async def run_incident(prometheus: Prometheus, up: RunningUp, incident: Incident) -> list[Seen]:
    """The alerts that were seen: those that the incident is for, and others that began to fire with it."""
    wanted, before = [*incident.pages, *incident.after], await prometheus.alerts()
    began, first = time.monotonic(), dict[tuple[str, str], float]()

    async def watch(pages: Sequence[str], seconds: float) -> None:
        while time.monotonic() < began + INCIDENT_SECONDS:
            now = time.monotonic() - began
            for alert, state in (await prometheus.alerts()).items():
                first.setdefault((alert, state), now)
            if now >= seconds and all((page, "firing") in first for page in pages):
                return
            await asyncio.sleep(POLL_SECONDS)

    async with incident.fault(up):
        await watch(incident.pages, incident.seconds)
    await watch(wanted, 0)
    fired = {alert for alert, state in first if state == "firing" and before.get(alert) != state}
    others = sorted(fired - set(wanted))
    return [
        Seen(incident.name, alert, first.get((alert, "pending")), first.get((alert, "firing")))
        for alert in [*wanted, *others]
    ]


async def calm(prometheus: Prometheus) -> None:
    """Wait until nothing pages but burnt budgets, which take their time."""
    deadline = time.monotonic() + CALM_SECONDS
    while left := [each for each in await prometheus.alerts() if each in PAGES and "Burns" not in each]:
        assert time.monotonic() < deadline, f"{left} do not end"
        await asyncio.sleep(POLL_SECONDS)


async def _main(folder: Path, seconds: float, incidents: Iterable[Incident], pictures: Path | None) -> bool:
    async with (
        open_up(folder) as up,
        open_prometheus(folder, up.targets, deployed()) as prometheus,
        under_load(up.address, up.token) as load,
    ):
        since = time.time()
        print(f"{len(await prometheus.rules())} rules are loaded; {seconds:g} s under load …", flush=True)
        await asyncio.sleep(seconds)
        found = await shown(prometheus, since)
        _print_queries(found, load)
        await _paint(prometheus, since, pictures, "-quiet")
        await prometheus.use(deployed(partial(shortened, by=PACE)))
        seen = []
        for incident in incidents:
            seen += await run_incident(prometheus, up, incident)
            _print_alerts([each for each in seen if each.incident == incident.name])
            await calm(prometheus)
        await _paint(prometheus, since, pictures, "-incidents")
        print(f"answers: {dict(load.answers)}")
    wanted = [each for each in seen if any(each.alert in (*n.pages, *n.after) for n in INCIDENTS)]
    return all(each.good for each in found) and all(each.firing is not None for each in wanted)


async def _paint(prometheus: Prometheus, since: float, pictures: Path | None, suffix: str) -> None:
    if pictures:
        for board in sorted({query.board for query in queries()}):
            await picture.paint(prometheus, board, since, RATE_INTERVAL, pictures / f"{board}{suffix}.html")


def _print_queries(found: Sequence[Shown], load: Load) -> None:
    full = [each for each in found if each.series]
    print(f"{len(full)} of {len(found)} queries return data; answers: {dict(load.answers)}")
    for each in found:
        if not each.series:
            word = "may be empty" if each.good else "EMPTY"
            print(f"  {word:12} {each.query.board:9} {each.query.panel:32} {each.excuse or each.query.expr}")
    sys.stdout.flush()


def _print_alerts(seen: Sequence[Seen]) -> None:
    for each in seen:
        pending, firing = (f"{at:5.1f}" if at is not None else "    -" for at in (each.pending, each.firing))
        print(f"  {each.incident:22} {each.alert:32} pending {pending} s  firing {firing} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.observability.live", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long before anything breaks")
    parser.add_argument("--incidents", nargs="*", help="only those whose names begin so")
    parser.add_argument(
        "--screenshots", type=Path, metavar="DIR", help="where dashboards go, as HTML and PNG"
    )
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(PREFIX) or name == EMULATOR]:
        del os.environ[name]
    os.environ["TEST_PROMTOOL"] = "require"
    incidents = [
        incident
        for incident in INCIDENTS
        if asked.incidents is None or incident.name.startswith(tuple(asked.incidents))
    ]
    if asked.screenshots:
        asked.screenshots.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="outrider-live-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # run by root, the database is another user's process
        return 0 if asyncio.run(_main(folder, asked.seconds, incidents, asked.screenshots)) else 1


if __name__ == "__main__":
    sys.exit(main())
