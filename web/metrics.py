"""The web process's counters of jobs and answers, each at 0 before its first event."""

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
    """Show every counter of alerts and objectives at 0: they see only increases after the first scrape."""
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
    """Count an answer. Probes are not counted, because a draining process answers them 503 on purpose."""
    if route not in PROBES:
        _answers(status // 100)()


def enqueued(preset: str) -> None:
    _enqueued(preset)()


def cancelled(registry: Registry, preset: str) -> None:
    metrics.JOBS_FINISHED.labels(_known(registry, preset), JobState.CANCELLED).inc()


def redriven(registry: Registry, preset: str) -> None:
    metrics.JOBS_REDRIVEN.labels(_known(registry, preset)).inc()


def _known(registry: Registry, preset: str) -> str:
    """The preset as a label. SQL may have enqueued jobs of unregistered presets: they share the label OTHER."""
    return preset if preset in registry else OTHER


# The cache is finite: an accepted job's preset is a registered one.
@cache
def _enqueued(preset: str) -> Callable[[], None]:
    return metrics.JOBS_ENQUEUED.labels(preset).inc


@cache
def _answers(hundreds: int) -> Callable[[], None]:
    return metrics.HTTP_ANSWERS.labels(f"{hundreds}xx").inc
