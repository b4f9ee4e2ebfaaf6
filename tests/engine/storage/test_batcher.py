"""The batcher: what arrives together is written together, and a fault stays with the item that causes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from psycopg import DataError
from psycopg.errors import DeadlockDetected, QueryCanceled

from engine.errors import DatabaseUnavailable, Overloaded
from engine.storage import batcher
from engine.storage.batcher import Batcher


class Store:
    """Records each group; `gate` holds a write back, `faults` says what to raise for a group."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.poison: set[int] = set()
        self.faults: list[Exception] = []

    async def flush(self, items: Sequence[int]) -> list[int | Exception]:
        self.entered.set()
        await self.gate.wait()
        self.groups.append(list(items))
        if self.faults:
            raise self.faults.pop(0)
        if self.poison & set(items):
            raise DataError("bad item")
        return [ValueError("odd") if item % 2 else item * 10 for item in items]


@pytest.fixture
def store() -> Store:
    return Store()


async def test_what_arrives_while_a_write_runs_is_the_next_group(store: Store) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        first = asyncio.create_task(batch.submit(0))
        await store.entered.wait()
        rest = [asyncio.create_task(batch.submit(n)) for n in (2, 4, 6)]
        await asyncio.sleep(0)
        store.gate.set()
        assert await asyncio.gather(first, *rest) == [0, 20, 40, 60]
    assert store.groups == [[0], [2, 4, 6]]


async def test_a_group_is_bounded_by_count_and_by_weight(store: Store) -> None:
    by_count: Batcher[int, int] = Batcher(store.flush, max_group=2)
    by_weight: Batcher[int, int] = Batcher(store.flush, weigh=lambda item: item, max_weight=10)
    async with asyncio.timeout(5):
        await asyncio.gather(*(by_count.submit(n) for n in (2, 4, 6)))
        await asyncio.gather(*(by_weight.submit(n) for n in (4, 6, 100, 2)))
    assert store.groups == [[2, 4], [6], [4, 6], [100], [2]]


async def test_an_answer_that_is_an_error_is_raised_in_its_waiter_alone(store: Store) -> None:
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        good, bad = await asyncio.gather(batch.submit(2), batch.submit(3), return_exceptions=True)
    assert good == 20
    assert isinstance(bad, ValueError)


async def test_a_bad_item_never_fails_its_neighbours(store: Store) -> None:
    store.poison = {6, 14}
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(batch.submit(n) for n in range(0, 20, 2)), return_exceptions=True)
    assert [n * 2 for n, a in enumerate(answers) if isinstance(a, DataError)] == [6, 14]
    assert [a for a in answers if isinstance(a, int)] == [0, 20, 40, 80, 100, 120, 160, 180]


@pytest.mark.parametrize("fault", [DeadlockDetected("again"), DatabaseUnavailable("gone")])
async def test_a_passing_fault_sends_the_same_group_again(store: Store, fault: Exception) -> None:
    store.faults = [fault, fault]
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        assert list(await asyncio.gather(batch.submit(2), batch.submit(4))) == [20, 40]
    assert store.groups == [[2, 4]] * 3


async def test_a_fault_that_stays_reaches_every_waiter_and_the_next_group_is_written(store: Store) -> None:
    store.faults = [DatabaseUnavailable("gone")] * 2
    batch: Batcher[int, int] = Batcher(store.flush, tries=2)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(batch.submit(2), batch.submit(4), return_exceptions=True)
        assert [type(a) for a in answers] == [DatabaseUnavailable] * 2
        assert await batch.submit(6) == 60


async def test_who_gives_up_before_his_group_is_taken_is_not_written(store: Store) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        first = asyncio.create_task(batch.submit(2))
        await store.entered.wait()
        gone, stays = asyncio.create_task(batch.submit(4)), asyncio.create_task(batch.submit(6))
        await asyncio.sleep(0)
        first.cancel()
        gone.cancel()
        store.gate.set()
        assert await stays == 60
    assert store.groups == [[2], [6]]


async def test_too_many_waiting_are_turned_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "MAX_WAITING", 2)
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        waiting = [asyncio.create_task(batch.submit(2))]
        await store.entered.wait()
        waiting += [asyncio.create_task(batch.submit(n)) for n in (4, 6)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batch.submit(8)
        store.gate.set()
        assert await asyncio.gather(*waiting) == [20, 40, 60]


async def test_drain_waits_for_everything_put_in(store: Store) -> None:
    batch: Batcher[int, int] = Batcher(store.flush, max_group=1)
    answers = [batch.put(n) for n in (2, 4, 6)]
    async with asyncio.timeout(5):
        await batch.drain()
    assert [answer.result() for answer in answers] == [20, 40, 60]


async def test_an_error_that_is_no_items_fault_is_not_bisected(store: Store) -> None:
    store.faults = [QueryCanceled("too long")]
    batch: Batcher[int, int] = Batcher(store.flush)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(batch.submit(n) for n in (2, 4)), return_exceptions=True)
    assert [type(a) for a in answers] == [QueryCanceled] * 2
    assert store.groups == [[2, 4]]


async def test_what_waits_is_bounded_by_weight_too(store: Store) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush, weigh=lambda item: item, max_waiting_weight=10)
    async with asyncio.timeout(5):
        waiting = [asyncio.create_task(batch.submit(2))]
        await store.entered.wait()
        waiting.append(asyncio.create_task(batch.submit(10)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batch.submit(4)
        store.gate.set()
        assert list(await asyncio.gather(*waiting)) == [20, 100]
        assert await batch.submit(4) == 40
