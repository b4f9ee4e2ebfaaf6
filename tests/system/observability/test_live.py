"""A real Prometheus over a real `outrider up --pubsub`; `python -m tests.system.observability.live` does all of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ops.waiting import until
from tests.support.commands import gone, living
from tests.support.pubsub_brokers import installed_emulator
from tests.system.observability.faults import INCIDENTS, Incident
from tests.system.observability.live import PACE, PAGES, calm, open_up, run_incident, shown
from tests.system.observability.load import under_load
from tests.system.observability.prometheus import deployed, open_prometheus, program
from tests.system.observability.shorten import shortened

pytestmark = pytest.mark.long

DATA_SECONDS = 45.0
QUICK = ["relay stopped", "web stopped"]
"""Nights of some seconds; the others take up to a minute each."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where, unlike in pytest's own folders, the unprivileged database of a run by root may go."""
    installed_emulator()
    program()
    with tempfile.TemporaryDirectory(prefix="outrider-live-") as name:
        made = Path(name)
        made.chmod(0o755)
        yield made
        assert gone(made), living(made)


async def test_every_query_returns_data_and_who_is_stopped_brings_a_page(folder: Path) -> None:
    rules = deployed(partial(shortened, by=PACE))
    async with (
        open_up(folder) as up,
        open_prometheus(folder, up.targets, rules) as prometheus,
        under_load(up.address, up.token, rate=10.0),
    ):
        since = time.time()

        async def all_good() -> bool:
            return all(each.good for each in await shown(prometheus, since))

        await until(all_good, DATA_SECONDS)
        for incident in (each for each in INCIDENTS if each.name in QUICK):
            seen = {each.alert: each.firing for each in await run_incident(prometheus, up, incident)}
            assert [page for page in incident.pages if seen[page] is None] == []
            await calm(prometheus)


def test_every_page_has_its_incident() -> None:
    def of(incident: Incident) -> list[str]:
        return [*incident.pages, *incident.after]

    assert sorted(page for incident in INCIDENTS for page in of(incident)) == sorted(PAGES)
