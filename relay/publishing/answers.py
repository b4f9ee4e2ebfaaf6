"""What a publish request's failure says: of the message, of the line, or of the broker. Pure."""

from __future__ import annotations

import asyncio
import re
from enum import Enum
from typing import Final, NamedTuple

import grpc
from google.auth.exceptions import GoogleAuthError

from engine.pubsub.client import PROVISION, Fault, code, details, fault


class Unsendable(Exception):
    """No message can be made of a row."""


class Verdict(Enum):
    REFUSED = "refused"
    """A message is at fault, and would be refused again."""
    DOUBTFUL = "doubtful"
    """The broker would not answer so for being busy: a message may be at fault, or the broker, or its configuration."""
    TOO_SLOW = "too slow"
    """There was no answer in time: the broker is away, or the request was too large for the line."""
    PASSING = "passing"
    """The broker is away or busy."""


class Answer(NamedTuple):
    verdict: Verdict
    fault: Fault
    """What the breaker is told, if the message is not to blame."""
    code: str
    """A gRPC code, or the name of an error that is none of gRPC's."""
    details: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.details}"


UNSENDABLE: Final = "UNSENDABLE"
"""The broker was never asked."""
NO_TOKEN: Final = "metadata from plugin failed"  # noqa: S105 - gRPC's words
"""In gRPC's words for a call that was never sent, because its credentials gave no token."""
CREDENTIALS: Final = "check the process's Google credentials (GOOGLE_APPLICATION_CREDENTIALS)"

_Code = grpc.StatusCode
VERDICTS: Final = {
    _Code.INVALID_ARGUMENT: Verdict.REFUSED,
    _Code.OUT_OF_RANGE: Verdict.REFUSED,
    _Code.DEADLINE_EXCEEDED: Verdict.TOO_SLOW,
    _Code.UNAVAILABLE: Verdict.PASSING,
    _Code.RESOURCE_EXHAUSTED: Verdict.PASSING,
    _Code.ABORTED: Verdict.PASSING,
    _Code.CANCELLED: Verdict.PASSING,
}
"""By code (https://cloud.google.com/pubsub/docs/reference/error-codes). The others are doubtful."""

TOO_LARGE: Final = re.compile(
    r"^(?!.*quota).*?\b(message|payload|request|body|entity|data)"
    r"(( size| length)?( is| was)? (larger than|too (large|big|long))| size .*(limit|exceed|max))",
    re.IGNORECASE,
)
"""gRPC and proxies call a message too large under many codes, RESOURCE_EXHAUSTED and INTERNAL among them. A quota that
is used up, a header that is too large and a time that is too long are no such thing."""


def judge(error: BaseException) -> Answer:
    """What `error`, raised by a publish, says."""
    if isinstance(error, Unsendable):
        return Answer(Verdict.REFUSED, Fault.REFUSED, UNSENDABLE, _line(error))
    if isinstance(error, grpc.RpcError):
        return _judge_call(error)
    if isinstance(error, GoogleAuthError):
        # A token that cannot be fetched now says that of itself.
        passing = getattr(error, "retryable", False)
        kind = Fault.PASSING if passing else Fault.MISCONFIGURED
        return Answer(Verdict.PASSING, kind, "CREDENTIALS", _line(error), None if passing else CREDENTIALS)
    if isinstance(error, asyncio.CancelledError):
        return Answer(Verdict.PASSING, Fault.PASSING, "CANCELLED", "the call was cancelled")
    # A closed channel, a socket, a state of gRPC's that it should not be in.
    return Answer(Verdict.PASSING, Fault.PASSING, "ERROR", f"{type(error).__name__}: {_line(error)}")


def _judge_call(error: grpc.RpcError) -> Answer:
    said, kind = details(error), fault(error)
    verdict = VERDICTS.get(code(error), Verdict.DOUBTFUL)
    if TOO_LARGE.search(said) and verdict is not Verdict.TOO_SLOW:
        verdict = Verdict.REFUSED
    fix = PROVISION if kind is Fault.MISCONFIGURED else None
    if NO_TOKEN in said:
        fix = CREDENTIALS
    return Answer(verdict, kind, code(error).name, said, fix)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
