"""What a schema is, read from the catalogs: two databases with equal pictures have equal schemas."""

from __future__ import annotations

import psycopg

QUERIES = {
    "relations": """
        SELECT relname, relkind, relpersistence, reloptions, pg_get_viewdef(oid)
        FROM pg_class WHERE relnamespace = 'public'::regnamespace""",
    "columns": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               a.attidentity, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "indexes": """
        SELECT i.indrelid::regclass::text, pg_get_indexdef(c.oid), i.indisvalid
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = 'public'::regnamespace""",
    "enums": """
        SELECT t.typname, array_agg(e.enumlabel ORDER BY e.enumsortorder)
        FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.typname""",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
    "triggers": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal""",
}

Picture = dict[str, list[tuple[object, ...]]]


def picture(url: str) -> Picture:
    """The public schema without the bookkeeping of migrations, whose tables begin with an underscore."""
    with psycopg.connect(url, autocommit=True) as conn:
        rows = {kind: conn.execute(query).fetchall() for kind, query in QUERIES.items()}
    return {
        kind: sorted((row for row in found if row[0][0] != "_"), key=repr) for kind, found in rows.items()
    }
