"""An outcome is counted once: when it is in the database, and by the process that put it there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from engine.errors import LeaseLost
from engine.model import Completed, JobState
from tests.support.worker_harness import attempts, dropped
from tests.worker.test_outcome import attempt, made
from worker.attempt_metrics import OUTCOMES, AttemptMetrics
from worker.execution import Execution

Count = Callable[[AttemptMetrics, Execution], None]


def counts() -> dict[str, float]:
    """The attempts of the preset by outcome, and the outcomes that were dropped."""
    found = {name: attempts("p", name) for name in (*OUTCOMES, "lost")}
    return found | {"dropped": dropped("p")}


@pytest.mark.parametrize(
    ("count", "counted", "paced"),
    [
        pytest.param(lambda m, e: m.recorded(e, Completed(1)), "completed", True, id="recorded"),
        pytest.param(lambda m, e: m.dropped(e, LeaseLost("j")), "dropped", False, id="lost"),
        pytest.param(lambda m, e: m.dropped(e, ValueError("no")), "dropped", False, id="refused"),
        pytest.param(lambda m, _: m.released("p", JobState.PENDING), "released", False, id="released"),
        pytest.param(lambda m, _: m.released("p", JobState.CANCELLED), "cancelled", False, id="cancelled"),
    ],
)
async def test_an_attempt_is_counted_as_what_became_of_it_and_paces_only_if_it_is_recorded(
    count: Count, counted: str, paced: bool
) -> None:
    metrics = AttemptMetrics(["p"])
    execution = Execution(attempt(), made(), lambda _execution, _outcome: None, threading.Event())
    execution.end()
    before = counts()
    count(metrics, execution)
    assert [name for name, value in counts().items() if value != before[name]] == [counted]
    assert counts()[counted] == before[counted] + 1
    assert set(metrics.throughput.per_second()) == ({"p"} if paced else set())
