"""What an attempt in a process reports: progress, steps and log lines, as one in the worker does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from structlog.testing import capture_logs

from engine.model import JobState
from engine.telemetry import tracing
from tests.engine.telemetry.test_tracing import Exported
from tests.support.worker_harness import WorkerHarness
from tests.worker.children.conftest import ChildLines, OpenWorker


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    with tracing.exporting_by(exported.spans):
        yield exported


def span_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return int(context.span_id)


def span_above(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_a_report_that_is_nonsense_is_dropped_and_logged_once_and_the_attempt_goes_on(
    harness: WorkerHarness, open_worker: OpenWorker, child_lines: ChildLines
) -> None:
    async with open_worker():
        job_id = await harness.enqueue("refused")
        [view] = await harness.ended(job_id)
    assert view.state is JobState.COMPLETED
    [line] = child_lines()
    assert (line["event"], line["job_id"], line["attempt"]) == ("progress.refused", str(job_id), 1)


async def test_steps_in_a_process_are_spans_of_the_jobs_trace(
    harness: WorkerHarness, open_worker: OpenWorker, exported: Exported
) -> None:
    async with open_worker(slots=1):
        [view] = await harness.ended(await harness.enqueue("steps"))
    assert view.state is JobState.COMPLETED
    attempt = exported.named("attempt steps")
    outer, inner, failing = (exported.named(name) for name in ("outer", "inner", "failing"))
    assert span_above(outer) == span_above(failing) == span_of(attempt)
    assert span_above(inner) == span_of(outer)
    assert not failing.status.is_ok
    assert outer.status.is_ok


async def test_a_step_in_which_a_process_dies_is_a_span_that_failed(
    harness: WorkerHarness, open_worker: OpenWorker, exported: Exported
) -> None:
    async with open_worker(slots=1):
        await harness.ended(await harness.enqueue("steps", "die"))
    outer, inner = exported.named("outer"), exported.named("inner")
    assert span_above(inner) == span_of(outer)
    assert not inner.status.is_ok


async def test_what_is_printed_belongs_to_the_attempt_that_printed_it(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    with capture_logs() as lines:
        async with open_worker(slots=1):
            ids = [await harness.enqueue("says", str(number)) for number in range(30)]
            await harness.ended(*ids)
    printed = [(line["job_id"], line["text"]) for line in lines if line["event"] == "attempt.printed"]
    assert printed == [
        (job_id, f"{text} {number}") for number, job_id in enumerate(ids) for text in ("line", "rest")
    ]
