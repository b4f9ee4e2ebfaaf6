"""Attempts that are leased to a worker and that it does not hold: the reply to their claim was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

Key = tuple[UUID, int]


class Strays:
    """Tells what never arrived from what is still on its way, by counting the claims, one at a time."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self._seen: dict[Key, int] = {}

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """While a claim runs."""
        self.begun += 1
        try:
            yield
        finally:
            self.ended = self.begun

    def unknown(self, strays: set[Key]) -> set[Key]:
        """Of what a beat returned and nobody holds, those to be released: returned twice running.

        Unless the claim that ran when it was first seen is still running, and may yet bring it.
        """
        unknown = {key for key in strays if key in self._seen and self._seen[key] <= self.ended}
        self._seen = {key: self._seen.get(key, self.begun) for key in strays - unknown}
        return unknown
