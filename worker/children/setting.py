"""What a child needs to know of its worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.settings import Settings


class Setting(NamedTuple):
    """What a child is for: the attempts of `presets`.

    `max_jobs` and `max_bytes` of memory are those after which a child is replaced.
    """

    settings: Settings
    role: str
    presets: Sequence[str]
    max_jobs: int
    max_bytes: int
