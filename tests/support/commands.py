"""Real processes of the command line, what they print, and what is left of them."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ops.harness.process import ROOT, outrider
from ops.waiting import eventually

OUTRIDER = outrider()
ORPHAN_SECONDS = 5.0


def living(folder: Path) -> dict[int, str]:
    """Processes that have `folder` in their environment or command line, our own aside: pid → command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (entry / "environ").read_bytes().decode(errors="replace")
            if line and str(folder) in line + environ and int(entry.name) != os.getpid():
                found[int(entry.name)] = line
    return found


class Screen:
    """`outrider up` on a terminal of its own, which is what a Ctrl-C typed there goes through."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self._master, slave = pty.openpty()
        tty = os.ttyname(slave)
        # A session's leader gets the first terminal that it opens as its own.
        command = ["sh", "-c", f'exec "$@" <{tty} >{tty} 2>&1', "sh", *OUTRIDER, "up"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment(folder, settings), start_new_session=True
        )
        os.set_blocking(self._master, False)
        self._slave = slave
        self._text = ""

    @property
    def text(self) -> str:
        """Everything shown so far."""
        with suppress(OSError):  # nothing more to read now, or the terminal is closed
            while True:
                self._text += os.read(self._master, 65_536).decode(errors="replace")
        return self._text

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """Close the terminal, as its window does."""
        for end in (self._slave, self._master):
            os.close(end)
        self._slave = self._master = -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            self.hang_up()


class Command:
    """A running `outrider …` in `folder`."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def says(self, text: str) -> None:
        """Wait until it has printed `text`, on either stream."""
        assert eventually(lambda: text in self.out + self.err or self.process.poll() is not None, 30.0), (
            self.err
        )
        assert text in self.out + self.err, self.err

    def ends(self, code: int, seconds: float = 30.0) -> None:
        assert self.process.wait(seconds) == code, self.err

    def child(self, role: str) -> int:
        """The pid of the child of that role. A relay has workers of its own."""
        [pid] = [
            pid
            for pid, line in living(self._folder).items()
            if f"-m {role} " in line and f"\nPPid:\t{self.process.pid}\n" in _status(pid)
        ]
        return pid

    def shown(self, name: str) -> str:
        """What the line of that name says of an `up` that is ready."""
        [line] = [line for line in self.out.splitlines() if line.startswith(f"  {name}")]
        return line.split()[1]

    @property
    def token(self) -> str:
        return self.out.partition("\nTOKEN=")[2].partition("\n")[0]


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def environment(folder: Path, settings: Mapping[str, object]) -> dict[str, str]:
    given: dict[str, object] = {
        "data_dir": folder / "data",
        "http_port": 0,
        "admin_port": 0,
        "drain_seconds": 0,
    }
    named = {f"OUTRIDER_{name.upper()}": str(value) for name, value in (given | dict(settings)).items()}
    return os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | named


@contextmanager
def running(folder: Path, *arguments: str, **settings: object) -> Iterator[Command]:
    """Start the command with `folder` as current directory; it is killed at the end if it still runs."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [*OUTRIDER, *arguments],
            cwd=folder,
            env=environment(folder, settings),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
        )
    try:
        yield Command(process, folder)
    finally:
        process.kill()
        process.communicate()


def called(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command in `folder` to its end."""
    return subprocess.run(
        [*OUTRIDER, *arguments],
        cwd=folder,
        env=environment(folder, settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def gone(folder: Path) -> bool:
    """Whether nothing that belongs to `folder` lives after the time an orphan is allowed."""
    return eventually(lambda: not living(folder), ORPHAN_SECONDS)


def curl(line: str, job: str = "") -> Any:
    """What the pasted `curl` line asks for, asked without a shell."""
    words = shlex.split(line.replace("$JOB", job))
    headers = dict(words[n + 1].split(": ", 1) for n, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1] if "-d" in words else None
    [url] = [urlsplit(word) for word in words if word.startswith("http://")]
    connection = HTTPConnection(url.netloc, timeout=40)
    try:
        connection.request("POST" if body else "GET", url.path, body, headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def pasted(up: Command) -> tuple[str, str]:
    """The two requests that `up` prints, its token filled in."""
    lines = [line.replace("$TOKEN", up.token) for line in up.out.splitlines() if "curl -sS" in line]
    return lines[0].removeprefix("JOB=$(").partition(" | ")[0], lines[1]


def postmaster(folder: Path) -> int:
    """The pid of the PostgreSQL that an `up` in `folder` started."""
    [file] = folder.glob("data/postgres-*/cluster/postmaster.pid")
    return int(file.read_text().split()[0])
