"""What Outrider asks of PostgreSQL, and what slows that down."""

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
            "What died since it began cannot be removed.",
            {"": sampled(OLDEST)},
            unit=SECONDS,
            limits=above(60, 600),
            alerts=["OutriderXminHeldBack"],
        ),
        number(
            "Oldest snapshot",
            "How many transactions ago it was taken. Replication slots and standbys hold some, too.",
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
            "Callers that queue for a connection of their process's pool. That of the effects is small on purpose.",
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
            "By name.",
            {"{{statement}}": rate(f"{STATEMENT}_count", "statement")},
            unit=PER_SECOND,
        ),
        graph(
            "99 of 100",
            "How long the slowest hundredth takes at least.",
            {"{{statement}}": quantile(0.99, STATEMENT, "statement")},
            unit=SECONDS,
            limits=above(0.25, 1),
            alerts=["OutriderApiSlow", "OutriderRecordSlow"],
        ),
        graph(
            "Connections busy at once",
            "Seconds of each statement a second: which of them the database works for.",
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
            "The mean. More under load, by itself.",
            {"{{batch}}": mean("outrider_batch_rows", "batch")},
        ),
        graph(
            "One commit, 99 of 100",
            "The database's part of a submission, and of an outcome.",
            {"{{batch}}": quantile(0.99, "outrider_batch_write_seconds", "batch")},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderSubmitBurnsFast", "OutriderRecordSlow"],
        ),
        graph(
            "One look for due jobs, 99 of 100",
            "From the cursor, or sweeping the lanes from their start: grows with dead rows at the head of the queue. "
            "Not in Pub/Sub mode, where messages name the jobs.",
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
            "Rows of the hot tables that vacuum has not removed. The relay starts one at 10,000 of the outbox.",
            {"{{table}}": sampled(DEAD, "table")},
            limits=above(20_000, 100_000),
            alerts=["OutriderBloat"],
        ),
        graph(
            "Oldest transaction",
            "What died since it began cannot be removed.",
            {"age": sampled(OLDEST)},
            unit=SECONDS,
            limits=above(60, 600),
            alerts=["OutriderXminHeldBack"],
        ),
        graph(
            "Oldest snapshot",
            "In transactions: vacuum may remove nothing that died since it was taken. Sessions, replication slots, "
            "standbys and prepared transactions hold it.",
            {"transactions": sampled(XMIN)},
            limits=above(1_000_000, 5_000_000),
            alerts=["OutriderXminHeldBack"],
        ),
        graph(
            "Tables with their indexes",
            "The hot ones should stay small, whatever the number of finished jobs.",
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
            "Of all processes, by state.",
            {"{{pool}} {{state}}": total(POOL, "pool, state", 'state=~"open|idle"')},
        ),
        graph(
            "Waiting for a connection",
            "Callers in a queue, by process.",
            {"{{instance}} {{pool}}": total(POOL, "instance, pool", 'state="waiting"')},
            limits=NONE_AT_ALL,
            alerts=["OutriderPoolExhausted", "OutriderEffectsQueue"],
        ),
    ],
)

BOARD = Board(
    "outrider-postgres",
    "Outrider: Postgres",
    "What Outrider asks of PostgreSQL, and what slows that down.",
    [STATE, STATEMENTS, GROUPS, STORAGE, POOLS],
)
