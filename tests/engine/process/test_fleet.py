"""What the readiness of a fleet says of one of its processes."""

from __future__ import annotations

import json

import pytest

from engine.process.fleet import MAX_REASON, reason


def test_the_checks_that_fail_are_named_with_their_reasons() -> None:
    checks = {"database": "no answer within 3 s", "worker": "ok", "accepting": "stopping"}
    answer = json.dumps({"status": "unavailable", "checks": checks})
    assert reason(answer) == "database: no answer within 3 s; accepting: stopping"


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", '{"checks": 1}', "null"])
def test_an_answer_that_is_not_ours_is_told_as_it_is(answer: str) -> None:
    assert reason(answer) == answer


@pytest.mark.parametrize("answer", ["x" * 9999, json.dumps({"checks": {"database": "x" * 9999}})])
def test_a_reason_is_bounded(answer: str) -> None:
    assert len(reason(answer)) == MAX_REASON
