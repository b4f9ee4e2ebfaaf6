"""One page for a supervisor and its processes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.samples import Sample

from engine.process.merged_metrics import merge


def page(busy: float) -> str:
    registry = CollectorRegistry()
    Gauge("merged_busy", "Busy", registry=registry).set(busy)
    Counter("merged_done", "Done", ["preset"], registry=registry).labels('a "b"\n\\').inc(3)
    Info("merged_build", "Build", registry=registry).info({"role": "worker"})
    Histogram("merged_seconds", "Seconds", registry=registry, buckets=[1]).observe(0.5, {"trace_id": "abc"})
    return bytes(generate_latest(registry)).decode()  # type: ignore[no-untyped-call]


def samples(name: str, **pages: str) -> list[Sample]:
    families = merge({number.lstrip("_"): text for number, text in pages.items()})
    return [each for family in families for each in family.samples if each.name == name]


def test_every_series_has_the_number_of_its_process() -> None:
    found = samples("merged_busy", _1=page(2), _2=page(5))
    assert [(each.labels, each.value) for each in found] == [({"process": "1"}, 2), ({"process": "2"}, 5)]


def test_the_supervisor_s_own_series_have_the_number_0() -> None:
    [each] = samples("outrider_processes", _1=page(1))
    assert each.labels == {"process": "0"}


def test_labels_counters_and_exemplars_come_through() -> None:
    [done] = samples("merged_done_total", _1=page(1))
    assert (done.labels, done.value) == ({"preset": 'a "b"\n\\', "process": "1"}, 3)
    [build] = samples("merged_build_info", _1=page(1))
    assert build.labels == {"role": "worker", "process": "1"}
    first, _ = samples("merged_seconds_bucket", _1=page(1))
    assert first.exemplar
    assert first.exemplar.labels == {"trace_id": "abc"}


def test_a_page_that_cannot_be_read_costs_no_other() -> None:
    found = samples("merged_busy", _1="what is {this", _2=page(5))
    assert [each.labels for each in found] == [{"process": "2"}]
