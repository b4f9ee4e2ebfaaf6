"""The result of a check of `outrider doctor`. A check returns its finding, or raises CheckFailed or CheckWarned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.errors import SchemaMismatch


class CheckFailed(Exception):
    """`str(self)` is the finding, `fix` says what to do."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


class CheckWarned(CheckFailed):
    """The finding is a risk that somebody may have chosen. The check is good all the same."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`found` is the finding. `fix` says what to do; without one there is nothing to do."""

    check: str
    good: bool
    found: str
    fix: str | None = None


async def checked(check: str, look: Callable[[], Awaitable[str]]) -> CheckResult:
    """Run one check and return its result. Any exception becomes a failed result."""
    try:
        return CheckResult(check, True, await look())
    except CheckFailed as failed:
        return CheckResult(check, isinstance(failed, CheckWarned), str(failed), failed.fix)
    except SchemaMismatch as error:
        return CheckResult(check, False, error.found, error.fix or "see the message")
    except Exception as error:  # noqa: BLE001 - as said above
        return CheckResult(check, False, f"{type(error).__name__}: {error}", "see the message")
