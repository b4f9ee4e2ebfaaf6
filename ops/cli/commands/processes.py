"""`outrider web`, `relay` and `worker`: each runs one process, which `--tied` ends with its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engine.process.run import Main

MAX_PROCESSES = 256

Tied = Annotated[
    bool,
    typer.Option(
        "--tied", hidden=True, help="End at once when standard input, which a parent holds open, ends."
    ),
]


Processes = Annotated[
    int,
    typer.Option(
        min=1,
        max=MAX_PROCESSES,
        help="Run so many of them under a supervisor, which starts again what dies. Its admin port shows all.",
    ),
]


def web(processes: Processes = 1, tied: Tied = False) -> None:
    """Serve the HTTP API. SIGTERM drains, a second one stops at once."""
    if processes == 1:
        _run("web", tied)
        return
    from functools import partial

    from web.__main__ import several

    _run("web", tied, partial(several, processes=processes))


def relay(tied: Tied = False) -> None:
    """Run maintenance, and publish to Pub/Sub or else run jobs. SIGTERM drains, a second one stops at once."""
    _run("relay", tied)


def worker(processes: Processes = 1, tied: Tied = False) -> None:
    """Run jobs. SIGTERM drains, a second one stops at once."""
    if processes == 1:
        _run("worker", tied)
        return
    from functools import partial

    from engine.process.fleet import main

    _run("worker", tied, partial(main, role="worker", processes=processes))


def _run(role: str, tied: bool, main: Main | None = None) -> None:
    if tied:
        from engine.process import supervised

        supervised.tie()
    from importlib import import_module

    from engine.process.run import run
    from engine.settings import load

    run(role, main or import_module(f"{role}.__main__").main, load())
