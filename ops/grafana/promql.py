"""Builds the queries of the panels as text."""

from __future__ import annotations

WINDOW = "$__rate_interval"


def rate(counter: str, by: str = "", where: str = "") -> str:
    """Increases a second over all processes, by the labels in `by`."""
    return f"{_sum(by)}(rate({_series(counter, where)}[{WINDOW}]))"


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    buckets = rate(f"{histogram}_bucket", ", ".join(filter(None, ["le", by])), where)
    return f"histogram_quantile({q}, {buckets})"


def mean(histogram: str, by: str = "", where: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def total(gauge: str, by: str = "", where: str = "") -> str:
    """A gauge of each process, summed."""
    return f"{_sum(by)}({_series(gauge, where)})"


def sampled(gauge: str, by: str = "", where: str = "") -> str:
    """A figure of the database. Several relays may report the same figure."""
    return f"max by ({by}) ({_series(gauge, where)})" if by else f"max({_series(gauge, where)})"


def age(timestamp: str, by: str = "") -> str:
    """Seconds since the latest timestamp of any process."""
    return f"time() - {sampled(timestamp, by)}"


def of_role(process: str) -> str:
    """A figure of each of our processes, with its role."""
    return f"{process} * on (job, instance, process) group_left (role) outrider_build_info"


def _sum(by: str) -> str:
    return f"sum by ({by}) " if by else "sum"


def _series(name: str, where: str) -> str:
    return f"{name}{{{where}}}" if where else name
