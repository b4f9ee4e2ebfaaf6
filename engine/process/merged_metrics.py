"""One page of metrics for a supervisor and its processes: every series has the label `process`.

It is the number of the place, 0 for the supervisor. A process that is started again has the number of the one before,
so that its counters begin anew in the same series, as rate() and increase() expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from aiohttp import web
from prometheus_client import REGISTRY, Metric
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "process"
SUPERVISOR = "0"

Pages = Callable[[], Awaitable[Mapping[str, str]]]

log = structlog.get_logger()


def merged_handler(pages: Pages) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A handler that shows this process's metrics together with the `pages` of its processes."""

    async def handle(request: web.Request) -> web.StreamResponse:
        found = await pages()
        # In a thread, because a large page takes long to read, and the loop has more to do.
        families = await asyncio.to_thread(merge, found)
        return await make_aiohttp_handler(_Families(families))(request)

    return handle


def merge(pages: Mapping[str, str]) -> list[Metric]:
    """The families of this process's registry and of `pages`. A page that cannot be read is logged and left out."""
    families: dict[str, Metric] = {}
    _add(families, SUPERVISOR, REGISTRY.collect())
    for process, page in pages.items():
        try:
            found = list(text_string_to_metric_families(page))  # type: ignore[no-untyped-call]
        except ValueError as error:
            # An author's metric with an odd name, perhaps. The other processes are shown still.
            log.warning("metrics.unreadable", process=process, error=str(error))
            continue
        _add(families, process, found)
    return list(families.values())


def _add(families: dict[str, Metric], process: str, found: Iterable[Metric]) -> None:
    for family in found:
        kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        kept.samples += [each._replace(labels={**each.labels, LABEL: process}) for each in family.samples]


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
