"""The span that does nothing, which stands for every span where none are exported, and what an exporter gives."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, Self

Value = str | int | float | bool


class Span:
    """A piece of work that is traced, until `end` or the end of a `with` block. This one is of work that is not."""

    traceparent: str | None = None

    def context(self) -> contextvars.Context | None:
        """Where the span is the current one, for what runs as a task or in a thread of its own."""
        return None

    def note(self, name: str, value: Value) -> None:
        """Add an attribute."""

    def fail(self, error: str) -> None:
        """Say that the work failed: an error's type, perhaps followed by ": " and its message."""

    def end(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


OFF: Final = Span()


class Start(Protocol):
    """Begins a span, now or at `began` (nanoseconds since 1970).

    The span belongs to the current one; or, with `origins`, to the only context among them. Several are linked.
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
    """What makes the spans of this process, and sends them."""

    @property
    def start(self) -> Start: ...

    def close(self) -> None:
        """Send what is left, within a bound."""
