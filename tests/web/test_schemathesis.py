"""schemathesis over the running server, all its checks, with two owners.

SCHEMATHESIS_EXAMPLES sets the number of examples per operation: 150 makes more than 2,000 cases.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.pipeline import Registry
from engine.pipelines.storyboard import storyboard
from tests.web.site import Site, served, token, typed

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "10")
ROOT = Path(__file__).parents[2]
CASES = re.compile(r"(\d+) generated, \d+ passed")


@pytest.fixture
async def site(database_url: str) -> AsyncIterator[Site]:
    """With presets whose metadata is described: a schema cannot say that nothing anywhere is beyond 64 bits."""
    async with served(database_url, registry=Registry([typed, storyboard])) as site:
        yield site


async def test_generated_cases_find_no_500_no_broken_promise_and_no_way_to_anothers_job(
    site: Site, tmp_path: Path
) -> None:
    # A closed watcher ends streams and long polls with what is known: an unfinished job's would never end.
    site.store.watcher.close()
    run = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("run", f"{site.url}/openapi.json", "--header", f"Authorization: Bearer {token('ann', ttl=3600)}"),
        *("--checks", "all", "--max-examples", EXAMPLES, "--request-timeout", "10", "--continue-on-failure"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--generation-allow-x00", "false", "--no-color"),
        cwd=tmp_path,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.web.cases",
            "PYTHONPATH": str(ROOT),
            "OTHER_TOKEN": token("bob", ttl=3600),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60 + 5 * int(EXAMPLES)):
            output, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    report = output.decode()
    print(report)
    assert run.returncode == 0, report
    assert (cases := CASES.search(report)), report
    assert int(cases[1]) >= 100
    bob = await site.client("bob")
    async with bob.get("/pipeline/jobs") as response:
        assert (await response.json())["jobs"] == []
