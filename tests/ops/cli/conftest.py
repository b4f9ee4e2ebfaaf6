"""The command line, called in a thread of the tests' process; and a folder for real processes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from ops.cli.app import run
from tests.ops.cli import pipelines
from tests.support.commands import gone, living

SECRET = "an HS256 secret that is long enough"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Outrider = Callable[..., Coroutine[Any, Any, Said]]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets OUTRIDER_* variables; the data directory is an empty one."""

    def given(**values: object) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"OUTRIDER_{name.upper()}", str(value))

    given(data_dir=tmp_path)
    return given


@pytest.fixture
def outrider(settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Outrider:  # noqa: ARG001 - the data directory
    """`await outrider("jobs", "list")`: the command's exit code and what it printed. Standard input is empty."""
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(arguments: list[str]) -> Said:
        logging = structlog.get_config()
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit_,
        ):
            run(arguments)
        structlog.configure(**logging)
        code = exit_.value.code
        return Said(int(code or 0), *(each.buffer.getvalue().decode() for each in (out, err)))

    async def called(*arguments: object) -> Said:
        async with asyncio.timeout(30):
            return await asyncio.to_thread(call, [str(each) for each in arguments])

    return called


@pytest.fixture
def configured(settings: Callable[..., None], database_url: str) -> None:
    """A migrated database and a secret."""
    settings(database_url=database_url, jwt_secret=SECRET)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where, unlike in pytest's own folders, the unprivileged server of a run by root may go."""
    made = Path(tempfile.mkdtemp(prefix="outrider-up-"))
    made.chmod(0o755)
    (made / "web").mkdir()
    (made / "web" / "__init__.py").write_text("raise ImportError('this is the user's, not ours')")
    shutil.copy(pipelines.__file__, made / "gates.py")
    yield made
    assert gone(made), living(made)
    shutil.rmtree(made)
