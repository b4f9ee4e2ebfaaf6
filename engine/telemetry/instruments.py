"""The kinds of metrics that prometheus-client lacks: a quick histogram, a time, the figures of a database."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final

import prometheus_client
from prometheus_client import Gauge
from prometheus_client.samples import Sample

FOLDED: Final = 500
EXEMPLAR_SECONDS: Final = 1.0
SAMPLED: Final = 1
"""The flag of a traceparent (W3C): whoever began the trace keeps it."""


class Histogram(prometheus_client.Histogram):
    """Sorts what was observed into its buckets many at a time: 0.2 µs each, where one by one they take 1.2 to 3."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._loose: list[float] = []
        self._exemplar_due = 0.0

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        if exemplar is not None:
            super().observe(amount, dict(exemplar))
            return
        self._loose.append(amount)
        if len(self._loose) >= FOLDED:
            self._fold()

    def traced(self, amount: float, traceparent: str | None) -> None:
        """As `observe`; with the traceparent of a trace that is kept it is an exemplar: 4 µs, so one a second."""
        if (
            traceparent is not None
            and int(traceparent[-2:], 16) & SAMPLED
            and (now := time.monotonic()) >= self._exemplar_due
        ):
            self._exemplar_due = now + EXEMPLAR_SECONDS
            self.observe(amount, {"trace_id": traceparent[3:35]})
        else:
            self.observe(amount)

    def _fold(self) -> None:
        loose, self._loose = sorted(self._loose), []
        self._sum.inc(sum(loose))
        below = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            upto = bisect_right(loose, bound, below)
            if upto > below:
                bucket.inc(upto - below)
            below = upto

    def _child_samples(self) -> Iterable[Sample]:
        self._fold()
        return super()._child_samples()


class Counter(prometheus_client.Counter):
    """Counts in 0.1 µs instead of 0.4, for the event loop's thread alone: nothing guards it against others."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._loose = 0.0

    def inc(self, amount: float = 1, exemplar: Mapping[str, str] | None = None) -> None:
        """Without exemplars: histograms have them."""
        assert exemplar is None
        self._loose += amount

    def _child_samples(self) -> Iterable[Sample]:
        loose, self._loose = self._loose, 0.0
        self._value.inc(loose)
        return super()._child_samples()


class Moment(Gauge):
    """A time, in seconds since 1970. Not shown before it is known: 0 would say that it is long ago."""

    def _child_samples(self) -> Iterable[Sample]:
        return super()._child_samples() if self._value.get() else ()


class Figures:
    """A gauge whose labels come from the database: a figure that has left it is 0 once, and then gone for good.

    Those `always` wanted are 0 instead of gone, so that a sum over them is one.
    """

    def __init__(self, gauge: Gauge, always: Iterable[tuple[str, ...]] = ()) -> None:
        self._gauge = gauge
        self._always = dict.fromkeys(always, 0.0)
        self._shown: Mapping[tuple[str, ...], float] = {}

    def forget(self) -> None:
        """Show none: what is no longer known must not be taken for what is."""
        for labels in self._shown:
            self._gauge.remove(*labels)
        self._shown = {}

    def show(self, figures: Mapping[tuple[str, ...], float]) -> None:
        left = {labels: 0.0 for labels, figure in self._shown.items() if figure}
        figures = {**left, **self._always, **figures}
        for labels in self._shown.keys() - figures.keys():
            self._gauge.remove(*labels)
        for labels, figure in figures.items():
            self._gauge.labels(*labels).set(figure)
        self._shown = figures
