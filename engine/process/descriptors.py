"""How many descriptors this process may open: raised at the start, and what of it connections may take."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from engine.process.http.admission import Limits

RESERVED: Final = 200
"""Descriptors that are left to the database, the log, files, the admin server and an author's code."""

log = structlog.get_logger()


def raise_limit() -> None:
    """Raise the soft limit to the hard one. The soft one is as a rule 1024, for the sake of select() alone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse a hard limit that is none. The caps are checked against what holds.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fitting(limits: Limits) -> Limits:
    """`limits`, lowered to what the descriptors allow. Logs what does not fit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(soft - RESERVED, 1)
    if soft == resource.RLIM_INFINITY or limits.connections <= possible:
        return limits
    log.warning(
        "connections.limited",
        wanted=limits.connections,
        possible=possible,
        fix=f"raise the limit of open files (ulimit -n) to {limits.connections + RESERVED},"
        f" or set OUTRIDER_MAX_CONNECTIONS to {possible}",
    )
    return replace(limits, connections=possible, per_address=min(limits.per_address, possible))
