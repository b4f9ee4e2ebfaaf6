"""One page for a supervisor and its processes."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, exposition
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from engine.process.merged_metrics import merge

VALUE = 'a "b"} # {x 1\n\\ \u2028\x85'
FORMATS: dict[str, tuple[Any, Any]] = {
    "text": (exposition.generate_latest, text_string_to_metric_families),
    "openmetrics": (openmetrics_exposition.generate_latest, openmetrics_families),
}


class Merged:
    """The pages of two processes, merged in a format and read again."""

    def __init__(self, form: str) -> None:
        encode, parse = FORMATS[form]
        pages = {number: encode(registry(busy)).decode() for number, busy in (("1", 2.0), ("2", 5.0))}
        self.text = merge(pages)
        self.families = list(parse(self.text))

    def samples(self, name: str) -> list[Sample]:
        return [each for family in self.families for each in family.samples if each.name == name]


def registry(busy: float) -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("merged_busy", "Busy", registry=made).set(busy)
    Counter("merged_done", "Done\nand over", ["preset"], registry=made).labels(VALUE).inc(3)
    Info("merged_build", "Build", registry=made).info({"role": "worker"})
    Histogram("merged_seconds", "Seconds", registry=made, buckets=[1]).observe(0.5, {"trace_id": "abc"})
    return made


@pytest.fixture(params=FORMATS)
def merged(request: Any) -> Merged:
    return Merged(request.param)


def test_every_series_has_the_number_of_its_process(merged: Merged) -> None:
    found = merged.samples("merged_busy")
    assert [(each.labels, each.value) for each in found] == [({"process": "1"}, 2), ({"process": "2"}, 5)]


def test_labels_come_through_whatever_is_in_them(merged: Merged) -> None:
    done, _ = merged.samples("merged_done_total")
    assert (done.labels, done.value) == ({"preset": VALUE, "process": "1"}, 3)
    build, _ = merged.samples("merged_build_info")
    assert build.labels == {"role": "worker", "process": "1"}


def test_a_family_is_described_once_and_its_series_stand_together(merged: Merged) -> None:
    names = [family.name for family in merged.families]
    assert len(names) == len(set(names))
    described = [line for line in merged.text.split("\n") if line.startswith("# TYPE ")]
    assert len(described) == len(set(described))


def test_exemplars_come_through_where_the_format_has_them() -> None:
    first, *_ = Merged("openmetrics").samples("merged_seconds_bucket")
    assert first.exemplar
    assert first.exemplar.labels == {"trace_id": "abc"}


def test_what_only_one_process_shows_is_there() -> None:
    page = merge({"0": "# TYPE a gauge\na 1\n", "1": "# TYPE b gauge\nb 2\n# TYPE a gauge\na 3\n"})
    assert page == '# TYPE a gauge\na{process="0"} 1\na{process="1"} 3\n# TYPE b gauge\nb{process="1"} 2\n'


def test_a_name_of_unusual_characters_is_kept() -> None:
    page = merge({"1": '# TYPE "a.b" gauge\n{"a.b"} 1\n{"a.b",x="1"} 2\n'})
    assert page == '# TYPE "a.b" gauge\n{"a.b",process="1"} 1\n{"a.b",process="1",x="1"} 2\n'
    [family] = text_string_to_metric_families(page)
    assert [each.labels for each in family.samples] == [{"process": "1"}, {"process": "1", "x": "1"}]
