"""`outrider worker --processes` as a real command, in the folder of an author."""

from __future__ import annotations

from pathlib import Path

from ops.waiting import eventually
from tests.ops.cli.conftest import Outrider
from tests.support.commands import gone, living, running


def test_the_workers_import_the_modules_of_the_folder_and_none_in_the_place_of_ours(
    folder: Path, database_url: str
) -> None:
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").write_text("raise ImportError('this is the user\\'s, not ours')")
    given = {"database_url": database_url, "pipelines": "gates", "admin_port": 0}
    with running(folder, "worker", "--processes", "2", **given) as worker:
        assert eventually(lambda: worker.err.count("worker.registered") == 2), worker.err
        assert '"gated"' in worker.err
        worker.process.terminate()
        worker.ends(0)
    assert gone(folder), living(folder)


async def test_a_number_of_processes_below_one_is_wrong_usage(outrider: Outrider) -> None:
    said = await outrider("worker", "--processes", "0")
    assert said.code == 2
    assert "--processes" in said.err


def test_a_supervisor_without_a_database_says_so_at_once(folder: Path) -> None:
    with running(folder, "worker", "--processes", "2", admin_port=0) as worker:
        worker.ends(2)
        assert "OUTRIDER_DATABASE_URL is not set" in worker.err
