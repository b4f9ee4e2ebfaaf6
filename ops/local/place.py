"""Chooses the programs that run, the account that runs them and the folder of their files."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import quote

from engine.errors import ConfigurationError
from ops.local.installs import Install, found

# PostgreSQL refuses to run as root. Root's data goes here if PostgreSQL's account cannot enter the given folder.
ROOTS_HOME = Path("/var/lib/outrider")
UNPRIVILEGED = ("postgres", "nobody")
SOCKET = ".s.PGSQL.5432"
MAX_SOCKET_PATH = 100
CLUSTERS = "postgres-*/cluster"

ELSEWHERE = "set OUTRIDER_DATA_DIR to another directory"
NO_PROGRAMS = (
    "PostgreSQL is not installed: install outrider[local] or PostgreSQL 15+, or set OUTRIDER_DATABASE_URL"
)
NO_ENTRY = "has no entry in /etc/passwd, which initdb needs: add one, or set OUTRIDER_DATABASE_URL"


@dataclass(frozen=True, slots=True)
class Account:
    uid: int
    gid: int

    @classmethod
    def of(cls, entry: pwd.struct_passwd) -> Self:
        return cls(entry.pw_uid, entry.pw_gid)

    def can_enter(self, folder: Path) -> bool:
        """Whether this account may enter every folder down to `folder`. Group rights are ignored."""
        return all(self._may(part.stat(), stat.S_IXUSR, stat.S_IXOTH) for part in (folder, *folder.parents))

    def can_run(self, program: Path) -> bool:
        return self.can_enter(program.parent) and self._may(program.stat(), stat.S_IXUSR, stat.S_IXOTH)

    def _may(self, entry: os.stat_result, owner: int, other: int) -> bool:
        return bool(entry.st_mode & (owner if entry.st_uid == self.uid else other))


@dataclass(frozen=True, slots=True)
class Place:
    """The home folder of one cluster. The server runs as `account`, or as the current user if it is None."""

    home: Path
    install: Install
    account: Account | None

    @property
    def cluster(self) -> Path:
        return self.home / "cluster"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def sockets(self) -> Path:
        """A folder for this server only. Its path is short enough for a socket."""
        folder = self.home / "sockets"
        if len(os.fsencode(folder / SOCKET)) <= MAX_SOCKET_PATH:
            return folder
        # `prepare` checks the owner and the mode of the folder.
        return Path("/tmp") / f"outrider-{self._uid}-{_digest(self.home)}"  # noqa: S108

    @property
    def url(self) -> str:
        return f"postgresql://outrider@/outrider?host={quote(str(self.sockets), safe='')}"

    @property
    def _uid(self) -> int:
        return self.account.uid if self.account else os.geteuid()

    def prepare(self) -> None:
        """Create the folders. Raises ConfigurationError if they belong to another user."""
        try:
            _make(self.home, self.account)
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            if self.account and self.sockets.lstat().st_uid == 0:
                os.chown(self.sockets, self.account.uid, self.account.gid)
        except OSError as error:
            raise ConfigurationError([f"the data directory cannot be created: {error}"]) from error
        made = self.sockets.lstat()
        if not stat.S_ISDIR(made.st_mode) or made.st_uid != self._uid or made.st_mode & 0o077:
            raise ConfigurationError([f"{self.sockets} is another user's: {ELSEWHERE}"])

    def with_reachable_programs(self) -> Place:
        """Copy bundled programs to the home folder if the account cannot run them in their own folder.

        The caller holds the server's lock, so no other process uses an incomplete copy.
        """
        binaries = self.install.binaries
        if not self.account or not self.install.bundled or self.account.can_run(binaries / "postgres"):
            return self
        package, copy = binaries.parents[1], self.home / f"software-{self.install.version}"
        if not copy.exists():
            part = self.home / "software.new"
            shutil.rmtree(part, ignore_errors=True)
            # The copy keeps the package's layout, because the programs find their libraries by relative paths.
            for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
                target = part / folder.relative_to(package.parent)
                shutil.copytree(folder, target, copy_function=_link)
            for path in (part, *part.rglob("*")):
                path.chmod(path.stat().st_mode | (path.stat().st_mode & 0o500) >> 6)
            part.rename(copy)
        reachable = copy / binaries.relative_to(package.parent)
        return replace(self, install=replace(self.install, binaries=reachable))


def choose(data_dir: Path) -> Place:
    """The place of the first programs that have a cluster in `data_dir`, else of the first programs found.

    Raises ConfigurationError if there are no programs, or none of the version of the data.
    """
    installs = found()
    if not installs:
        raise ConfigurationError([NO_PROGRAMS])
    data_dir, account = _whose(data_dir.absolute())
    places = [Place(data_dir / f"postgres-{one.major}", one, account) for one in installs]
    used = [place for place in places if place.cluster.exists()]
    clusters = [] if used else sorted(path.parent.name for path in data_dir.glob(CLUSTERS))
    if clusters:
        here = ", ".join(install.version for install in installs)
        problem = f"{data_dir} holds {', '.join(clusters)}, and the installed PostgreSQL is {here}"
        raise ConfigurationError([f"{problem}: install the version of the data, or {ELSEWHERE}"])
    return (used or places)[0]


def _whose(data_dir: Path) -> tuple[Path, Account | None]:
    """The folder that the data goes to, and the account that the server must run as."""
    uid = os.geteuid()
    if uid != 0:
        try:
            pwd.getpwuid(uid)
        except KeyError:
            raise ConfigurationError([f"uid {uid} {NO_ENTRY}"]) from None
        return data_dir, None
    account = _owner(data_dir) or _unprivileged()
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    if account.can_enter(existing):
        return data_dir, account
    data_dir = ROOTS_HOME / _digest(data_dir)
    return data_dir, _owner(data_dir) or account


def _owner(data_dir: Path) -> Account | None:
    """The owner of an existing cluster."""
    for cluster in data_dir.glob(CLUSTERS):
        return Account(cluster.stat().st_uid, cluster.stat().st_gid)
    return None


def _unprivileged() -> Account:
    for name in UNPRIVILEGED:
        with suppress(KeyError):
            return Account.of(pwd.getpwnam(name))
    raise ConfigurationError(
        [f"PostgreSQL refuses to run as root, and there is no user {' or '.join(UNPRIVILEGED)}"]
    )


def _link(source: str, target: str) -> None:
    """Make a hard link if possible, else a copy. Writing 40 MB would delay the first fsync by seconds."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _make(folder: Path, account: Account | None) -> None:
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(exist_ok=True)
        if account:
            part.chmod(0o755)


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
