"""The vocabulary: the reasons, the legal edges, and ids in the order of time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from engine import model
from engine.model import TERMINAL, TRANSITIONS, JobState, Reason

PENDING, PROCESSING, COMPLETED, FAILED, CANCELLED = JobState

LEGAL = {
    (None, PENDING),
    (PENDING, PROCESSING),
    (PENDING, CANCELLED),
    (PROCESSING, PENDING),
    (PROCESSING, COMPLETED),
    (PROCESSING, FAILED),
    (PROCESSING, CANCELLED),
    (FAILED, PENDING),
    (CANCELLED, PENDING),
}


@pytest.mark.parametrize(
    ("start", "end"), list(product([None, *JobState], JobState)), ids=lambda state: str(state or "new")
)
def test_a_job_changes_its_state_along_legal_edges_alone(start: JobState | None, end: JobState) -> None:
    assert (end in TRANSITIONS[start]) is ((start, end) in LEGAL)


def test_a_state_is_terminal_where_only_a_redrive_leads_on() -> None:
    assert {state for state in JobState if state.terminal} == TERMINAL == {COMPLETED, FAILED, CANCELLED}
    assert {state for state in JobState if TRANSITIONS[state] <= {PENDING}} == TERMINAL


def test_each_reason_has_words_of_its_own() -> None:
    assert {reason.name: reason.value for reason in Reason.__members__.values()} == {
        "ENQUEUED": "enqueued",
        "CLAIMED": "claimed",
        "COMPLETED": "completed",
        "FAILED": "failed",
        "ERROR": "error",
        "SNOOZED": "snoozed",
        "CANCELLED": "cancelled",
        "SHUTDOWN": "shutdown",
        "UNKNOWN": "unknown to its worker",
        "UNREADABLE": "unreadable to its worker",
        "LEASE_LOST": "lease lost",
        "LAPSED": "lapsed",
        "LAPSED_BESIDE_OTHERS": "lapsed beside others",
        "LAPSED_APART": "lapsed apart",
        "REDRIVEN": "redriven",
    }
    assert Reason.__members__.keys() == {reason.name for reason in Reason}  # an alias would share its words


def test_an_attempt_ends_by_an_outcome_of_its_own_worker() -> None:
    assert {reason for reason in Reason if reason.ends_attempt} == {
        "completed",
        "failed",
        "error",
        "snoozed",
        "cancelled",
        "shutdown",
        "unknown to its worker",
        "unreadable to its worker",
    }


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_vocabulary_needs_neither_the_database_nor_the_rest_of_the_engine() -> None:
    path = Path(model.__file__)
    roots = {name.split(".")[0] for name in imported(ast.parse(path.read_text(), path))}
    assert roots.isdisjoint({"", "psycopg", "psycopg_pool", "engine", "worker", "relay", "web", "ops"})
    assert "enum" in roots  # they are found at all
