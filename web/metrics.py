"""What web counts of jobs and answers, each counter at 0 before its first event."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from http import HTTPStatus
from typing import Final

from engine.model import JobState
from engine.pipeline import Registry
from engine.queries.queue_stats import OTHER
from engine.telemetry import metrics

CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")
PROBES: Final = frozenset({"/healthz", "/readyz"})
REFUSALS: Final = ("missing", "invalid", "scope")
KEYS: Final = ("first", "replayed", "mismatch")
SUBMISSIONS: Final = ("/pipeline/run", "/pipeline/batch")


def show(presets: Iterable[str]) -> None:
    """Show every counter that alerts and objectives look at: they see only what comes after its first scrape."""
    for each in CLASSES:
        metrics.HTTP_ANSWERS.labels(each)
    for route in SUBMISSIONS:
        metrics.HTTP_SECONDS.labels(route, "POST", str(HTTPStatus.ACCEPTED.value))
    for reason in REFUSALS:
        metrics.AUTH_FAILURES.labels(reason)
    for outcome in KEYS:
        metrics.IDEMPOTENCY.labels(outcome)
    for preset in (*presets, OTHER):
        metrics.JOBS_REDRIVEN.labels(preset)
        metrics.JOBS_FINISHED.labels(preset, JobState.CANCELLED)
    for preset in presets:
        metrics.JOBS_ENQUEUED.labels(preset)


def answered(route: str, status: int) -> None:
    """Count an answer; a process that drains says 503 to its probes on purpose, and those are not counted."""
    if route not in PROBES:
        _answers(status // 100)()


def enqueued(preset: str) -> None:
    _enqueued(preset)()


def cancelled(registry: Registry, preset: str) -> None:
    metrics.JOBS_FINISHED.labels(_known(registry, preset), JobState.CANCELLED).inc()


def redriven(registry: Registry, preset: str) -> None:
    metrics.JOBS_REDRIVEN.labels(_known(registry, preset)).inc()


def _known(registry: Registry, preset: str) -> str:
    """The preset as a label: SQL may have enqueued jobs of presets that are nobody's."""
    return preset if preset in registry else OTHER


@cache  # finite: an accepted job's preset is a registered one
def _enqueued(preset: str) -> Callable[[], None]:
    return metrics.JOBS_ENQUEUED.labels(preset).inc


@cache
def _answers(hundreds: int) -> Callable[[], None]:
    return metrics.HTTP_ANSWERS.labels(f"{hundreds}xx").inc
