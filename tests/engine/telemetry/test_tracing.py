"""Contexts that are taken and left, spans and what they belong to, and what tracing costs where it is off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engine.errors import InvalidJob
from engine.model import Completed, JobState
from engine.telemetry import spans, traceparent, tracing
from engine.telemetry.otel import Spans
from tests.engine.process.test_run import ended, started
from tests.support.database import Conn
from tests.support.worker_harness import WorkerHarness, preset
from tests.worker.test_outcome import attempt

IDS = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
ONE = f"00-{IDS}-01"
TWO = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Exported:
    """The spans that have ended, in the order of their ends."""

    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.spans = Spans(self._provider)

    def named(self, name: str) -> ReadableSpan:
        [found] = self.all(name)
        return found

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.name == name]


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    with tracing.exporting_by(exported.spans):
        yield exported


def context_of(span: Any) -> str:
    ids = span if isinstance(span, trace.SpanContext) else span.get_span_context()
    return f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"


def parent_of(span: ReadableSpan) -> str | None:
    return context_of(span.parent) if span.parent else None


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ([ONE], ONE),
        ([f"00-{IDS}-00"], f"00-{IDS}-00"),
        ([f"00-{IDS}-03"], f"00-{IDS}-03"),
        ([f"cc-{IDS}-03"], f"00-{IDS}-01"),
        ([f"cc-{IDS}-00-what-a-later-version-adds"], f"00-{IDS}-00"),
        ([], None),
        ([ONE, ONE], None),
        ([""], None),
        ([f"00-{IDS}-01-more"], None),
        ([f"cc-{IDS}-01.more"], None),
        ([f"ff-{IDS}-01"], None),
        ([ONE.upper()], None),
        ([f"00-{IDS}-1"], None),
        ([f" {ONE}"], None),
        ([f"{ONE}\n"], None),
        (["00-" + "0" * 32 + "-00f067aa0ba902b7-01"], None),
        (["00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01"], None),
    ],
)
def test_a_context_is_taken_only_when_it_is_the_one_and_is_valid(
    given: list[str], accepted: str | None
) -> None:
    assert traceparent.accept(given) == accepted


async def test_what_is_no_context_is_not_kept_with_a_job(harness: WorkerHarness) -> None:
    for broken in ("", "x", f"cc-{IDS}-01", ONE + "\0"):
        with pytest.raises(InvalidJob, match="traceparent"):
            await harness.enqueue(traceparent=broken)


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({"EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"TRACES_EXPORTER": "otlp"}, True),
        ({"TRACES_EXPORTER": "console, otlp"}, True),
        ({"TRACES_EXPORTER": "none", "EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"SDK_DISABLED": "TRUE", "EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"SERVICE_NAME": "shop"}, False),
    ],
)
def test_opentelemetry_s_own_variables_decide_whether_spans_are_exported(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    assert tracing.asked_for() is asked


def test_where_nothing_is_exported_every_span_is_the_one_that_does_nothing() -> None:
    def never() -> Iterator[str]:
        raise AssertionError("contexts are collected for nothing")
        yield

    made = [
        tracing.enqueue(1),
        tracing.publish("jobs", never(), 1),
        tracing.attempt(attempt()),
        tracing.step("step"),
        tracing.record(never(), 1),
    ]
    assert all(span is spans.OFF for span in made)
    assert (spans.OFF.traceparent, spans.OFF.context()) == (None, None)
    assert (traceparent.ids(None), traceparent.ids(ONE)) == ({}, {"trace_id": IDS[:32]})


async def test_opentelemetry_is_not_imported_where_it_is_not_asked_for() -> None:
    body = """
    import worker.consumer, relay.maintenance.loop, web.__main__

    async def main(settings, stop):
        return 7 if not [name for name in sys.modules if name.startswith("opentelemetry")] else 8
    """
    async with started(body) as child:
        assert await ended(child) == (7, "")


def test_a_batch_belongs_to_the_one_trace_of_its_jobs(exported: Exported) -> None:
    with tracing.step("elsewhere"), tracing.record([ONE, None, ONE, "broken"], 4):
        pass
    assert parent_of(exported.named("record")) == ONE
    assert exported.named("record").links == ()


def test_a_batch_of_several_traces_has_its_own_and_is_linked_to_theirs(exported: Exported) -> None:
    with tracing.step("elsewhere"), tracing.publish("jobs", [ONE, TWO, ONE], 3):
        pass
    span = exported.named("publish jobs")
    assert parent_of(span) is None
    assert [context_of(link.context) for link in span.links] == [ONE, TWO]
    assert context_of(span)[3:35] not in (ONE[3:35], TWO[3:35], context_of(exported.named("elsewhere"))[3:35])


def test_a_batch_of_traces_that_nobody_records_is_not_recorded_and_links_lead_to_those_that_are(
    exported: Exported,
) -> None:
    unsampled = [f"{context[:-2]}00" for context in (ONE, TWO)]
    with tracing.record(unsampled, 2):
        pass
    with tracing.record([*unsampled[:1], TWO], 2):
        pass
    [span] = exported.all("record")
    assert [context_of(link.context) for link in span.links] == [TWO]


def test_a_trace_that_its_caller_does_not_record_is_not_recorded_here_either(exported: Exported) -> None:
    with tracing.record([f"00-{IDS}-00"], 1) as span:
        assert span.traceparent is not None
        assert (span.traceparent[:35], span.traceparent[-2:]) == (ONE[:35], "00")
    assert exported.all("record") == []


def test_a_span_says_what_it_failed_of(exported: Exported) -> None:
    with pytest.raises(ZeroDivisionError), tracing.step("division"):
        _ = 1 / 0
    span = exported.named("division")
    assert span.attributes is not None
    assert (span.status.is_ok, span.attributes["error.type"]) == (False, "ZeroDivisionError")


@pytest.mark.parametrize("plain", [False, True], ids=["on the loop", "in a thread"])
async def test_an_attempt_s_span_is_current_in_its_pipeline_and_holds_its_steps(
    harness: WorkerHarness, exported: Exported, plain: bool
) -> None:
    current: list[str] = []

    def work(_job: Any, run: Any) -> None:
        current.append(context_of(trace.get_current_span()))
        with run.step("outer"), run.step("inner"):
            pass

    async def on_the_loop(job: Any, run: Any) -> None:
        work(job, run)
        await asyncio.sleep(0)
        current.append(context_of(trace.get_current_span()))

    job_id = await harness.enqueue(traceparent=ONE)
    async with harness.worker(preset()(work if plain else on_the_loop)):
        await harness.ended(job_id)
    span = exported.named("attempt p")
    assert (parent_of(span), set(current)) == (ONE, {context_of(span)})
    assert parent_of(exported.named("outer")) == parent_of(exported.named("record")) == context_of(span)
    assert parent_of(exported.named("inner")) == context_of(exported.named("outer"))
    assert parent_of(exported.named("claim")) == ONE
    assert dict(span.attributes or {}) == {
        "messaging.system": "outrider",
        "messaging.operation.name": "attempt",
        "messaging.operation.type": "process",
        "messaging.destination.name": "p",
        "messaging.message.id": str(job_id),
        "outrider.attempt": 1,
        "outrider.outcome": "completed",
    }


async def test_effects_are_within_the_record_and_an_error_is_its_attempt_s(
    harness: WorkerHarness, exported: Exported
) -> None:
    @preset()
    async def second(_job: Any, run: Any) -> Completed:
        if run.attempt == 1:
            raise ValueError("not yet")

        async def effects(conn: Conn) -> None:
            await conn.execute("SELECT 1")

        return Completed(None, effects)

    job_id = await harness.enqueue(traceparent=ONE)
    async with harness.worker(second), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED
    first, last = exported.all("attempt p")
    assert (first.status.is_ok, first.status.description) == (False, "not yet")
    assert {**(first.attributes or {})}.items() >= {
        "outrider.outcome": "retry",
        "error.type": "ValueError",
    }.items()
    assert (last.status.is_ok, parent_of(last)) == (True, ONE)
    recorded = exported.named("effects")
    assert parent_of(recorded) in [context_of(span) for span in exported.all("record")]
    assert {parent_of(span) for span in exported.all("record")} == {context_of(first), context_of(last)}


ASKED = {"OTEL_TRACES_EXPORTER": "otlp"}


async def test_without_the_extra_a_process_runs_untraced_and_says_what_to_install() -> None:
    body = """
    sys.modules["opentelemetry"] = None

    async def main(settings, stop): return 7
    """
    async with started(body, **ASKED) as child:
        code, said = await ended(child)
    assert code == 7
    assert '"traces.off"' in said
    assert "pip install 'outrider[otel]'" in said


async def test_a_process_that_is_wrongly_set_to_export_runs_untraced() -> None:
    body = "async def main(settings, stop): return 7"
    async with started(body, **ASKED, OTEL_BSP_SCHEDULE_DELAY="-1") as child:
        code, said = await ended(child)
    assert code == 7
    assert said.count('"traces.off"') == 1


async def test_a_collector_that_never_answers_does_not_keep_a_process() -> None:
    connected, released = asyncio.Event(), asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await released.wait()
        writer.close()

    body = """
    from engine.telemetry import tracing
    ending.EXIT_SECONDS = 10

    async def main(settings, stop):
        with tracing.step("something"):
            return 7
    """
    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        endpoint = "http://{}:{}".format(*server.sockets[0].getsockname())
        try:
            async with started(body, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as child:
                code, said = await ended(child)
        finally:
            released.set()
    assert (code, connected.is_set()) == (7, True)
    assert "process.abandoned" not in said
