"""Faults that can be injected. A fault acts from its injection until it has struck `times` times or is lifted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from random import Random
from typing import Any, TypeVar

import grpc

Message = Any
"""A raw protobuf PubsubMessage."""


@dataclass(kw_only=True)
class Fault:
    """The filters of every fault. A filter that is left out matches everything.

    `on` is the name of a topic or subscription, in full or only its last part. `containing` is searched in the data
    and the attribute values of messages. `where` is called for each message, and cannot be sent to another process.
    `times` None means until the fault is lifted. `hits` counts how often the fault has struck.
    """

    on: str | None = None
    times: int | None = None
    probability: float = 1.0
    containing: str | None = None
    where: Callable[[Message], bool] | None = None
    hits: int = 0

    def matches(self, resource: str, messages: Iterable[Message]) -> bool:
        if self.on not in (None, resource, resource.rpartition("/")[2]):
            return False
        if self.containing is None and self.where is None:
            return True
        return any(self._matches_message(message) for message in messages)

    def _matches_message(self, message: Message) -> bool:
        if self.where is not None and not self.where(message):
            return False
        text = self.containing
        if text is None or text.encode() in message.data:
            return True
        return any(text in value for value in message.attributes.values())


@dataclass(kw_only=True)
class CallFault(Fault):
    """A fault of calls. `method` is a gRPC method, such as Publish, StreamingPull (its opening) or Acknowledge."""

    method: str | None = None


@dataclass(kw_only=True)
class Fail(CallFault):
    """The call fails before anything is done.

    With `containing` and INVALID_ARGUMENT: a poison message, which fails its whole request, as at Google.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass(kw_only=True)
class Delay(CallFault):
    """The call waits for `seconds` of real time before anything is done."""

    seconds: float


@dataclass(kw_only=True)
class LoseReply(CallFault):
    """The call takes effect, and then fails."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass(kw_only=True)
class DropAcks(Fault):
    """Acknowledgements are accepted and forgotten, which the service may do; `times` counts ack ids."""


@dataclass(kw_only=True)
class Duplicate(Fault):
    """A message is delivered a second time at once, under another ack id; `times` counts messages."""


@dataclass(kw_only=True)
class Reorder(Fault):
    """Waiting messages are shuffled before each answer; `times` counts answers."""


@dataclass(kw_only=True)
class Stall(Fault):
    """Open streams stay open but get no more messages. With `new_streams` later streams get none either."""

    new_streams: bool = False
    before: float = math.inf
    """Set at injection. Streams are numbered as they open, and streams from this number on get messages."""


F = TypeVar("F", bound=Fault)


class Faults:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._active: list[Fault] = []

    def inject(self, fault: F) -> F:
        self._active.append(fault)
        return fault

    def lift(self, fault: Fault) -> None:
        """Remove a fault. A fault that has run out is already gone."""
        if fault in self._active:
            self._active.remove(fault)

    def clear(self) -> None:
        self._active.clear()

    def any(self, kind: type[Fault]) -> bool:
        return any(isinstance(fault, kind) for fault in self._active)

    def hit(
        self, kind: type[F], resource: str, messages: Iterable[Message] = (), method: str | None = None
    ) -> F | None:
        """The first active fault that strikes here. The strike is counted."""
        for fault in self._active:
            if not isinstance(fault, kind) or not fault.matches(resource, messages):
                continue
            if isinstance(fault, CallFault) and fault.method not in (None, method):
                continue
            if fault.probability < 1 and self._rng.random() >= fault.probability:
                continue
            fault.hits += 1
            if fault.hits == fault.times:
                self._active.remove(fault)
            return fault
        return None

    def stalls(self, resource: str, stream: int) -> bool:
        return any(
            isinstance(fault, Stall) and stream < fault.before and fault.matches(resource, ())
            for fault in self._active
        )


KINDS: dict[str, type[Fault]] = {
    kind.__name__: kind for kind in (Fail, Delay, LoseReply, DropAcks, Duplicate, Reorder, Stall)
}


def to_json(fault: Fault) -> dict[str, Any]:
    if fault.where is not None:
        raise ValueError("a function cannot be sent to another process; use `containing`")
    values = {field.name: getattr(fault, field.name) for field in fields(fault)}
    for unsent in ("where", "hits", "before"):
        values.pop(unsent, None)
    if "code" in values:
        values["code"] = values["code"].name
    return {"kind": type(fault).__name__, **values}


def from_json(value: dict[str, Any]) -> Fault:
    values = dict(value)
    kind = KINDS[values.pop("kind")]
    if "code" in values:
        values["code"] = grpc.StatusCode[values["code"]]
    return kind(**values)
