"""What a request leaves behind: one log line without secrets, and its metrics."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY as METRICS
from structlog.testing import capture_logs

from ops.waiting import until
from tests.support.web_harness import JOB, SECRET, WebHarness, get, submit, token
from web import log_quota


def metric(name: str, **labels: str) -> float:
    return METRICS.get_sample_value(name, labels) or 0.0


async def test_a_request_is_one_line_that_holds_no_token(web_harness: WebHarness) -> None:
    client = await web_harness.client("ann")
    good, bad = str(client.headers["Authorization"]), token("ann", key="x" * 32)
    with capture_logs() as lines:
        job_id = await submit(client)
        await get(client, job_id)
        async with client.get("/pipeline/jobs?cursor=secret", headers={"Authorization": f"Bearer {bad}"}):
            pass
        async with client.get("/nowhere", headers={"X-Request-Id": "mine"}):
            pass
    assert [(line["event"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("request.answered", "POST", "/pipeline/run", 202),
        ("request.answered", "GET", f"/pipeline/job/{job_id}", 200),
        ("request.answered", "GET", "/pipeline/jobs", 401),
        ("request.answered", "GET", "/nowhere", 404),
    ]
    assert lines[3]["request_id"] == "mine"
    assert [line.get("job_id") for line in lines] == [job_id, None, None, None]
    text = orjson.dumps(lines).decode()
    for secret in (good.split()[1], bad, SECRET, "cursor", JOB["content"]):
        assert secret not in text


async def test_a_flood_of_requests_without_a_token_fills_no_log(
    ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_quota, "REPORT_SECONDS", 0.5)
    asked = 100
    with capture_logs() as lines:
        for path in ("/pipeline/jobs", "/nowhere", "/healthz", "/openapi.json") * (asked // 4):
            async with ann.get(path, headers={"Authorization": ""}):
                pass
        # Who is known is logged all the same.
        job_id = await submit(ann)
        [unlogged] = await until(lambda: [line for line in lines if line["event"] == "requests.unlogged"])
    answered = [line for line in lines if line["event"] == "request.answered"]
    assert answered[-1]["job_id"] == job_id
    assert len(answered) - 1 < asked / 2
    assert unlogged["count"] == asked - (len(answered) - 1)


async def test_an_error_of_ours_is_logged_with_its_cause_and_answered_without(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("the cause")

    monkeypatch.setattr(web_harness.store, "read", broken)
    with capture_logs() as lines:
        async with ann.get("/pipeline/job/01890000-0000-7000-8000-000000000000") as response:
            assert response.status == 500
            assert response.headers["Content-Type"] == "application/problem+json"
            assert "the cause" not in await response.text()
    assert [line["event"] for line in lines] == ["request.failed", "request.answered"]
    assert str(lines[0]["exc_info"]) == "the cause"
    for name in ("request_id", "method", "path"):
        assert lines[0][name] == lines[1][name]


async def test_whoever_tries_every_method_makes_one_series_of_them(web_harness: WebHarness) -> None:
    def methods(route: str) -> set[str]:
        return {
            sample.labels["method"]
            for family in METRICS.collect()
            for sample in family.samples
            if sample.name == "outrider_http_request_seconds_count" and sample.labels["route"] == route
        }

    client = await web_harness.client(None)
    for method in ("PURGE", "MKCOL", "LOCK", "TRACE", "DELETE", "OPTIONS"):
        for path in ("/pipeline/presets", "/nowhere"):
            async with client.request(method, path):
                pass
    assert methods("/pipeline/presets") <= {"GET", "HEAD", "_OTHER"}
    assert "_OTHER" in methods("/pipeline/presets")
    assert not {"PURGE", "MKCOL", "LOCK"} & methods("unknown")


async def test_requests_and_accepted_jobs_are_counted(web_harness: WebHarness, ann: Any) -> None:
    def counts() -> list[float]:
        return [
            metric("outrider_http_request_seconds_count", route="/pipeline/run", method="POST", status="202"),
            metric(
                "outrider_http_request_seconds_count",
                route="/pipeline/job/{job_id}",
                method="GET",
                status="200",
            ),
            metric("outrider_http_request_seconds_count", route="unknown", method="GET", status="404"),
            metric("outrider_jobs_enqueued_total", preset="echo"),
            metric("outrider_idempotency_keys_total", outcome="first"),
            metric("outrider_idempotency_keys_total", outcome="replayed"),
            metric("outrider_idempotency_keys_total", outcome="mismatch"),
            metric("outrider_auth_failures_total", reason="missing"),
            metric("outrider_auth_failures_total", reason="scope"),
            metric("outrider_batch_rows_count", batch="submissions"),
            metric("outrider_http_answers_total", **{"class": "2xx"}),
            metric("outrider_http_answers_total", **{"class": "4xx"}),
            metric("outrider_http_answers_total", **{"class": "5xx"}),
        ]

    before = counts()
    await get(ann, await submit(ann))
    for job in (JOB, JOB, JOB | {"content": "other"}):
        async with ann.post("/pipeline/run", json=job, headers={"Idempotency-Key": "k"}):
            pass
    async with ann.post("/pipeline/batch", json={"jobs": [JOB, JOB]}):
        pass
    for client in (await web_harness.client(None), await web_harness.client("ann", scope="")):
        async with client.get("/pipeline/jobs"):
            pass
    for path in ("/nowhere", "/healthz", "/readyz"):
        async with ann.get(path):
            pass
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [
        3,
        1,
        1,
        4,
        1,
        1,
        1,
        1,
        1,
        5,
        5,
        4,
        0,
    ]
    assert metric("outrider_http_requests_in_flight") == 0
