"""Each process and call works in each session, or is refused with the fix; there is nothing between."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.harness.postgres import Databases
from tests.system.sessions.cells import WORKS, cells
from tests.system.sessions.rows import ROWS, SCHEMA_FIX, Row, prepared

pytestmark = pytest.mark.long


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_session_works_or_is_refused_with_the_fix(
    row: Row, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(row, databases, tmp_path) as place:
        for name, value in place.environ.items():
            # The application's own connections are of this process.
            monkeypatch.setenv(name, value)
        found = cells(place, tmp_path)
    fixes = (row.fix, SCHEMA_FIX) if row.fix else ()
    shown = {
        column: "refused" if any(fix in said for fix in fixes) else said for column, said in found.items()
    }
    print("|", " | ".join([row.name, *shown.values()]), "|")
    assert set(shown.values()) <= {WORKS, "refused"}
    assert shown["web"] == shown["doctor"] == shown["effects"] == ("refused" if row.fix else WORKS)
