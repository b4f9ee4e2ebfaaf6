"""What each process needs of the role that it connects as, and the GRANT for what the role lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection, errors, sql

from engine.errors import SchemaMismatch

NEEDS: Final[Mapping[str, Mapping[str, str]]] = {
    "web": {
        "_yoyo_migration": "SELECT",
        "jobs": "SELECT, INSERT",
        "job_status": "SELECT",
        "outbox": "SELECT, INSERT, UPDATE, DELETE",
        "outbox_events": "SELECT, INSERT",
        "outbox_position": "USAGE",
        "hints_wanted_until": "SELECT",
        "job_results": "SELECT, INSERT, UPDATE, DELETE",
        "job_state_records": "SELECT, INSERT",
        "job_progress": "SELECT",
        "idempotency_keys": "SELECT, INSERT, UPDATE",
        "workers": "SELECT",
        "relay_status": "SELECT",
    },
    "worker": {
        "_yoyo_migration": "SELECT",
        "jobs": "SELECT",
        "outbox": "SELECT, UPDATE, DELETE",
        "outbox_events": "SELECT, INSERT",
        "hints_wanted_until": "SELECT, UPDATE",
        "job_results": "SELECT, INSERT",
        "job_state_records": "SELECT, INSERT",
        "job_progress": "SELECT, INSERT, UPDATE",
        "workers": "SELECT, INSERT, UPDATE, DELETE",
    },
    # Locking the rows that are deleted takes the right to UPDATE. Without Pub/Sub a relay is a worker, too.
    "relay": {
        "_yoyo_migration": "SELECT",
        "jobs": "SELECT, DELETE",
        "outbox": "SELECT, UPDATE, DELETE",
        "outbox_events": "SELECT, INSERT, UPDATE, DELETE",
        "outbox_position": "USAGE",
        "hints_wanted_until": "SELECT, UPDATE",
        "job_results": "SELECT, INSERT, UPDATE, DELETE",
        "job_state_records": "SELECT, INSERT, DELETE",
        "job_progress": "SELECT, INSERT, UPDATE, DELETE",
        "idempotency_keys": "SELECT, UPDATE, DELETE",
        "workers": "SELECT, INSERT, UPDATE, DELETE",
        "relay_status": "SELECT, INSERT, UPDATE, DELETE",
    },
    # What the command line needs beyond what it shares with the processes.
    "operator": {
        "_yoyo_migration": "SELECT",
        "outbox": "SELECT",
        "outbox_events": "SELECT, UPDATE, DELETE",
        "operator_actions": "SELECT, INSERT",
    },
}
"""The rights by process and relation."""
PROCESSES: Final = ("web", "worker", "relay")

# A relation that is missing is the schema's fault, not the role's.
LACKING: LiteralString = """
SELECT need.relation, array_agg(need.privilege ORDER BY need.no), c.relkind = 'S', current_schema(), current_user
FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS need(relation, privilege, no)
JOIN pg_class c ON c.oid = to_regclass(need.relation)
WHERE NOT CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, need.privilege)
               WHEN need.privilege = 'DELETE' THEN has_table_privilege(c.oid, need.privilege)
               ELSE has_any_column_privilege(c.oid, need.privilege) END
GROUP BY need.relation, c.relkind
ORDER BY need.relation"""

WHO: LiteralString = """
SELECT current_user, current_schema(), current_setting('search_path'), current_setting('transaction_read_only') = 'on',
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"""


async def check(conn: AsyncConnection[Any], processes: Iterable[str]) -> None:
    """Raise SchemaMismatch, with the missing GRANTs, unless the role has the rights of all `processes`. One query."""
    needs = sorted(
        {
            (name, right)
            for process in processes
            for name, rights in NEEDS[process].items()
            for right in rights.split(", ")
        }
    )
    cursor = await conn.execute(LACKING, [[name for name, _ in needs], [right for _, right in needs]])
    lacking = await cursor.fetchall()
    if not lacking:
        return
    role = lacking[0][4]
    found = "; ".join(f"{', '.join(rights)} on {name}" for name, rights, *_ in lacking)
    grants = "; ".join(
        _grant(rights, "SEQUENCE" if sequence else "TABLE", sql.Identifier(schema, name), role)
        for name, rights, sequence, schema, _ in lacking
    )
    raise SchemaMismatch(f"the role {role} lacks {found}", f"as the owner of the tables, run `{grants}`")


REFUSED: Final = (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege, errors.InvalidSchemaName)
"""What a server answers to a role that may not change the schema."""


@contextmanager
def explained(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Turn the refusal of a change of the schema into SchemaMismatch, with what to do about it."""
    try:
        yield
    except REFUSED as error:
        raise _refusal(conn, error.diag.message_primary or str(error)) from error


def unusable(role: str, search_path: str) -> SchemaMismatch:
    """The fault of a role that can use no schema: to it, every table seems to be missing."""
    return SchemaMismatch(
        f"the role {role} can use no schema of its search_path ({search_path})",
        f"create the schema, or as its owner run `GRANT USAGE ON SCHEMA … TO {_name(role)}`",
    )


def _refusal(conn: psycopg.Connection[Any], found: str) -> SchemaMismatch:
    [(role, schema, search_path, read_only, may_create)] = conn.execute(WHO).fetchall()
    if schema is None:
        return unusable(role, search_path)
    if read_only:
        fix = "use the primary, or reset default_transaction_read_only of the role or the database"
    elif may_create:
        fix = "run it as the role that owns the tables"
    else:
        grant = _grant(["USAGE", "CREATE"], "SCHEMA", sql.Identifier(schema), role)
        fix = f"as the owner of the schema, run `{grant}`"
    return SchemaMismatch(found, fix)


def _grant(rights: Iterable[str], kind: str, name: sql.Identifier, role: str) -> str:
    return f"GRANT {', '.join(rights)} ON {kind} {name.as_string(None)} TO {_name(role)}"


def _name(role: str) -> str:
    return sql.Identifier(role).as_string(None)
