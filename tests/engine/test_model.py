"""The vocabulary: the reasons, the legal edges, and ids in the order of time."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from uuid import RFC_4122, UUID

import pytest

from engine import model
from engine.model import TERMINAL, TRANSITIONS, JobState, Reason, first_id_of, uuid7

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


def test_ids_increase_and_are_of_version_7() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert all(before < after for before, after in pairwise(made))
    assert {(each.version, each.variant) for each in made} == {(7, RFC_4122)}


def test_an_id_tells_when_it_was_made_to_the_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert before <= made.int >> 80 <= after


def test_ids_increase_though_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first, now = uuid7(), time.time_ns()
    for moment in (now, now, now - 3_600_000_000_000, 0):
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        made = uuid7()
        assert (made > first, made.version, made.variant) == (True, 7, RFC_4122)
        first = made


def test_ids_differ_between_processes_that_make_them_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    tick = model._last_tick
    made: set[UUID] = set()
    for _ in range(1000):
        monkeypatch.setattr(model, "_last_tick", tick)
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        made.add(uuid7())
    assert len(made) == 1000
    assert len({each.int >> 62 for each in made}) == 1


def test_the_first_id_of_a_moment_is_below_all_made_then_and_above_all_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "_last_tick", 0)
    moment = 1_700_000_000.25
    made = []
    for milliseconds in (1_700_000_000_249, 1_700_000_000_250):
        monkeypatch.setattr(time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        made.append(uuid7())
    assert made[0] < first_id_of(moment) < made[1] < first_id_of(moment + 0.25)


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
