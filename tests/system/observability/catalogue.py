"""What a scrape of this code can show, and what is wrong with a query by that measure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import promql_parser as promql
from prometheus_client import PROCESS_COLLECTOR, Counter, Gauge, Histogram, Info

from engine.model import JobState
from engine.process.admin import ALIKE, PORTS
from engine.pubsub.client import Fault
from engine.settings import Transport
from engine.telemetry import metrics
from web.metrics import CLASSES
from worker.attempt_metrics import OUTCOMES

Labels = frozenset[str]

TARGET: Final[Labels] = frozenset({"job", "instance", "process"})
"""What Prometheus puts on every series that it scrapes, and a supervisor on those of its page."""
INFO: Final[Mapping[Info, Labels]] = {
    metrics.BUILD: frozenset({"version", "role", "transport"}),
    metrics.CONFIG: frozenset(ALIKE),
}
SUFFIXES: Final[Mapping[type[Any], Sequence[str]]] = {
    Counter: ["_total"],
    Gauge: [""],
    Histogram: ["_bucket", "_sum", "_count"],
    Info: ["_info"],
}

VALUES: Final[Mapping[tuple[str, str], Collection[str]]] = {
    ("outrider_build_info", "role"): [*PORTS, "supervisor"],
    ("outrider_build_info", "transport"): get_args(Transport),
    ("outrider_breaker_open", "fault"): [fault.value for fault in Fault],
    ("outrider_jobs_finished_total", "state"): list(JobState),
    ("outrider_outbox_rows", "status"): ["waiting", "ready", "published", "leased"],
    ("outrider_outbox_events", "state"): ["pending", "set_back", "quarantined"],
    ("outrider_job_stage_seconds_bucket", "stage"): ["publish", "claim", "run", "record"],
    ("outrider_job_stage_seconds_count", "stage"): ["publish", "claim", "run", "record"],
    ("outrider_database_pool_connections", "state"): ["open", "idle", "waiting"],
    ("outrider_database_pool_connections", "pool"): ["web", "maintenance", "worker", "effects"],
    ("outrider_http_answers_total", "class"): CLASSES,
    ("outrider_attempts_total", "outcome"): [*OUTCOMES, "lost"],
}


def scraped() -> dict[str, Labels]:
    """Every series by its name in a scrape, with its labels. The client keeps those in private attributes."""
    process = [sample.name for family in PROCESS_COLLECTOR.collect() for sample in family.samples]
    return dict.fromkeys(["up", *process], TARGET) | {
        metric._name + suffix: _labels(metric, suffix) | TARGET
        for metric in vars(metrics).values()
        for kind, suffixes in SUFFIXES.items()
        if isinstance(metric, kind)
        for suffix in suffixes
    }


def _labels(metric: Any, suffix: str) -> Labels:
    own = INFO[metric] if isinstance(metric, Info) else frozenset(metric._labelnames)
    return own | {"le"} if suffix == "_bucket" else own


def bounds(name: str) -> list[str]:
    """The values of `le`, as Python writes them: 1.0, not 1."""
    [metric] = [
        each
        for each in vars(metrics).values()
        if isinstance(each, Histogram) and each._name == name.removesuffix("_bucket")
    ]
    return [str(bound).replace("inf", "+Inf") for bound in metric._upper_bounds]


def faults(query: str, known: Mapping[str, Labels]) -> list[str]:
    """What `query` names that is not in `known`. Raises ValueError for what is not PromQL."""
    nodes: list[Any] = []
    promql.walk(promql.parse(query), lambda node: nodes.append(node))
    selectors = [getattr(node, "vector_selector", node) for node in nodes]
    selectors = [each for each in selectors if isinstance(each, promql.VectorSelector)]
    everywhere = TARGET.union(*(known.get(str(each.name), frozenset()) for each in selectors))
    return [fault for each in selectors for fault in _of_selector(each, known)] + [
        f"no series of this has the label {label}"
        for node in nodes
        for label in _grouped(node)
        if label not in everywhere
    ]


def _of_selector(selector: promql.VectorSelector, known: Mapping[str, Labels]) -> Iterator[str]:
    name = str(selector.name)
    if name not in known:
        yield f"{name} is not scraped"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in known[name]:
            yield f"{name} has no label {matcher.name}"
        elif matcher.name == "le" and matcher.value not in bounds(name):
            yield f"{name} has no bucket {matcher.value}"
        elif legal := VALUES.get((name, matcher.name)):
            yield from (
                f"{name} has no {matcher.name} {value}"
                for value in matcher.value.split("|")
                if value not in legal
            )


def _grouped(node: Any) -> list[str]:
    """The labels that an aggregation or a match of two vectors names."""
    modifier = getattr(node, "modifier", None)
    labels = getattr(modifier, "labels", None) or getattr(getattr(modifier, "matching", None), "labels", None)
    return list(labels or [])
