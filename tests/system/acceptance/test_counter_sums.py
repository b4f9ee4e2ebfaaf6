"""What the processes count is what the database holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.acceptance.counter_sums import open_counter_harness, run_all, series

pytestmark = pytest.mark.long


async def test_counters_summed_over_processes_equal_the_database(database_url: str, tmp_path: Path) -> None:
    async with open_counter_harness(database_url, tmp_path) as counters_harness:
        found = await run_all(counters_harness, 1000, kill=False)
    for each in found:
        assert each.told == each.true, each.name
    outcomes = {
        outcome for each in found if each.name == "outrider_attempts_total" for _, outcome in each.told
    }
    assert outcomes >= {"completed", "retry", "failed", "timeout", "cancelled", "snoozed"}


async def test_with_a_worker_killed_they_are_never_more_and_the_gauges_still_agree(
    database_url: str, tmp_path: Path
) -> None:
    async with open_counter_harness(database_url, tmp_path) as counters_harness:
        found = await run_all(counters_harness, 1000, kill=True)
    assert not [each for each in found if each.exceeds]
    [attempts] = [each for each in found if each.name == "outrider_attempts_total"]
    lost = [
        {labels: count for labels, count in sums.items() if count and "lost" in labels}
        for sums in (attempts.told, attempts.true)
    ]
    assert lost[0] == lost[1] != {}


async def test_jobs_of_many_owners_add_no_series(database_url: str, tmp_path: Path) -> None:
    async with open_counter_harness(database_url, tmp_path) as counters_harness:
        before, after = await series(counters_harness, 2000, 1000)
    assert after - before == set()
