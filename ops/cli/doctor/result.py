"""How a check of `outrider doctor` ends: it returns what it found, or raises CheckFailed with the fix."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass


class CheckFailed(Exception):
    """What is wrong, and how to fix it."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`fix` is what to do about it; None where the check is `good`."""

    check: str
    good: bool
    found: str
    fix: str | None = None


async def checked(check: str, look: Callable[[], Awaitable[str]]) -> CheckResult:
    """The result of one check. Whatever it runs into is its result."""
    try:
        return CheckResult(check, True, await look())
    except CheckFailed as failed:
        return CheckResult(check, False, str(failed), failed.fix)
    except Exception as error:  # noqa: BLE001 - as said above
        return CheckResult(check, False, f"{type(error).__name__}: {error}", "see the message")
