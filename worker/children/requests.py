"""What a worker asks of its nursery, and what it hears: pickled, one to a datagram."""

from __future__ import annotations

from typing import Final, NamedTuple

from worker.children.setting import Setting

MAX_REQUEST: Final = 65_536


class Start(NamedTuple):
    """To the nursery, with the descriptors of the child's socket, board and output: fork a child called `name`."""

    name: int
    setting: Setting


class Kill(NamedTuple):
    """To the nursery: send `signal` to the child, or to its whole process group."""

    name: int
    signal: int
    group: bool


class Refused(NamedTuple):
    """From the nursery: a child could not be forked."""

    name: int
    fault: str


class Exited(NamedTuple):
    """From the nursery: a child has ended. `status` is that of waitpid(2), `peak` its largest memory in bytes."""

    name: int
    status: int
    peak: int
