"""After the death of a worker none of its children lives, nor what they have started, in whatever state they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ops.harness.process import ROOT
from ops.waiting import until
from tests.support.database import fetchone
from tests.support.worker_harness import WorkerHarness, known
from tests.worker.children import lasting
from tests.worker.children.conftest import lives

LEFT_SECONDS = 5.0
"""How long they may outlive their worker."""
START_SECONDS = 60.0
STATES = {"running": "R", "holding": "R", "stopped": "T", "forking": "D", "sleeping": "S", "undying": "S"}
"""As proc(5) names them."""


@pytest.mark.parametrize("preset", [*STATES, "idle"])
async def test_no_child_outlives_its_worker_whatever_it_does(harness: WorkerHarness, preset: str) -> None:
    async with _worker(harness) as worker:
        job_id = await harness.enqueue(preset)
        if preset == "idle":
            await harness.ended(job_id)
        else:
            await harness.row("SELECT 1 FROM job_progress WHERE job_id = %s", job_id)
            await until(lambda: known(STATES[preset] in [_state(pid) for pid in _below(worker.pid)[1:]]))
        below = _below(worker.pid)
        assert len(below) >= 2 + (preset in ("forking", "sleeping"))
        worker.kill()
        await worker.wait()
        await until(lambda: known(not any(map(lives, below))), LEFT_SECONDS)


@asynccontextmanager
async def _worker(harness: WorkerHarness) -> AsyncIterator[asyncio.subprocess.Process]:
    settings = {
        "OUTRIDER_DATABASE_URL": harness.url,
        "OUTRIDER_PIPELINES": lasting.__name__,
        "OUTRIDER_ADMIN_PORT": "0",
        "OUTRIDER_WORKER_CONCURRENCY": "1",
    }
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker"), cwd=ROOT, env=os.environ | settings, stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: _registered(harness), START_SECONDS)
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def _registered(harness: WorkerHarness) -> bool:
    return bool(await fetchone(harness.conn, "SELECT count(*) FROM workers") == (1,))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def _below(pid: int) -> list[int]:
    """The processes below one, its nursery first. A daemon is below the child that has adopted it."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            found += [child, *_below(child)]
    return found
