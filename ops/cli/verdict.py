"""How a check of `outrider doctor` comes to its verdict: it returns what it found, or raises Ill with the mend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


class Ill(Exception):
    def __init__(self, found: str, mend: str) -> None:
        super().__init__(found)
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Verdict:
    """`mend` is what to do about it; None where the check is `good`."""

    check: str
    good: bool
    found: str
    mend: str | None = None


async def judged(check: str, look: Callable[[], Awaitable[str]]) -> Verdict:
    try:
        return Verdict(check, True, await look())
    except Ill as ill:
        return Verdict(check, False, str(ill), ill.mend)
    except Exception as error:  # noqa: BLE001 - whatever a check runs into is its verdict
        return Verdict(check, False, f"{type(error).__name__}: {error}", "see the message")
