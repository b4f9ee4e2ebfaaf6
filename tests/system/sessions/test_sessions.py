"""Each process and call works in each session, or is refused with the fix; there is nothing between."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.harness.postgres import Databases
from tests.system.sessions.cells import COLUMNS, WORKS, cells
from tests.system.sessions.rows import ROWS, Row, prepared

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
    shown = {
        column: "refused" if row.fix and row.fix in found[column] else found[column] for column in COLUMNS
    }
    print("|", " | ".join([row.name, *shown.values()]), "|")
    assert set(shown.values()) <= {WORKS, "refused"}
    assert shown["web"] == shown["doctor"] == shown["effects"] == ("refused" if row.fix else WORKS)
