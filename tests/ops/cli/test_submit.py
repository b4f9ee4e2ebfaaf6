"""`outrider submit` against web and worker, which run on the tests' own loop."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

import web.__main__
import worker.__main__
from engine.process.run import Main
from engine.settings import load
from ops.harness.ports import free_port
from tests.ops.cli import pipelines
from tests.ops.cli.conftest import SECRET, Outrider
from tests.support.database import Conn, fetchone

Set = Callable[..., None]


@asynccontextmanager
async def process(main: Main) -> AsyncIterator[None]:
    stop = asyncio.Event()
    running = asyncio.ensure_future(main(load(), stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            assert await running == 0


@asynccontextmanager
async def web_process(port: int) -> AsyncIterator[None]:
    async with process(web.__main__.main):
        async with asyncio.timeout(20):
            while not await listens(port):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        yield


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


@pytest.fixture
async def served(settings: Set, configured: None) -> AsyncIterator[None]:  # noqa: ARG001 - what it sets
    """A web process on the configured port, with the tests' pipelines."""
    port = free_port()
    settings(http_port=port, admin_port=0, drain_seconds=0, pipelines=pipelines.__name__)
    # Its log would be part of what the command seems to print.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async with web_process(port):
        yield
    structlog.reset_defaults()


@pytest.fixture
async def worked(served: None) -> AsyncIterator[None]:  # noqa: ARG001 - what it needs
    async with process(worker.__main__.main):
        yield


async def content_of(conn: Conn, job_id: str) -> object:
    return await fetchone(conn, "SELECT content, metadata FROM jobs WHERE id::text = %s", job_id)


@pytest.mark.usefixtures("served")
async def test_the_content_comes_by_option_by_file_or_by_standard_input(
    conn: Conn, outrider: Outrider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await outrider("submit", "echo", "--content", "one", "--metadata", '{"a": [1]}')
    assert (said.code, said.err) == (0, "")
    assert await content_of(conn, said.out.strip()) == ("one", {"a": [1]})
    (tmp_path / "script.txt").write_text("två\n", "utf-8")
    said = await outrider("submit", "echo", "--file", tmp_path / "script.txt", "--json")
    assert said.json["status"] == "pending"
    assert await content_of(conn, said.json["job_id"]) == ("två\n", {})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"trois")))
    said = await outrider("submit", "echo", "-")
    assert await content_of(conn, said.out.strip()) == ("trois", {})


@pytest.mark.usefixtures("served")
async def test_metadata_that_are_null_are_absent(conn: Conn, outrider: Outrider) -> None:
    said = await outrider("submit", "echo", "--content", "one", "--metadata", "null")
    assert await content_of(conn, said.out.strip()) == ("one", {})


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("number", ["NaN", "1e400", "18446744073709551616"])
async def test_a_number_that_json_cannot_keep_is_refused_not_changed(outrider: Outrider, number: str) -> None:
    said = await outrider("submit", "echo", "--content", "one", "--metadata", f'{{"a": {number}}}')
    assert said.code == 1
    assert "422" in said.err
    assert "/metadata/a" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("text",),
        ("--content", "a", "-"),
        ("--file", "/no/such/file"),
        ("--content", "a", "--metadata", "{"),
        ("--content", "a", "--metadata", "[]"),
        ("--content", "a", "--url", "ftp://x"),
    ],
    ids=" ".join,
)
async def test_wrong_usage_sends_nothing(
    settings: Set, outrider: Outrider, arguments: tuple[str, ...]
) -> None:
    settings(jwt_secret=SECRET)
    assert (await outrider("submit", "echo", *arguments)).code == 2


async def test_content_that_is_not_utf8_is_wrong_usage(outrider: Outrider, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9")
    said = await outrider("submit", "echo", "--file", tmp_path / "latin")
    assert said.code == 2
    assert "not UTF-8" in said.err


@pytest.mark.usefixtures("served")
async def test_a_refusal_is_one_line_with_every_fault(outrider: Outrider) -> None:
    said = await outrider("submit", "nope", "--content", "x")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("outrider: 422 ")
    assert ": The request is well-formed but invalid: /preset: " in said.err
    assert len(said.err.splitlines()) == 1
    said = await outrider("submit", "echo", "--content", "x", "--token", "bad")
    assert said.code == 1
    assert said.err.startswith("outrider: 401 ")


async def test_nobody_there_fails_at_once(settings: Set, outrider: Outrider) -> None:
    settings(jwt_secret=SECRET, http_port=free_port())
    said = await outrider("submit", "echo", "--content", "x")
    assert said.code == 1
    assert said.err.startswith("outrider: no web process answers at http://127.0.0.1:")


@pytest.mark.usefixtures("worked")
async def test_waiting_prints_the_result_or_the_whole_job(outrider: Outrider) -> None:
    said = await outrider("submit", "echo", "--content", "hello", "--wait")
    assert (said.code, json.loads(said.out), said.err) == (0, {"content": "hello"}, "")
    said = await outrider("submit", "echo", "--content", "hello", "--wait", "--json")
    assert (said.json["status"], said.json["result"]) == ("completed", {"content": "hello"})


@pytest.mark.usefixtures("worked")
async def test_waiting_for_a_job_that_fails_exits_with_1(outrider: Outrider) -> None:
    said = await outrider("submit", "fail", "--content", "no such page", "--wait")
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith(" failed: PermanentError no such page\n")


@pytest.mark.usefixtures("worked")
async def test_waiting_outlasts_a_stream_that_ends_early(
    conn: Conn, outrider: Outrider, settings: Set, tmp_path: Path
) -> None:
    """The web process that streams is stopped while the job runs; another one takes its port."""
    port = free_port()
    gate = tmp_path / "gate"
    settings(http_port=port)
    async with asyncio.TaskGroup() as group:
        async with web_process(port):
            waiting = group.create_task(outrider("submit", "gated", "--content", gate, "--wait"))
            await leased(conn)
        async with web_process(port):
            gate.touch()
            said = await waiting
    assert (said.code, json.loads(said.out)) == (0, {"content": str(gate)})


async def leased(conn: Conn) -> None:
    async with asyncio.timeout(20):
        while await fetchone(conn, "SELECT count(*) FROM outbox WHERE status = 'leased'") != (1,):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
