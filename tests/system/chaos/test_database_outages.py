"""The database away, frozen or locked under running jobs: nobody has died, so nobody is charged."""

from __future__ import annotations

import asyncio

import pytest

from ops.chaos import outages

pytestmark = pytest.mark.long


@pytest.mark.parametrize("scenario", outages.SCENARIOS)
async def test_an_outage_of_the_database_charges_no_job_and_costs_it_one_attempt_at_the_most(
    scenario: str,
) -> None:
    async with asyncio.timeout(300):
        assert await outages.run(scenario, 20, 12) == []
