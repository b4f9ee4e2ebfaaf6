"""Bodies that are made to cost: what one client sends must not keep another waiting, nor the answer grow with it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import make_mocked_request

from engine.errors import Overloaded
from ops.waiting import until
from tests.support.web_harness import JOB, WebHarness
from web import offload as aside
from web.offload import Offload

MIB = 1 << 20
PATIENT = aiohttp.ClientTimeout(total=120)


def many(unit: bytes) -> bytes:
    """15 MiB of it, comma-separated."""
    return b",".join([unit] * (15 * MIB // (len(unit) + 1)))


def members() -> bytes:
    return b",".join(b'"%07x":1' % n for n in range(15 * MIB // 12))


def batch(job: bytes) -> bytes:
    return b'{"jobs":[{"content":"x","preset":"echo",' + job + b"}]}"


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "unknown members": (lambda: batch(members()), "/jobs/0/0000000"),
    "unknown members beside the jobs": (
        lambda: b'{"jobs":[' + orjson.dumps(JOB) + b"]," + members() + b"}",
        "/0000000",
    ),
    "jobs that are none": (lambda: b'{"jobs":[' + many(b"1") + b"]}", "/jobs/0"),
    "empty jobs": (lambda: b'{"jobs":[' + many(b"{}") + b"]}", "/jobs/0/content"),
    "numbers in metadata": (lambda: batch(b'"metadata":{"a":[' + many(b"1") + b"]}"), "/jobs/0/metadata"),
    "NaN in metadata": (lambda: batch(b'"metadata":{"a":[' + many(b"NaN") + b"]}"), "/jobs/0/metadata"),
    "members of metadata": (lambda: batch(b'"metadata":{' + members() + b"}"), "/jobs/0/metadata"),
    "a name without end": (lambda: batch(b'"' + b"x" * 15 * MIB + b'":1'), "/jobs/0"),
}


async def post(client: aiohttp.ClientSession, raw: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    async with client.post(
        "/pipeline/batch", data=io.BytesIO(raw), headers=headers, timeout=PATIENT
    ) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(("body", "pointer"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_15_mib_of_faults_get_a_small_422(
    anyone: aiohttp.ClientSession, body: Callable[[], bytes], pointer: str
) -> None:
    status, answer = await post(anyone, body())
    assert (status, len(answer) < 8192) == (422, True)
    errors = orjson.loads(answer)["errors"]
    assert errors[0]["pointer"] == pointer
    assert len(errors) <= 20


async def test_others_are_answered_while_a_large_body_is_checked(
    shared_harness: WebHarness, anyone: aiohttp.ClientSession
) -> None:
    numbers = orjson.dumps([1] * 130_000)
    job = b'{"content":"x","preset":"echo","metadata":{"a":' + numbers + b"}}"
    raw = b'{"jobs":[' + b",".join([job] * 57) + b',{"content":"x","preset":"nobody"}]}'
    async with asyncio.timeout(120):
        hostile = asyncio.create_task(post(anyone, raw))
        await until(lambda: shared_harness.api.offload._waiting > 0)
        async with anyone.post("/pipeline/run", json=JOB, timeout=PATIENT) as response:
            assert response.status == 202
        assert not hostile.done(), "the other request had to wait for the large one"
        status, answer = await hostile
    assert status == 422
    assert [each["pointer"] for each in orjson.loads(answer)["errors"]] == ["/jobs/57/preset"]


async def test_metadata_may_have_256_kib_as_json(anyone: aiohttp.ClientSession) -> None:
    for size, status in ((256 * 1024, 202), (256 * 1024 + 1, 422)):
        metadata = {"a": "x" * (size - len(b'{"a":""}'))}
        async with anyone.post("/pipeline/run", json=JOB | {"metadata": metadata}) as response:
            assert response.status == status, await response.text()


async def test_large_documents_take_turns_and_only_so_many_bytes_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aside, "MAX_WAITING_BYTES", 10)
    desk, gate, order = Offload(), threading.Event(), list[int]()
    request = make_mocked_request("POST", "/")
    request.transport.is_closing.return_value = False  # type: ignore[union-attr]

    def work(n: int) -> int:
        assert gate.wait(10)
        order.append(n)
        return n

    async with asyncio.timeout(10):
        tasks = [asyncio.create_task(desk.run(request, 5, work, n)) for n in (1, 2)]
        await until(lambda: desk._waiting == 10)
        with pytest.raises(Overloaded):
            await desk.run(request, 5, work, 3)
        gate.set()
        assert await asyncio.gather(*tasks) == order == [1, 2]
        assert await desk.run(request, 5, work, 4) == 4
