"""The rows of the table: what roles, databases, service files, variables, URLs, encodings and poolers may do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ops.harness.postgres import Databases
from tests.support.pgbouncer import pgbouncer

APP: Final = "app"
PATH: Final = f"-c search_path={APP}"
ENCODING_FIX: Final = "create a database with ENCODING 'UTF8' TEMPLATE template0"
SCHEMA_FIX: Final = "run `outrider migrate up`"
"""What an application is told whose database was refused: the command then says why."""
POOLER_FIX: Final = "point OUTRIDER_DATABASE_URL directly at PostgreSQL, or use pool_mode=session"

TIMEOUTS: Final = {
    "statement_timeout": "1s",
    "lock_timeout": "1s",
    "idle_session_timeout": "1s",
    "idle_in_transaction_session_timeout": "1s",
}
PLANS: Final = {
    f"enable_{plan}": "off" for plan in ("indexscan", "indexonlyscan", "bitmapscan", "nestloop", "sort")
}
TEXTS: Final = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Tokyo",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "standard_conforming_strings": "off",
    "client_min_messages": "error",
}
ISOLATION: Final = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
}


@dataclass(frozen=True)
class Row:
    """One way that sessions may be. `fix` is in the refusal of what cannot be served; without it all must work."""

    name: str
    role: Mapping[str, str] = field(default_factory=dict)
    database: Mapping[str, str] = field(default_factory=dict)
    service: str = ""
    options: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    pooler: Literal["session", "transaction"] | None = None
    ignored: str = ""
    fix: str = ""


class Place(NamedTuple):
    """Where the row's installation is to be: by `url` for all processes, with the variables of `environ`."""

    url: str
    direct_url: str
    environ: dict[str, str]


ROWS: Final = (
    Row("nothing special"),
    *(Row(f"role: {name}={value}", role={name: value}) for name, value in TEXTS.items()),
    Row("role: array_nulls=off", role={"array_nulls": "off", "transform_null_equals": "on"}),
    Row("role: client_encoding=LATIN1", role={"client_encoding": "LATIN1"}),
    Row("role: serializable", role=ISOLATION),
    Row("role: repeatable read", role={"default_transaction_isolation": "repeatable read"}),
    Row("role: time-outs of a second", role=TIMEOUTS),
    Row("role: no plan by index", role=PLANS),
    Row("role: search_path", role={"search_path": APP}),
    Row("database: all of these", database={**TEXTS, **ISOLATION, **TIMEOUTS, **PLANS, "array_nulls": "off"}),
    Row("service file: search_path", service=PATH),
    Row(
        "service file: all of these",
        service=" ".join(f"-c {k}={v.replace(' ', '')}" for k, v in TEXTS.items()),
    ),
    Row("PGOPTIONS: search_path", environ={"PGOPTIONS": PATH}),
    Row(
        "PGDATESTYLE, PGTZ, PGCLIENTENCODING",
        environ={"PGDATESTYLE": "German", "PGTZ": "Asia/Tokyo", "PGCLIENTENCODING": "LATIN1"},
    ),
    Row("URL: search_path", options=PATH),
    Row("OUTRIDER_SCHEMA", environ={"OUTRIDER_SCHEMA": "order"}, role={"search_path": APP}),
    Row("OUTRIDER_SCHEMA, service file", environ={"OUTRIDER_SCHEMA": "installed"}, service=PATH),
    Row("LATIN1 database", encoding="LATIN1", fix=ENCODING_FIX),
    Row("SQL_ASCII database", encoding="SQL_ASCII", fix=ENCODING_FIX),
    Row("PgBouncer, session", pooler="session"),
    Row("PgBouncer, session, options ignored", pooler="session", ignored="options,extra_float_digits"),
    Row("PgBouncer, session, OUTRIDER_SCHEMA", pooler="session", environ={"OUTRIDER_SCHEMA": "installed"}),
    Row("PgBouncer, session, role: all of these", pooler="session", role={**TEXTS, **ISOLATION, **PLANS}),
    Row("PgBouncer, transaction", pooler="transaction", fix=POOLER_FIX),
)


@contextmanager
def prepared(row: Row, databases: Databases, folder: Path) -> Iterator[Place]:
    """A database and a role of its own for the row, with a schema and a table of the application's."""
    name = databases.create(encoding=row.encoding)
    role, database = sql.Identifier(f"{name}_role"), sql.Identifier(name)
    with ExitStack() as stack:
        # Not the row's own database, which is dropped before the role that owns it.
        admin = psycopg.connect(make_conninfo(databases.url(name), dbname="template1"), autocommit=True)
        stack.enter_context(admin)
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE pg_read_all_stats").format(role))
        stack.callback(admin.execute, sql.SQL("DROP ROLE {}").format(role))
        stack.callback(databases.drop, name)
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, role))
        _make_tables(databases.url(name), role)
        for kind, owner, settings in (("ROLE", role, row.role), ("DATABASE", database, row.database)):
            for setting, value in settings.items():
                alter = sql.SQL("ALTER {} {} SET {} TO {}")
                admin.execute(alter.format(sql.SQL(kind), owner, sql.Identifier(setting), sql.Literal(value)))
        direct = make_conninfo(databases.url(name), user=f"{name}_role")
        url = direct
        if row.pooler:
            url = stack.enter_context(pgbouncer(direct, row.pooler, row.ignored))
        yield _place(row, url, direct, folder)


def _make_tables(url: str, owner: sql.Identifier) -> None:
    """The application's tables: effects write to the one that the role's search_path finds."""
    with psycopg.connect(url) as conn:
        conn.execute(sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(APP), owner))
        for table in (sql.Identifier(APP, "ledger"), sql.Identifier("public", "ledger")):
            conn.execute(sql.SQL("CREATE TABLE {} (job_id uuid NOT NULL, content text)").format(table))
            conn.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table, owner))


def _place(row: Row, url: str, direct: str, folder: Path) -> Place:
    environ = dict(row.environ)
    if row.service:
        lines = [f"{key}={value}" for key, value in conninfo_to_dict(url).items()]
        file = folder / "services"
        file.write_text("\n".join(["[here]", *lines, f"options={row.service}"]))
        environ["PGSERVICEFILE"] = str(file)
        url = "service=here"
    if row.options:
        url = make_conninfo(url, options=row.options)
    return Place(url, direct, environ)
