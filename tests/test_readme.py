"""Every code block of the README does what it says, in the order in which a newcomer meets them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from engine.model import TRANSITIONS, JobState
from engine.pipeline import load_pipelines
from engine.queries import jobs
from ops.harness.ports import free_port
from ops.harness.process import ROOT
from ops.harness.pubsub_fake import FakePubSub
from tests.support.database import Conn, fetchone

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
FIRST = BLOCKS[0][1].strip()
UP_SECONDS = 240.0
"""The first `./ops/up` may have to make the virtual environment."""


def block(language: str, holding: str) -> str:
    [found] = [text for name, text in BLOCKS if name == language and holding in text]
    return str(found)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return os.environ | {
        "OUTRIDER_DATA_DIR": str(tmp_path / "data"),
        "OUTRIDER_HTTP_PORT": str(free_port()),
        "OUTRIDER_ADMIN_PORT": "0",
        "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


@asynccontextmanager
async def running_up(command: str, cwd: Path, environ: dict[str, str]) -> AsyncIterator[str]:
    """`./ops/up` as README starts it, until the block ends; gives what it printed."""
    absolute = command.replace("./ops/up", f"exec {ROOT / 'ops/up'}")
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", absolute, cwd=cwd, env=environ, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    printed = ""
    try:
        async with asyncio.timeout(UP_SECONDS):
            while not printed.endswith("ready\n"):
                line = await process.stdout.readline()
                assert line, f"up ended: {printed}"
                printed += line.decode()
        yield printed
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await process.communicate()
    assert process.returncode == 0


async def shell(script: str, cwd: Path, environ: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script, cwd=cwd, env=environ, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_the_commands_run_the_main_job_and_operate_it(tmp_path: Path) -> None:
    environ = environment(tmp_path)
    async with running_up(FIRST, tmp_path, environ) as printed:
        assert '"status":"completed"' in await shell(pasted(printed), tmp_path, environ)
        submitted = await shell(block("bash", "submit storyboard"), ROOT, environ)
        assert "scenes" in submitted
        operated = await shell(block("bash", "doctor --invariants"), tmp_path, environ)
        assert "I1" in operated


def pasted(printed: str) -> str:
    """The request that `up` prints."""
    return printed[printed.index("TOKEN=") : printed.rindex("ready")]


async def test_the_pipeline_of_the_readme_runs_under_the_command_of_the_readme(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(block("python", "print-label"))
    environ = environment(tmp_path)
    async with running_up(block("bash", "OUTRIDER_PIPELINES").strip(), tmp_path, environ):
        submit = """outrider submit print-label --content ann --metadata '{"copies": 3}' --wait"""
        assert "ANN" in await shell(submit, tmp_path, environ)


async def test_the_topics_are_made_once(tmp_path: Path, fake: FakePubSub) -> None:
    environ = environment(tmp_path, PUBSUB_EMULATOR_HOST=fake.host)
    provision = block("bash", "outrider provision")
    made = await shell(provision, tmp_path, environ)
    assert all(f"created {kind} pipeline-jobs" in made for kind in ("topic", "subscription"))
    assert "created" not in await shell(provision, tmp_path, environ)


async def test_the_library_call_of_the_readme_enqueues(conn: Conn) -> None:
    scope: dict[str, Any] = {}
    exec(block("python", "place_order"), scope)  # noqa: S102 - the README is ours
    job_id = UUID(await scope["place_order"](conn, "ann"))
    [view] = await jobs.read(conn, [(job_id, "ann")])
    assert view is not None
    assert view.preset in load_pipelines([])


async def test_the_sql_of_the_readme_enqueues(conn: Conn) -> None:
    await conn.execute(block("sql", "outrider_enqueue").encode())
    assert await fetchone(conn, "SELECT user_id, status FROM outbox") == ("ann", "waiting")


def test_the_diagram_shows_every_legal_transition_and_no_other() -> None:
    drawn = re.findall(r"^ +(\S+) --> (\w+)", block("mermaid", "stateDiagram"), re.MULTILINE)
    edges = {(None if a == "[*]" else JobState(a), JobState(b)) for a, b in drawn}
    assert edges == {(a, b) for a, after in TRANSITIONS.items() for b in after}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert block("bash", "./ops/test").strip() in (ROOT / ".ci/run").read_text()


def test_no_block_is_left_out() -> None:
    tested = ("./ops/up", "./ops/test", "submit storyboard", "doctor", "print-label", "place_order",
              "outrider_enqueue", "stateDiagram", "provision")  # fmt: skip
    assert [text for _, text in BLOCKS if not any(part in text for part in tested)] == []


def test_every_setting_is_explained() -> None:
    from engine.settings import Settings

    readme = (ROOT / "README.md").read_text()
    names = [field.alias or name for name, field in Settings.model_fields.items()]
    last_words = {name: f"_{name.upper().rpartition('_')[2]}" for name in names}
    assert {name for name, word in last_words.items() if word not in readme} == set()
