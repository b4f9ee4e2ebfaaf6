"""A pipeline whose jobs are due at a time."""

from __future__ import annotations

from typing import Any

from engine import Pipeline, pipeline


@pipeline("timed", backoff=0)
async def timed(job: Any, run: Any) -> None:
    pass


pipelines: list[Pipeline] = [timed]
