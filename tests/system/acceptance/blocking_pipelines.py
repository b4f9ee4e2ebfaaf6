"""A pipeline that keeps its worker's event loop for longer than a lease lasts."""

from __future__ import annotations

import time
from typing import Any

from engine import Pipeline, pipeline

BLOCKED_SECONDS = 40.0


@pipeline("blocking", backoff=0)
async def blocking(job: Any, run: Any) -> None:  # noqa: ARG001 - an author's signature
    time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - the mistake in question


pipelines: list[Pipeline] = [blocking]
