"""The presets whose jobs a relay looks for: those that workers run, and for a while those that others have named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from engine.limits import PRESET

MAX_LEARNT: Final = 100
"""Each preset adds four lanes to every scan."""


class KnownPresets:
    """The presets that living workers run, and at most MAX_LEARNT others, from the last sweep to the next.

    SQL may enqueue jobs of any preset, and anyone who can connect to the database can send hints that name presets.
    If more presets have ready jobs than are remembered, the sweeps go through them in turn.
    """

    def __init__(self) -> None:
        self._served: list[str] = []
        self._learnt: list[str] = []
        self._turn = 0
        self.after = ""
        """The preset after which the next sweep looks for ready jobs, in the order of the database."""

    def served(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets from now on, instead of those that workers ran before."""
        self._served = list(dict.fromkeys(presets))
        self._learnt = [preset for preset in self._learnt if preset not in self._served]

    def hinted(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets too, as far as there is room. A sweep finds the others."""
        for preset in presets:
            if len(self._learnt) >= MAX_LEARNT:
                return
            if preset in PRESET and preset not in self._learnt and preset not in self._served:
                self._learnt.append(preset)

    def swept(self, found: Sequence[str]) -> None:
        """Forget what was learnt, but for the presets that a sweep found: up to MAX_LEARNT with ready jobs."""
        self._learnt = [preset for preset in found if preset not in self._served]
        self.after = found[-1] if len(found) >= MAX_LEARNT else ""

    def next(self) -> list[str]:
        """All known presets. They take turns to be first, so that none starves another one of the same priority."""
        known = self._served + self._learnt
        self._turn = (self._turn + 1) % max(len(known), 1)
        return known[self._turn :] + known[: self._turn]
