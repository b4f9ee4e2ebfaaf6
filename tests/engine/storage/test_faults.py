"""What is at fault when a statement fails, and how the log tells of it."""

from __future__ import annotations

import psycopg
import pytest
import structlog
from psycopg import errors
from structlog.testing import capture_logs

from engine.errors import DatabaseUnavailable
from engine.storage.faults import Blame, blame, by_blame, told
from tests.support.database import Conn

FAILURES = {
    "SELECT no_such_column FROM jobs": Blame.CODE,
    "SELECT FROM no_such_table": Blame.CODE,
    "SELECT no_such_function()": Blame.CODE,
    "SET ROLE pg_monitor; SELECT FROM jobs": Blame.CODE,
    "INSERT INTO jobs (id) VALUES (gen_random_uuid())": Blame.CODE,
    "INSERT INTO _migration_checksum SELECT * FROM _migration_checksum": Blame.CODE,
    "SELECT 1 / 0": Blame.VALUE,
    "SELECT 'x'::uuid": Blame.VALUE,
    "ALTER TABLE jobs ADD CHECK (false); SELECT outrider_enqueue('a', 'p', 'x')": Blame.VALUE,
    "SET transaction_read_only = on; DELETE FROM jobs": Blame.SERVER,
    "SET statement_timeout = 1; SELECT pg_sleep(10)": Blame.SERVER,
    "SELECT pg_terminate_backend(pg_backend_pid())": Blame.SERVER,
}


@pytest.mark.parametrize(("statement", "expected"), FAILURES.items(), ids=FAILURES)
async def test_a_failed_statement_is_blamed_on_the_server_on_a_value_or_on_our_code(
    conn: Conn, statement: str, expected: Blame
) -> None:
    with pytest.raises(psycopg.Error) as failed:
        await conn.execute(statement.encode())
    assert blame(failed.value) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DatabaseUnavailable("no answer"), Blame.SERVER),
        (psycopg.OperationalError("the connection is closed"), Blame.SERVER),
        (errors.TooManyConnections(), Blame.SERVER),
        (errors.DeadlockDetected(), Blame.SERVER),
        (errors.LockNotAvailable(), Blame.SERVER),
        (psycopg.DataError("text fields cannot contain NUL"), Blame.VALUE),
        (psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed"), Blame.CODE),
        (errors.InFailedSqlTransaction(), Blame.CODE),
        (TypeError(), Blame.CODE),
    ],
    ids=repr,
)
def test_a_failure_without_a_server_is_blamed_too(error: Exception, expected: Blame) -> None:
    assert blame(error) is expected


def test_an_outage_is_a_warning_and_a_fault_of_our_own_an_error_with_its_traceback() -> None:
    outage, bug = DatabaseUnavailable("away\n"), errors.UndefinedColumn("no such column")
    with capture_logs() as lines:
        log = structlog.get_logger()
        for error in (outage, bug):
            log_at = by_blame(log, error)
            log_at("claim.failed")
    assert [(line["log_level"], line["error"], line.get("exc_info")) for line in lines] == [
        ("warning", "away", None),
        ("error", "no such column", bug),
    ]


def test_a_failure_that_lasts_is_told_once_until_something_else_is_at_fault() -> None:
    outage, bug = DatabaseUnavailable("away"), errors.UndefinedColumn()
    assert not told(None, outage)
    assert told(outage, DatabaseUnavailable("still away"))
    assert not told(outage, bug)
    assert told(bug, errors.UndefinedColumn())
    assert not told(bug, errors.InsufficientPrivilege())
    assert not told(bug, ZeroDivisionError())
