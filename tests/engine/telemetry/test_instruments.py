"""Our instruments show what prometheus-client's own would: they are only quicker, or quiet about what is not known."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.samples import Exemplar

from engine.telemetry import instruments
from engine.telemetry.instruments import EXEMPLAR_SECONDS, FOLDED, Counter, Figures, Histogram, Level, Moment
from tests.support.clock import Clock, set_clock

BOUNDS = (0.005, 0.1, 0.5, 1.0, 2.5, 10.0)
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"

Shown = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, instruments)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scraped(registry: CollectorRegistry) -> Shown:
    """What a scrape shows, but for the times when metrics were created."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def exemplars(registry: CollectorRegistry) -> dict[str, Exemplar]:
    """The exemplars that a scrape shows, by the bound of their bucket."""
    return {
        sample.labels["le"]: sample.exemplar
        for metric in registry.collect()
        for sample in metric.samples
        if sample.exemplar is not None
    }


def drawn(seed: int, count: int) -> list[float]:
    """Anything, and often enough what lies on a bound or right beside one."""
    rng = random.Random(seed)  # noqa: S311 - the same draws each time
    odd = [0.0, 1e9, *BOUNDS]
    odd += [math.nextafter(bound, towards) for bound in BOUNDS for towards in (-math.inf, math.inf)]
    return [rng.choice(odd) if rng.random() < 0.5 else rng.expovariate(1.0) for _ in range(count)]


def theirs(values: Iterable[float]) -> Shown:
    registry = CollectorRegistry()
    histogram = prometheus_client.Histogram("seconds", "…", ["preset"], registry=registry, buckets=BOUNDS)
    for value in values:
        histogram.labels("p").observe(value)
    return scraped(registry)


def ours(registry: CollectorRegistry) -> Histogram:
    child = Histogram("seconds", "…", ["preset"], registry=registry, buckets=BOUNDS).labels("p")
    assert isinstance(child, Histogram)
    return child


@pytest.mark.parametrize("count", [1, FOLDED - 1, FOLDED, FOLDED + 1, 3 * FOLDED + 7])
def test_a_histogram_shows_what_one_that_sorts_each_value_at_once_does(
    registry: CollectorRegistry, count: int
) -> None:
    histogram, values = ours(registry), drawn(count, count)
    for value in values:
        histogram.observe(value)
    assert scraped(registry) == pytest.approx(theirs(values), rel=1e-9)


def test_a_value_on_a_bound_is_within_it_and_infinity_in_the_last_bucket_alone(
    registry: CollectorRegistry,
) -> None:
    histogram, values = ours(registry), [*BOUNDS, math.inf]
    for value in values:
        histogram.observe(value)
    shown = scraped(registry)
    assert shown == theirs(values)
    les = [dict(labels)["le"] for name, labels in shown if name == "seconds_bucket"]
    assert [shown["seconds_bucket", (("le", le), ("preset", "p"))] for le in les] == [1, 2, 3, 4, 5, 6, 7]


def test_a_scrape_shows_all_that_was_observed_before_it_and_nothing_twice(
    registry: CollectorRegistry,
) -> None:
    histogram, labels = ours(registry), (("preset", "p"),)
    seen: list[float] = []
    for size in (3, 0, FOLDED, 0, 1, FOLDED - 1):
        for value in drawn(size, size):
            seen.append(value)
            histogram.observe(value)
        shown = scraped(registry)
        assert shown["seconds_count", labels] == len(seen)
        assert shown["seconds_sum", labels] == pytest.approx(sum(seen))
        assert shown == pytest.approx(theirs(seen), rel=1e-9)


def test_a_value_with_an_exemplar_is_counted_once_beside_those_that_wait(registry: CollectorRegistry) -> None:
    histogram, values = ours(registry), [0.3, 0.7, 0.3]
    histogram.observe(values[0])
    histogram.observe(values[1], {"trace_id": TRACE})
    histogram.observe(values[2])
    assert scraped(registry) == pytest.approx(theirs(values))


def test_a_trace_that_is_kept_is_an_exemplar_at_most_once_a_second(
    registry: CollectorRegistry, clock: Clock
) -> None:
    histogram = ours(registry)
    histogram.traced(0.05, SAMPLED)
    clock.now += EXEMPLAR_SECONDS - 0.001
    histogram.traced(0.3, SAMPLED)
    assert {le: each.labels for le, each in exemplars(registry).items()} == {"0.1": {"trace_id": TRACE}}
    clock.now += 0.001
    histogram.traced(0.7, SAMPLED)
    assert {le: each.value for le, each in exemplars(registry).items()} == {"0.1": 0.05, "1.0": 0.7}
    assert scraped(registry) == pytest.approx(theirs([0.05, 0.3, 0.7]))


@pytest.mark.parametrize("traceparent", [None, NOT_SAMPLED, SAMPLED[:-2] + "02"])
def test_a_trace_that_nobody_keeps_is_no_exemplar_and_does_not_spend_the_second(
    registry: CollectorRegistry,
    clock: Clock,  # noqa: ARG001 - it stands still
    traceparent: str | None,
) -> None:
    histogram = ours(registry)
    histogram.traced(0.05, traceparent)
    assert exemplars(registry) == {}
    histogram.traced(0.7, SAMPLED[:-2] + "03")
    assert exemplars(registry).keys() == {"1.0"}
    assert scraped(registry) == pytest.approx(theirs([0.05, 0.7]))


def test_each_labelled_histogram_has_its_own_values_and_its_own_second(
    registry: CollectorRegistry,
    clock: Clock,  # noqa: ARG001
) -> None:
    family = Histogram("seconds", "…", ["preset"], registry=registry, buckets=BOUNDS)
    for preset in ("p", "q"):
        family.labels(preset).traced(0.05, SAMPLED)
    found = [sample for metric in registry.collect() for sample in metric.samples if sample.exemplar]
    assert {sample.labels["preset"] for sample in found} == {"p", "q"}
    shown = scraped(registry)
    assert [shown["seconds_count", (("preset", preset),)] for preset in ("p", "q")] == [1, 1]


def test_a_counter_shows_all_that_was_counted_and_nothing_twice(registry: CollectorRegistry) -> None:
    family = Counter("jobs", "…", ["preset"], registry=registry)
    key = "jobs_total", (("preset", "p"),)
    seen = 0.0
    for amounts in ([1.0, 1.0], [], [2.5], []):
        for amount in amounts:
            family.labels("p").inc(amount)
        seen += sum(amounts)
        assert scraped(registry)[key] == seen
    family.labels("q").inc()
    assert scraped(registry) == {key: 4.5, ("jobs_total", (("preset", "q"),)): 1.0}


def test_a_time_is_not_shown_before_it_is_known(registry: CollectorRegistry) -> None:
    moment = Moment("cycled_at", "…", ["topic"], registry=registry)
    moment.labels("jobs")
    assert scraped(registry) == {}
    moment.labels("jobs").set(1_700_000_000.5)
    moment.labels("results")
    assert scraped(registry) == {("cycled_at", (("topic", "jobs"),)): 1_700_000_000.5}


def shown_of(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """The figures by (preset, status)."""
    return {
        (labels["preset"], labels["status"]): value
        for labels, value in ((dict(labels), value) for (_, labels), value in scraped(registry).items())
    }


@pytest.fixture
def gauge(registry: CollectorRegistry) -> Gauge:
    return Gauge("outbox", "…", ["preset", "status"], registry=registry)


READY: tuple[str, ...] = ("p", "ready")
OTHER: tuple[str, ...] = ("q", "ready")


def test_a_figure_that_has_left_is_0_once_and_then_gone(registry: CollectorRegistry, gauge: Gauge) -> None:
    figures = Figures(gauge)
    looks = []
    for seen in ({READY: 3, OTHER: 1}, {READY: 4}, {READY: 5}, {}, {}):
        figures.show(seen)
        looks.append(shown_of(registry))
    assert looks == [{READY: 3, OTHER: 1}, {READY: 4, OTHER: 0}, {READY: 5}, {READY: 0}, {}]


def test_a_figure_that_comes_back_is_shown_again(registry: CollectorRegistry, gauge: Gauge) -> None:
    figures = Figures(gauge)
    looks = []
    for seen in ({READY: 3}, {}, {READY: 2}, {}, {}, {READY: 1}):
        figures.show(seen)
        looks.append(shown_of(registry))
    assert looks == [{READY: 3}, {READY: 0}, {READY: 2}, {READY: 0}, {}, {READY: 1}]


def test_figures_that_are_no_longer_known_are_all_gone_until_they_are_again(
    registry: CollectorRegistry, gauge: Gauge
) -> None:
    figures = Figures(gauge)
    figures.forget()
    figures.show({READY: 3, OTHER: 1})
    figures.forget()
    assert shown_of(registry) == {}
    figures.forget()
    figures.show({READY: 1})
    assert shown_of(registry) == {READY: 1}


def test_a_level_goes_up_and_down_and_keeps_its_place_between_scrapes(registry: CollectorRegistry) -> None:
    level = Level("in_flight", "…", registry=registry)
    for change, shown in ((level.inc, 1.0), (level.inc, 2.0), (level.dec, 1.0), (level.dec, 0.0)):
        change()
        assert registry.get_sample_value("in_flight") == shown
