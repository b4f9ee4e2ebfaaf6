"""The span that does nothing, used wherever no spans are exported, and the interface of an exporter."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, Self

Value = str | int | float | bool


class Span:
    """A traced piece of work, until `end` or the end of a `with` block. This base class records nothing."""

    traceparent: str | None = None

    def context(self) -> contextvars.Context | None:
        """A context in which the span is the current one, for a task or a thread. None if nothing is recorded."""
        return None

    def note(self, name: str, value: Value) -> None:
        """Add an attribute."""

    def fail(self, error: str) -> None:
        """Mark the work as failed. `error` is the error's type, optionally followed by ": " and a message."""

    def end(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


OFF: Final = Span()


class Start(Protocol):
    """Begins a span, now or at `began` (nanoseconds since 1970).

    Without `origins` the span is a child of the current span. With one context in `origins` the span is a child of
    that context; several contexts are linked.
    """

    def __call__(
        self,
        name: str,
        kind: str,
        attributes: Mapping[str, Value],
        origins: Iterable[str | None] | None = None,
        began: int | None = None,
    ) -> Span: ...


class Exporting(Protocol):
    """Creates and sends the spans of this process."""

    @property
    def start(self) -> Start: ...

    def close(self) -> None:
        """Send the remaining spans, in bounded time."""
