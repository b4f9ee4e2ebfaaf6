"""Every operation of the API, one file per resource. The routes and /openapi.json are made from this list."""

from __future__ import annotations

from typing import Final

from web.api import health, jobs, presets, streams, submissions
from web.operations import Operation

OPERATIONS: Final[tuple[Operation, ...]] = (
    submissions.run,
    submissions.batch,
    jobs.list_jobs,
    jobs.job,
    jobs.history,
    streams.events,
    jobs.cancel,
    jobs.retry,
    jobs.explained,
    presets.presets,
    health.alive,
    health.ready,
)
