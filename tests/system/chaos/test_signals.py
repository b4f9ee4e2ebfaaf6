"""Every role ends in time at every signal, with the right exit code, and leaves nothing; as process 1, too."""

from __future__ import annotations

import asyncio
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest

from ops.chaos import signals
from ops.chaos.signals import ROLES, Case

pytestmark = pytest.mark.long


@pytest.fixture
def namespaces() -> None:
    if not signals.namespaces():
        pytest.skip("this user may not make a namespace of processes")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("sent", [(SIGTERM,), (SIGHUP, SIGHUP), (SIGINT, SIGINT)], ids=str)
async def test_a_role_ends_in_time_and_leaves_nothing(
    database_url: str, role: str, sent: tuple[Signals, ...]
) -> None:
    case = Case(role, first=False, signals=sent, finish=True)
    assert await asyncio.to_thread(signals.run, database_url, case) == []


@pytest.mark.parametrize("role", ["worker", "relay"])
async def test_attempts_that_do_not_end_are_released_after_the_drain(database_url: str, role: str) -> None:
    case = Case(role, first=False, signals=(SIGTERM,), finish=False)
    assert await asyncio.to_thread(signals.run, database_url, case) == []


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("sent", [(SIGTERM,), (SIGTERM, SIGTERM)], ids=str)
async def test_as_process_1_it_ends_alike(database_url: str, role: str, sent: tuple[Signals, ...]) -> None:
    case = Case(role, first=True, signals=sent, finish=True)
    assert await asyncio.to_thread(signals.run, database_url, case) == []
