"""How an attempt's process came to its end is read over HTTP, by the job's owner and by whoever operates it."""

from __future__ import annotations

import re

from engine.pipeline import Registry
from tests.support.web_harness import get, served
from tests.support.worker_harness import WorkerHarness
from tests.worker.children import hostile
from tests.worker.children.conftest import OpenWorker

WORDS = (
    r"the attempt's process was killed by SIGKILL after \d+\.\d s, at step 'render' "
    r"\(peak memory 0\.\d\d GB of 0\.54 GB\)"
)


async def test_job_history_and_explain_say_how_a_process_died(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with harness.maintenance(), open_worker():
        job_id = await harness.enqueue("killed")
        await harness.ended(job_id)
    async with served(harness.url, registry=Registry(hostile.pipelines)) as web:
        ann = await web.client()
        job, history, explained = [
            await get(ann, job_id, path) for path in ("", "/history?limit=100", "/explain")
        ]
    assert re.fullmatch(WORDS, job["error"]["message"])
    ended = [row for row in history["history"] if row["reason"] in ("error", "failed")]
    assert [row["attempt"] for row in ended] == [1, 2]
    for row in ended:
        assert row["metadata"]["error"]["type"] == "ProcessDied"
        assert re.fullmatch(WORDS, row["metadata"]["error"]["message"])
    facts = {fact["code"]: fact["detail"] for fact in explained["facts"]}
    assert re.fullmatch(f"attempt 2 ended in ProcessDied: {WORDS}", facts["last_error"])
    assert re.fullmatch(f"attempt 1 ended in ProcessDied: {WORDS}", facts["earlier_error"])
    assert "2 of 2 errors, 0 of 3 crashes" in facts["budget"]
