"""What authors write against: a pipeline is a function of (job, run), declared with its preset's name."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from engine.errors import ConfigurationError
from engine.limits import BACKOFF_SECONDS, MAX_ATTEMPTS, PRESET, TIMEOUT_SECONDS
from engine.model import Job


class Run(Protocol):
    """The attempt as its pipeline sees it. Every member may be used from the pipeline's thread or task."""

    attempt: int

    @property
    def cancelled(self) -> threading.Event:
        """Set when the attempt should stop: a plain function looks at it from time to time."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Show `fraction` (0..1, clamped) and a message to the job's owner. Never blocks, never raises."""

    def step(self, name: str) -> AbstractContextManager[object]:
        """`with run.step("draft"):` makes that a span of the job's trace, where traces are exported."""


Function = Callable[[Job, Run], Any]


class Metadata(BaseModel):
    """Base of metadata models: frozen, and a misspelt member is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Code under the name that the API knows it by.

    `timeout` and `backoff` (the base of the exponential back-off) are in seconds. A plain `function` runs in a
    thread, an `async` one on the worker's event loop, which it must not block.
    """

    preset: str
    function: Function
    description: str = ""
    metadata: type[BaseModel] | None = None
    timeout: float = 300.0
    max_attempts: int = 5
    backoff: float = 1.0
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        call = getattr(self.function, "__call__", None)  # noqa: B004 - of an object that is called like a function
        is_async = inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)
        object.__setattr__(self, "is_async", is_async)
        bounded = (
            ("preset", self.preset in PRESET, PRESET.fault),
            ("timeout", self.timeout in TIMEOUT_SECONDS, TIMEOUT_SECONDS.fault),
            ("max_attempts", self.max_attempts in MAX_ATTEMPTS, MAX_ATTEMPTS.fault),
            ("backoff", self.backoff in BACKOFF_SECONDS, BACKOFF_SECONDS.fault),
        )
        if faults := [f"{name}: {fault}" for name, good, fault in bounded if not good]:
            raise ConfigurationError([f"pipeline {self.preset!r}: {fault}" for fault in faults])


def pipeline(
    preset: str,
    *,
    description: str = "",
    metadata: type[BaseModel] | None = None,
    timeout: float = 300.0,
    max_attempts: int = 5,
    backoff: float = 1.0,
) -> Callable[[Function], Pipeline]:
    """Declare the decorated function as the pipeline behind `preset`; see Pipeline for the units."""

    def declare(function: Function) -> Pipeline:
        return Pipeline(
            preset=preset,
            function=function,
            description=description or inspect.getdoc(function) or "",
            metadata=metadata,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
        )

    return declare


class Registry(Mapping[str, Pipeline]):
    """The pipelines of a process, by preset. Two of one name are refused."""

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines: dict[str, Pipeline] = {}
        for each in pipelines:
            if each.preset in self._pipelines:
                raise ConfigurationError([f"preset {each.preset!r} is declared twice"])
            self._pipelines[each.preset] = each

    def __getitem__(self, preset: str) -> Pipeline:
        return self._pipelines[preset]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pipelines)

    def __len__(self) -> int:
        return len(self._pipelines)


def load_pipelines(modules: Sequence[str]) -> Registry:
    """The built-in pipelines and those of `modules` (dotted paths), each of which lists its own in `pipelines`."""
    found: list[Pipeline] = []
    for path in ("engine.pipelines", *modules):
        try:
            listed = import_module(path).pipelines
        except Exception as error:
            raise ConfigurationError(
                [f"OUTRIDER_PIPELINES: {path}: {type(error).__name__}: {error}"]
            ) from error
        if not isinstance(listed, list) or not all(isinstance(item, Pipeline) for item in listed):
            raise ConfigurationError([f"OUTRIDER_PIPELINES: {path}.pipelines is not a list of Pipeline"])
        found += listed
    return Registry(found)
