"""Outrider's part in the rivals' benchmark enqueues and runs each job that is asked of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ops.bench import rivals
from ops.harness.process import ROOT
from ops.waiting import eventually

pytestmark = pytest.mark.skipif(
    not rivals.FOLDER.is_dir(), reason="the rivals' benchmark is not beside this checkout"
)

JOBS = 30


@pytest.mark.parametrize("mode", ["single", "tx", "bulk"])
def test_each_job_is_enqueued_and_run_once(empty_database_url: str, tmp_path: Path, mode: str) -> None:
    described = rivals.description()
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        [folder] = conn.execute("SHOW data_directory").fetchone() or [""]
        environ = os.environ | {"PEERBENCH_DSN": empty_database_url, "PEERBENCH_PGDATA": folder}

        def call(*arguments: str) -> dict[str, Any]:
            command = [*described["cmd"], *arguments]
            done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, timeout=60, check=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        def one(sql: str) -> Any:
            return (conn.execute(sql.encode()).fetchone() or [None])[0]

        assert call("setup")["ok"]
        produced = call("produce", "--mode", mode, "--n", str(JOBS), "--warm", "0")
        assert (produced["n"], one(described["total"]), one(described["open"])) == (JOBS, JOBS, 1)
        trace = tmp_path / "trace.json"
        command = [*described["cmd"], "work", "--trace", str(trace)]
        with subprocess.Popen(command, env=environ, cwd=ROOT, stdin=subprocess.PIPE, text=True) as worker:
            assert worker.stdin is not None
            worker.stdin.write("GO\n")
            worker.stdin.flush()
            eventually(lambda: one(described["open"]) is None)
            worker.communicate("STOP\n", timeout=30)
        started = [number for number, _ in json.loads(trace.read_text())["starts"]]
        assert sorted(started) == list(range(JOBS))
        assert (one(described["done"]), one(described["bad"])) == (JOBS, 0)
