"""No text of a user stops a command, whatever the terminal can show."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from engine.moves.enqueue import enqueue
from engine.tables.relay_status import RelayStatus, report
from tests.ops.cli.conftest import SECRET
from tests.support.commands import OUTRIDER, environment
from tests.support.database import Conn, new

TEXT = "größer 日本 😀"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
async def test_every_command_prints_what_the_terminal_lacks_as_escapes(
    conn: Conn, database_url: str, tmp_path: Path, encoding: str
) -> None:
    job = await enqueue(conn, new(user_id=TEXT, content=TEXT, metadata={"a": TEXT}))
    failed = await enqueue(conn, new(user_id=TEXT))
    await conn.execute(
        "WITH gone AS (DELETE FROM outbox WHERE job_id = %s RETURNING job_id, user_id, run_at)"
        " INSERT INTO job_results (job_id, user_id, state, error, attempt, errors, crashes, version, run_at)"
        """ SELECT job_id, user_id, 'FAILED', '{"type": "E", "message": "日本 😀", "attempt": 1}', 1, 1, 0, 1, run_at"""
        " FROM gone",
        [failed.id],
    )
    await report(conn, TEXT, [RelayStatus("maintenance", "failing", 60, TEXT)])
    environ = environment(tmp_path, {"database_url": database_url, "jwt_secret": SECRET})
    environ |= {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def called(*words: str) -> str:
        said = subprocess.run(
            [*OUTRIDER, *words], cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=False
        )
        assert b"Traceback" not in said.stderr, said.stderr.decode()
        assert said.stdout, words
        return said.stdout.decode(encoding)

    commands = (
        ["jobs", "show", str(job.id)],
        ["jobs", "list"],
        ["dead-letters", "list"],
        ["explain", str(failed.id)],
        ["doctor"],
    )
    for words in commands:
        assert "\ufffd" not in called(*words)
        json.loads(called(*words, "--json"))
    assert json.loads(called("jobs", "show", str(job.id), "--json"))["content"] == TEXT
    assert "--json" in called("jobs", "show", "--help")


def test_an_argument_that_is_no_text_is_refused_without_a_traceback(tmp_path: Path) -> None:
    words = [os.fsencode(word) for word in (*OUTRIDER, "submit", "echo", "--metadata")]
    said = subprocess.run(
        [*words, b"\xff"], env=environment(tmp_path, {}), capture_output=True, timeout=60, check=False
    )
    assert (said.returncode, b"Traceback" in said.stderr) == (2, False), said.stderr
