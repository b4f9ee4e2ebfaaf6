"""One job's trace through real processes, as a collector of OpenTelemetry's sees it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from engine.pubsub.client import EMULATOR, names
from engine.settings import load
from ops.harness.process import ROOT
from ops.harness.pubsub_fake import FakePubSub
from ops.waiting import WAIT_SECONDS, until
from relay.provision.apply import open_clients, provision
from tests.support.database import Conn, fetchone
from tests.support.json_lines import events
from tests.support.web_harness import SECRET, bearer
from tests.system.acceptance.conftest import Process

PROJECT = "traced"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENT = f"00-{TRACE}-00f067aa0ba902b7-01"
JOB = {"preset": "storyboard", "content": "A lamp is lit. A door opens."}
EXEMPLAR = re.compile(r"^(\w+)_bucket\{.*# \{trace_id=\"(\w+)\"\}", re.MULTILINE)


class Seen(NamedTuple):
    """A span as it was sent. `links` are the traces it is linked to."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    attributes: dict[str, Any]
    failed: bool


class Collector:
    """Takes what is exported to it at `url`."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        export = ExportTraceServiceRequest.FromString(await request.read())
        for each in export.resource_spans:
            service = _plain(each.resource.attributes)["service.name"]
            for scope in each.scope_spans:
                self.spans += (_seen(service, span) for span in scope.spans)
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    def named(self, name: str) -> Seen:
        [found] = [span for span in self.spans if span.name == name]
        return found


def _seen(service: str, span: Any) -> Seen:
    return Seen(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        tuple(link.trace_id.hex() for link in span.links),
        _plain(span.attributes),
        span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


class System:
    """Web, relay and worker, each a process; `lines` are what each has logged."""

    def __init__(self, folder: Path, url: str, fake: FakePubSub, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._processes: dict[str, Process] = {}
        self._environ = {
            "OUTRIDER_DATABASE_URL": url,
            "OUTRIDER_TRANSPORT": "pubsub",
            "OUTRIDER_PUBSUB_PROJECT": PROJECT,
            "OUTRIDER_JWT_SECRET": SECRET,
            "OUTRIDER_HTTP_PORT": "0",
            "OUTRIDER_ADMIN_PORT": "0",
            "OUTRIDER_DRAIN_SECONDS": "1",
            EMULATOR: fake.host,
        }

    async def start(self, role: str, **environ: str) -> None:
        log = self._folder / f"{role}.log"
        with log.open("wb") as stream:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", role),
                cwd=ROOT,
                stderr=stream,
                env=os.environ | self._environ | environ,
            )
        self._processes[role] = process = Process(child, log)
        self._stack.push_async_callback(process.end)
        await process.says("worker.registered" if role == "worker" else f"{role}.started")

    async def stop(self) -> None:
        for process in self._processes.values():
            process.send(signal.SIGTERM)
        assert await asyncio.gather(*(each.ended() for each in self._processes.values())) == [0, 0, 0]

    def lines(self, role: str, event: str) -> list[dict[str, Any]]:
        return [line for line in events(self._folder / f"{role}.log") if line["event"] == event]

    def port(self, role: str, name: str = "admin_port") -> int:
        return int(self.lines(role, f"{role}.started")[0][name])

    async def exemplars(self, role: str) -> dict[str, str]:
        """The traces that its histograms name."""
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        url = f"http://127.0.0.1:{self.port(role)}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url, headers=accept) as response:
            return dict(EXEMPLAR.findall(await response.text()))

    async def run(self, conn: Conn, *jobs: Any, **headers: str) -> list[str]:
        """Submit `jobs`, and wait until all of them have completed and said so."""
        url = f"http://127.0.0.1:{self.port('web', 'port')}/pipeline/batch"
        async with (
            aiohttp.ClientSession(headers=bearer() | headers) as session,
            session.post(url, json={"jobs": jobs}) as response,
        ):
            assert response.status == 202, await response.text()
            ids: list[str] = (await response.json())["job_ids"]

        async def look() -> bool:
            ended = {line["job_id"] for line in self.lines("worker", "attempt.ended")}
            waiting = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM outbox_events)"
            return ended >= set(ids) and await fetchone(conn, waiting) == (0,)

        await until(look)
        return ids


@asynccontextmanager
async def open_system(folder: Path, url: str, fake: FakePubSub, **environ: str) -> AsyncIterator[System]:
    async with open_clients() as clients:
        settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": PROJECT})
        assert [change async for change in provision(clients, names(settings))]
    async with AsyncExitStack() as stack:
        system = System(folder, url, fake, stack)
        await asyncio.gather(*(system.start(role, **environ) for role in ("web", "relay", "worker")))
        yield system


@pytest.fixture(autouse=True)
def emulated(fake: FakePubSub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EMULATOR, fake.host)


async def test_one_trace_leads_from_the_request_by_way_of_the_relay_to_the_result(
    tmp_path: Path, database_url: str, conn: Conn, fake: FakePubSub, collector: Collector
) -> None:
    exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with open_system(tmp_path, database_url, fake, **exported) as system:
        [job_id] = await system.run(conn, JOB, traceparent=SENT)
        exemplars = {role: await system.exemplars(role) for role in ("web", "worker")}
        await system.stop()  # what is left is sent then

    way = [(span.service, span.name) for span in collector.spans if span.trace == TRACE]
    assert sorted(way) == [
        ("outrider-relay", "publish pipeline-jobs"),
        ("outrider-relay", "publish pipeline-results"),
        ("outrider-web", "POST /pipeline/batch"),
        ("outrider-web", "enqueue"),
        ("outrider-worker", "attempt storyboard"),
        ("outrider-worker", "captions"),
        ("outrider-worker", "claim"),
        ("outrider-worker", "record"),
        ("outrider-worker", "script"),
    ]
    assert not [span for span in collector.spans if span.failed]
    sent, request, attempt = (
        SENT[36:52],
        collector.named("POST /pipeline/batch"),
        collector.named("attempt storyboard"),
    )
    assert {span.parent for span in collector.spans if span.trace == TRACE} == {sent, request.id, attempt.id}
    assert collector.named("enqueue").parent == request.id
    assert (request.parent, attempt.parent, attempt.attributes["messaging.message.id"]) == (
        sent,
        sent,
        job_id,
    )
    assert {collector.named(name).parent for name in ("script", "captions", "record")} == {attempt.id}

    [answered] = system.lines("web", "request.answered")
    [ended] = system.lines("worker", "attempt.ended")
    assert (answered["trace_id"], answered["span_id"]) == (TRACE, request.id)
    assert (ended["trace_id"], ended["span_id"]) == (TRACE, attempt.id)
    assert await fetchone(conn, "SELECT id::text, traceparent FROM jobs") == (job_id, SENT)
    for topic in ("pipeline-jobs", "pipeline-results"):
        [message] = fake.published(topic)
        assert message.attributes["traceparent"] == message.attributes["googclient_traceparent"] == SENT
    assert exemplars["web"]["outrider_http_request_seconds"] == TRACE
    assert exemplars["worker"]["outrider_attempt_run_seconds"] == TRACE


@pytest.mark.alone
async def test_without_a_context_the_request_s_own_is_kept_and_a_batch_is_linked_to_all_of_its_traces(
    tmp_path: Path, database_url: str, conn: Conn, fake: FakePubSub, collector: Collector
) -> None:
    exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "shop"}
    async with open_system(tmp_path, database_url, fake, **exported) as system:
        await system.run(conn, JOB, JOB)
        nowhere = f"http://127.0.0.1:{system.port('web', 'port')}/nowhere"
        async with aiohttp.ClientSession() as session, session.get(nowhere) as response:
            assert response.status == 404
        await system.stop()

    request = collector.named("POST /pipeline/batch")
    kept = f"00-{request.trace}-{request.id}-01"
    assert await fetchone(conn, "SELECT count(*), min(traceparent), max(traceparent) FROM jobs") == (
        2,
        kept,
        kept,
    )
    attempts = [span for span in collector.spans if span.name == "attempt storyboard"]
    assert [(span.trace, span.parent) for span in attempts] == [(request.trace, request.id)] * 2
    assert {span.service for span in collector.spans} == {"shop"}
    assert {line["span_id"] for line in system.lines("worker", "attempt.ended")} == {
        span.id for span in attempts
    }
    assert {message.attributes["traceparent"] for message in fake.published("pipeline-jobs")} == {kept}
    unknown = collector.named("GET")
    assert (unknown.attributes["http.response.status_code"], unknown.failed) == (404, False)
    assert (unknown.attributes["url.path"], "http.route" in unknown.attributes) == ("/nowhere", False)


async def test_a_collector_that_is_away_costs_a_line_of_log_and_no_job(
    tmp_path: Path, database_url: str, conn: Conn, fake: FakePubSub, unused_tcp_port: int
) -> None:
    away = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_tcp_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with open_system(tmp_path, database_url, fake, **away, OTEL_EXPORTER_OTLP_TIMEOUT="0.1") as system:
        for _ in range(3):
            await system.run(conn, JOB)

        async def told() -> bool:
            return bool(system.lines("worker", "traces.lost"))

        await until(told)
        async with asyncio.timeout(WAIT_SECONDS):
            await system.stop()
    for role in ("web", "relay", "worker"):
        [lost] = system.lines(role, "traces.lost")
        assert (lost["role"], lost["level"]) == (role, "warning")
        assert system.lines(role, "library.logged") == []
