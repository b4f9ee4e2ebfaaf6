"""Why a job changed its state is said in one place, engine/model.py: nobody else spells a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.ids import uuid7
from engine.model import Reason
from tests.support.database import Conn, fetchone, trail

ROOT = Path(__file__).parents[1]
EXEMPT = ROOT / "engine" / "model.py"
PATHS = [
    path
    for room in ("engine", "worker", "relay", "web")
    for path in sorted((ROOT / room).rglob("*.py"))
    if path != EXEMPT
]

SQL = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|FROM|WHERE|CASE|WHEN|VALUES)\b|\breason\b")
MEMBER = re.compile(r"'(\w+)',\s*(?:\w+\.)?\1\b|(?:->>?|\?)\s*'\w+'")
"""A member of a JSON object, by its name: 'error' is one, too."""
ENDS = ("Ending", "Release", "Released")


def spelt_in_sql(text: str) -> set[str]:
    """The reasons that stand in a statement, or in a piece of one, as literals."""
    if not SQL.search(text):
        return set()
    rest = MEMBER.sub("", text)
    return {reason for reason in Reason if f"'{reason}'" in rest}


def spelt_in_python(node: ast.AST) -> set[str]:
    """The reasons that are given, or compared with one, as plain text."""
    given: list[ast.expr | None] = []
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in ENDS:
            given += [*node.args, *(each.value for each in node.keywords)]
        case ast.Call():
            given += [each.value for each in node.keywords if each.arg == "reason"]
        case ast.Dict():
            named = zip(node.keys, node.values, strict=True)
            given += [
                value for key, value in named if isinstance(key, ast.Constant) and key.value == "reason"
            ]
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            if any(_named_reason(side) for side in sides):
                given += sides
    return {text for each in given if each is not None for text in _texts(each) if text in set(Reason)}


def _named_reason(side: ast.expr) -> bool:
    return "reason" in (getattr(side, "id", None), getattr(side, "attr", None))


def _texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text(), path)):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO job_state_records (job_id, reason) SELECT id, '{}' FROM job",
        "WHERE a.reason = '{}'",
        "CASE WHEN q.cancel_requested THEN '{}' ELSE x.reason END AS reason",
        "'{}'::text AS reason, jsonb_build_object('error', error)",
    ],
)
def test_a_reason_in_a_statement_is_found(statement: str, reason: Reason) -> None:
    assert spelt_in_sql(statement.format(reason)) == {reason}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT jsonb_build_object('error', error) AS reason",
        "jsonb_build_object('state', state, 'error',\n e.error) FROM ended e",
        "SELECT a.metadata -> 'error' FROM x a WHERE a.metadata ? 'error'",
        "SELECT reason FROM job_state_records WHERE to_state = 'CANCELLED'",
        "the job is 'failed'",
    ],
)
def test_the_member_error_and_what_is_no_statement_are_no_reason(statement: str) -> None:
    assert spelt_in_sql(statement) == set()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Release(job_id, 1, 'error', 2.0)", {"error"}),
        ("moves.Ending(job_id, 1, state, reason='failed')", {"failed"}),
        ("Released('lease lost')", {"lease lost"}),
        ("dict(reason='lapsed')", {"lapsed"}),
        ("{'reason': 'claimed'}", {"claimed"}),
        ("row.reason == 'redriven'", {"redriven"}),
        ("reason in ('enqueued', None)", {"enqueued"}),
        ("Release(job_id, 1, Reason.ERROR, 2.0)", set()),
        ("{'reason': Reason.CLAIMED, 'state': 'failed'}", set()),
        ("row.state == 'failed'", set()),
    ],
)
def test_a_reason_in_python_is_found(line: str, found: set[str]) -> None:
    assert set().union(*map(spelt_in_python, ast.walk(ast.parse(line)))) == found


def test_no_statement_spells_a_reason() -> None:
    texts = [
        (place, node.value)
        for place, node in nodes()
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert {place: spelt for place, text in texts if (spelt := spelt_in_sql(text))} == {}
    writers = {place.split(":")[0] for place, text in texts if "INSERT INTO job_state_records" in text}
    assert len(writers) >= 5  # they were looked at


def test_no_line_of_python_spells_a_reason() -> None:
    assert {place: spelt for place, node in nodes() if (spelt := spelt_in_python(node))} == {}


async def test_the_one_reason_that_the_schema_spells_is_the_models(conn: Conn) -> None:
    for job_id in (None, uuid7()):
        (made,) = await fetchone(conn, "SELECT outrider_enqueue('ann', 'p', 'text', job_id => %s)", job_id)
        assert await trail(conn, made) == [(0, None, "PENDING", 0, Reason.ENQUEUED)]
    spelling = "SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc WHERE prosrc ~ 'reason'"
    ours = f"{spelling} AND pronamespace = 'public'::regnamespace"
    assert await fetchone(conn, ours) == (["outrider_enqueue_many", "outrider_enqueue_new"],)
