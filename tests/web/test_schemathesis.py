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
from ops.harness.process import ROOT
from tests.support.web_harness import WebHarness, served, token, typed

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "10")
CASES = re.compile(r"(\d+) generated, \d+ passed")


@pytest.fixture
async def web_harness(database_url: str) -> AsyncIterator[WebHarness]:
    """With presets whose metadata is described: a schema cannot say that nothing anywhere is beyond 64 bits."""
    async with served(database_url, registry=Registry([typed, storyboard])) as web_harness:
        yield web_harness


@pytest.mark.long
async def test_generated_cases_find_no_500_no_broken_promise_and_no_way_to_anothers_job(
    web_harness: WebHarness, tmp_path: Path
) -> None:
    # A closed watcher ends streams and long polls with what is known: an unfinished job's would never end.
    web_harness.store.watcher.close()
    run = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *(
            "run",
            f"{web_harness.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {token('ann', ttl=3600)}",
        ),
        *("--checks", "all", "--max-examples", EXAMPLES, "--request-timeout", "10", "--continue-on-failure"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--generation-allow-x00", "false", "--no-color"),
        cwd=tmp_path,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.web.schemathesis_hooks",
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
    bob = await web_harness.client("bob")
    async with bob.get("/pipeline/jobs") as response:
        assert (await response.json())["jobs"] == []
