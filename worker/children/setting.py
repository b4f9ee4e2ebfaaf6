"""What a child needs to know of its worker."""

from __future__ import annotations

from typing import NamedTuple

from engine.settings import Settings


class Setting(NamedTuple):
    """`max_jobs` and `max_bytes` of memory are those after which a child is replaced."""

    settings: Settings
    role: str
    max_jobs: int
    max_bytes: int
