"""Outrider's statements in PostgreSQL, and what slows them down."""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import BYTES, NONE_AT_ALL, PER_SECOND, SECONDS, above, graph, number
from ops.grafana.promql import mean, quantile, rate, sampled, total

POOL = "outrider_database_pool_connections"
STATEMENT = "outrider_database_statement_seconds"
DEAD = "outrider_database_dead_tuples"
OLDEST = "outrider_database_oldest_transaction_seconds"
XMIN = "outrider_database_oldest_xmin_transactions"

STATE = Row(
    "State",
    [
        number(
            "Oldest transaction",
            "The age of the oldest open transaction. Vacuum cannot remove rows that died since it began.",
            {"": sampled(OLDEST)},
            unit=SECONDS,
            limits=above(60, 600),
            alerts=["OutriderXminHeldBack"],
        ),
        number(
            "Oldest snapshot",
            "How many transactions ago the oldest snapshot was taken. Replication slots and standbys hold some too.",
            {"": sampled(XMIN)},
            limits=above(1_000_000, 5_000_000),
            alerts=["OutriderXminHeldBack"],
        ),
        number(
            "Dead rows",
            "Rows of the hot tables that vacuum has not removed.",
            {"{{table}}": sampled(DEAD, "table")},
            limits=above(20_000, 100_000),
            alerts=["OutriderBloat"],
        ),
        number(
            "Waiting for a connection",
            "Callers that wait for a connection of their process's pool. The pool `effects` is small on purpose.",
            {"{{pool}}": total(POOL, "pool", 'state="waiting"')},
            limits=NONE_AT_ALL,
            alerts=["OutriderPoolExhausted", "OutriderEffectsQueue"],
        ),
    ],
    height=5,
)

STATEMENTS = Row(
    "Statements",
    [
        graph(
            "A second",
            "Statements a second, by name.",
            {"{{statement}}": rate(f"{STATEMENT}_count", "statement")},
            unit=PER_SECOND,
        ),
        graph(
            "99 of 100",
            "How long the slowest hundredth of each statement takes at least.",
            {"{{statement}}": quantile(0.99, STATEMENT, "statement")},
            unit=SECONDS,
            limits=above(0.25, 1),
            alerts=["OutriderApiSlow", "OutriderRecordSlow"],
        ),
        graph(
            "Connections busy at once",
            "Seconds a second that each statement runs: how many connections it keeps busy.",
            {"{{statement}}": rate(f"{STATEMENT}_sum", "statement")},
            stacked=True,
        ),
    ],
)

GROUPS = Row(
    "Groups that share a commit",
    [
        graph(
            "Rows of one commit",
            "The mean number of rows. It grows with the load by itself.",
            {"{{batch}}": mean("outrider_batch_rows", "batch")},
        ),
        graph(
            "One commit, 99 of 100",
            "How long one commit takes: the database's part of a submission or of an outcome.",
            {"{{batch}}": quantile(0.99, "outrider_batch_write_seconds", "batch")},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderSubmitBurnsFast", "OutriderRecordSlow"],
        ),
        graph(
            "One look for due jobs, 99 of 100",
            "How long one scan takes: from the cursor, or a sweep of the lanes from their start. It grows with dead "
            "rows at the head of the queue. Empty in Pub/Sub mode, where messages name the jobs.",
            {"{{scan}}": quantile(0.99, "outrider_claim_seconds", "scan")},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderBloat"],
        ),
    ],
)

STORAGE = Row(
    "Storage",
    [
        graph(
            "Dead rows",
            "Rows of the hot tables that vacuum has not removed. The relay starts a vacuum at 10,000 dead rows of "
            "`outbox`.",
            {"{{table}}": sampled(DEAD, "table")},
            limits=above(20_000, 100_000),
            alerts=["OutriderBloat"],
        ),
        graph(
            "Oldest transaction",
            "The age of the oldest open transaction. Vacuum cannot remove rows that died since it began.",
            {"age": sampled(OLDEST)},
            unit=SECONDS,
            limits=above(60, 600),
            alerts=["OutriderXminHeldBack"],
        ),
        graph(
            "Oldest snapshot",
            "Its age in transactions. Vacuum cannot remove rows that died since it was taken. Sessions, replication "
            "slots, standbys and prepared transactions hold snapshots.",
            {"transactions": sampled(XMIN)},
            limits=above(1_000_000, 5_000_000),
            alerts=["OutriderXminHeldBack"],
        ),
        graph(
            "Tables with their indexes",
            "The size of each table. Hot tables should stay small, whatever the number of finished jobs.",
            {"{{table}}": sampled("outrider_database_table_bytes", "table")},
            unit=BYTES,
            alerts=["OutriderBloat"],
        ),
    ],
)

POOLS = Row(
    "Pools",
    [
        graph(
            "Connections",
            "Connections of all processes, by state.",
            {"{{pool}} {{state}}": total(POOL, "pool, state", 'state=~"open|idle"')},
        ),
        graph(
            "Waiting for a connection",
            "Callers that wait for a connection, by process.",
            {"{{instance}} {{pool}}": total(POOL, "instance, pool", 'state="waiting"')},
            limits=NONE_AT_ALL,
            alerts=["OutriderPoolExhausted", "OutriderEffectsQueue"],
        ),
    ],
)

BOARD = Board(
    "outrider-postgres",
    "Outrider: Postgres",
    "Outrider's statements in PostgreSQL, and what slows them down.",
    [STATE, STATEMENTS, GROUPS, STORAGE, POOLS],
)
