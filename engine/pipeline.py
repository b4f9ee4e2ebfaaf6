"""What pipeline authors write against: a pipeline is a function of (job, run), declared under a preset's name."""

from __future__ import annotations

import functools
import inspect
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict

from engine.errors import ConfigurationError
from engine.limits import BACKOFF_SECONDS, MAX_ATTEMPTS, MEMORY_MB, PRESET, TIMEOUT_SECONDS
from engine.model import Job


class Flag(Protocol):
    """What one may look at, and wait for, as at a threading.Event."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, at most `timeout` seconds. Returns whether it is."""


class Run(Protocol):
    """The running attempt, as its pipeline sees it. Every member may be used from the pipeline's thread or task.

    `attempt` is the number of the attempt. Numbers count from 1, over retries, snoozes, lapses and redrives.
    """

    attempt: int

    @property
    def cancelled(self) -> threading.Event:
        """Set when the attempt should stop: its time is up, its job is cancelled, its lease is lost, the worker stops.

        A function in a thread must check this event from time to time. In a process a plain function is interrupted by
        an exception, SIGTERM's, that it must not swallow; an async function gets a CancelledError.
        """

    @property
    def stopping(self) -> Flag:
        """Set when the worker has begun to drain: the attempt may go on for the drain time, and is released then."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Show `fraction` (0..1, clamped) and a message to the job's owner. Never blocks, never raises.

        Only the latest report is shown, renewed at most once a second. A message is cut to 500 characters.
        """

    def step(self, name: str) -> AbstractContextManager[object]:
        """`with run.step("draft"):` makes the block a span of the job's trace, if traces are exported.

        If the attempt kills its worker, the job's error names the step that began last.
        """


Function = Callable[[Job, Run], Any]
Runs = Literal["task", "thread", "process"]


class Metadata(BaseModel):
    """Base class of a preset's metadata model, a pydantic model that is frozen and refuses unknown members.

    Pass the subclass to `pipeline(…, metadata=…)`; `job.metadata` is then an instance. Over HTTP a submission whose
    metadata does not fit is refused. A worker does not run a job whose metadata does not fit, because other workers
    may have newer or older code: the job waits for one of these, spends no attempt of its budget, and fails after 15
    minutes. A validator that raises anything but ValueError or AssertionError ends the attempt in that error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A function declared under a preset's name, as `pipeline` returns it. List it in the module's `pipelines`.

    - `preset`: the name that jobs give, `[a-z0-9][a-z0-9_.-]{0,62}`.
    - `function`: called with (job, run). If a plain function returns an awaitable, as a decorator round an async
      function may, that is awaited on an event loop. Generators are refused.
    - `description`: shown to clients of the API.
    - `metadata`: the model that a job's metadata must fit. None accepts any metadata, as a dict.
    - `timeout`: the longest run of one attempt in seconds, 1 to 86 400. A job's `timeout_seconds` takes precedence.
    - `max_attempts`: the number of errors at which a job fails, 1 to 25. A job's own `max_attempts` takes precedence.
    - `backoff`: the base of the back-off in seconds, 0 to 600. The pause before a retry is random between 0 and
      `backoff * 2**n` seconds after n earlier errors, at most 600.
    - `after_attempt`: called without arguments after each attempt, where the function ran, for example Django's
      `close_old_connections`. It counts towards the attempt's time. An error in it is logged, no more.
    - `runs`: where an attempt runs. "process": in a process of its own, which a time-out or a cancellation ends, and
      which costs no neighbour an attempt when it crashes; the default for plain functions. The process imports the
      modules of OUTRIDER_PIPELINES itself, so a worker refuses to start if the pipeline is in none of their lists.
      "task": on the worker's event loop, which the function must not block; the default for async functions.
      "thread": in a thread of the worker, for plain functions. A thread shares the worker's memory and cannot be
      interrupted.
    - `memory_mb`: the private memory in MiB that an attempt in a process may have; beyond it Python raises
      MemoryError there.
    - `is_async`: derived from `function`.

    Raises ConfigurationError with every value that is out of its bounds.
    """

    preset: str
    function: Function
    description: str = ""
    metadata: type[BaseModel] | None = None
    timeout: float = 300.0
    max_attempts: int = 5
    backoff: float = 1.0
    after_attempt: Callable[[], object] | None = None
    runs: Runs | None = None
    memory_mb: int | None = None
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        body = _body(self.function)
        is_async = inspect.iscoroutinefunction(body)
        object.__setattr__(self, "is_async", is_async)
        if self.runs is None:
            object.__setattr__(self, "runs", "task" if is_async else "process")
        kind = _unfit_kind(self.function, body)
        bounded = (
            ("function", kind is None, f"is {kind}"),
            ("preset", self.preset in PRESET, PRESET.fault),
            ("timeout", self.timeout in TIMEOUT_SECONDS, TIMEOUT_SECONDS.fault),
            ("max_attempts", self.max_attempts in MAX_ATTEMPTS, MAX_ATTEMPTS.fault),
            ("backoff", self.backoff in BACKOFF_SECONDS, BACKOFF_SECONDS.fault),
            ("runs", self.runs in get_args(Runs), f"must be one of {', '.join(get_args(Runs))}"),
            ("runs", self.runs != "task" or is_async, "a plain function cannot run as a task"),
            ("runs", self.runs != "thread" or not is_async, "an async function cannot run in a thread"),
            ("memory_mb", self.memory_mb is None or self.runs == "process", "needs runs='process'"),
            ("memory_mb", self.memory_mb is None or self.memory_mb in MEMORY_MB, MEMORY_MB.fault),
            ("after_attempt", _is_hook(self.after_attempt), "must be a plain function"),
        )
        if faults := [f"{name}: {fault}" for name, good, fault in bounded if not good]:
            raise ConfigurationError([f"pipeline {self.preset!r}: {fault}" for fault in faults])


def _body(function: Any) -> Any:
    """The function that a call runs, behind partials, static methods and objects that are called like functions.

    Decorators are not looked behind: one round an async function may run it to its end, and return no awaitable.
    """
    while isinstance(function, functools.partial | staticmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004


def _unfit_kind(function: Any, body: Any) -> str | None:
    """What `function` is, if a call of it returns no result. None if it can be a pipeline."""
    if inspect.isclass(function):
        return "a class; give an object or a function that is called with (job, run)"
    if not callable(function):
        return f"a {type(function).__name__}, which cannot be called with (job, run)"
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        return "a generator, which yields; a pipeline returns its result"
    return None


def _is_hook(hook: object) -> bool:
    return hook is None or (callable(hook) and not inspect.iscoroutinefunction(hook))


def pipeline(
    preset: str,
    *,
    description: str = "",
    metadata: type[BaseModel] | None = None,
    timeout: float = 300.0,
    max_attempts: int = 5,
    backoff: float = 1.0,
    after_attempt: Callable[[], object] | None = None,
    runs: Runs | None = None,
    memory_mb: int | None = None,
) -> Callable[[Function], Pipeline]:
    """Declare the decorated function as the pipeline of `preset`. The arguments are the fields of `Pipeline`.

    `description` defaults to the function's docstring. Raises ConfigurationError with every value that is out of its
    bounds. The decorated name is a `Pipeline`; call its `function` in a test.
    """

    def declare(function: Function) -> Pipeline:
        return Pipeline(
            preset=preset,
            function=function,
            description=description or inspect.getdoc(function) or "",
            metadata=metadata,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            after_attempt=after_attempt,
            runs=runs,
            memory_mb=memory_mb,
        )

    return declare


class Registry(Mapping[str, Pipeline]):
    """The pipelines of a process, by preset. Raises ConfigurationError if a preset is declared twice."""

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


def _place(error: BaseException) -> str:
    """Where an import raised `error`, if that says more than the error does. A SyntaxError names its place itself."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    if isinstance(error, SyntaxError) or len(frames) < 2:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno})"


def load_pipelines(modules: Sequence[str]) -> Registry:
    """The built-in pipelines and those of `modules` (dotted paths), each of which has a list `pipelines`.

    Raises ConfigurationError if a module cannot be imported or has no such list, or a preset is declared twice.
    """
    found: list[Pipeline] = []
    for path in ("engine.pipelines", *modules):
        try:
            listed = import_module(path).pipelines
        # A module that ends the process at its import would else leave without a word of which module.
        except (Exception, SystemExit) as error:
            raise ConfigurationError(
                [f"OUTRIDER_PIPELINES: {path}: {type(error).__name__}: {error}{_place(error)}"]
            ) from error
        if not isinstance(listed, list) or not all(isinstance(item, Pipeline) for item in listed):
            raise ConfigurationError([f"OUTRIDER_PIPELINES: {path}.pipelines is not a list of Pipeline"])
        found += listed
    return Registry(found)
