"""The spans of the steps that a child tells of: the worker records them, as children of the attempt's span."""

from __future__ import annotations

from engine.telemetry import tracing
from engine.telemetry.spans import OFF, Span
from worker.children.frames import StepBegan, StepEnded


class Steps:
    """Those of the attempt whose span is `within`."""

    def __init__(self) -> None:
        self.within: Span = OFF
        self._open: dict[int, Span] = {}

    def began(self, step: StepBegan) -> None:
        within = self._open.get(step.parent, self.within) if step.parent else self.within
        self._open[step.key] = tracing.start(step.name, "internal", {}, within.traceparent)

    def ended(self, step: StepEnded) -> None:
        if (span := self._open.pop(step.key, None)) is not None:
            if step.error is not None:
                span.fail(step.error)
            span.end()

    def end(self, error: str) -> None:
        """End those that did not come to their end in the child."""
        for key in list(self._open):
            self.ended(StepEnded(key, error))
