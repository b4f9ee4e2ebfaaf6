"""The batcher: what arrives together is written together, and a fault stays with the item that causes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

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
        first = batch.submit(0)
        await store.entered.wait()
        rest = [batch.submit(n) for n in (2, 4, 6)]
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
        first = batch.submit(2)
        await store.entered.wait()
        gone, stays = batch.submit(4), batch.submit(6)
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
        waiting = [batch.submit(2)]
        await store.entered.wait()
        waiting += [batch.submit(n) for n in (4, 6)]
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


async def test_a_posted_item_is_answered_by_a_call_within_the_same_groups(store: Store) -> None:
    store.gate.clear()
    store.poison = {6}
    batch: Batcher[int, int] = Batcher(store.flush)
    answers: list[tuple[str, int | Exception]] = []
    first = batch.put(0)
    for item, name in ((2, "good"), (3, "odd"), (6, "bad"), (4, "last")):
        batch.post(item, partial(lambda name, answer: answers.append((name, answer)), name))
    waited = batch.put(8)
    async with asyncio.timeout(5):
        await store.entered.wait()
        store.gate.set()
        await batch.drain()
    assert store.groups[:2] == [[0, 2, 3, 6, 4, 8], [0, 2, 3]]
    assert (first.result(), waited.result()) == (0, 80)
    assert [
        (name, type(answer) if isinstance(answer, Exception) else answer) for name, answer in answers
    ] == [
        ("good", 20),
        ("odd", ValueError),
        ("bad", DataError),
        ("last", 40),
    ]


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
        waiting = [batch.submit(2)]
        await store.entered.wait()
        waiting.append(batch.submit(10))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batch.submit(4)
        store.gate.set()
        assert list(await asyncio.gather(*waiting)) == [20, 100]
        assert await batch.submit(4) == 40


@pytest.mark.parametrize("answers", [[], [1], [1, 2, 3]], ids=["none", "too few", "too many"])
async def test_a_write_that_answers_too_few_or_too_many_answers_everybody_with_the_fault(
    answers: list[int | Exception],
) -> None:
    async def flush(items: Sequence[int]) -> list[int | Exception]:
        return answers if len(items) == 2 else [item * 10 for item in items]

    batch: Batcher[int, int] = Batcher(flush)
    async with asyncio.timeout(5):
        got = await asyncio.gather(*(batch.submit(n) for n in (2, 4)), return_exceptions=True)
        assert [type(each) for each in got] == [RuntimeError] * 2
        assert await batch.submit(6) == 60


async def test_a_write_that_is_cancelled_from_below_answers_its_group_and_the_next_one_is_written(
    store: Store,
) -> None:
    """gRPC raises CancelledError for a closed channel, and nobody has cancelled the writer."""
    torn = asyncio.Event()

    async def flush(items: Sequence[int]) -> list[int | Exception]:
        if not torn.is_set():
            torn.set()
            raise asyncio.CancelledError
        return await store.flush(items)

    batch: Batcher[int, int] = Batcher(flush)
    async with asyncio.timeout(5):
        got = await asyncio.gather(*(batch.submit(n) for n in (2, 4)), return_exceptions=True)
        assert [type(each) for each in got] == [DatabaseUnavailable] * 2
        assert await batch.submit(6) == 60


async def test_an_answer_that_no_future_takes_costs_its_neighbours_nothing() -> None:
    async def flush(_items: Sequence[int]) -> list[int | Exception]:
        return [10, StopIteration(), 30]

    batch: Batcher[int, int] = Batcher(flush)
    async with asyncio.timeout(5):
        first, odd, last = await asyncio.gather(*(batch.submit(n) for n in range(3)), return_exceptions=True)
    assert (first, type(odd), last) == (10, RuntimeError, 30)


async def test_an_item_that_cannot_be_weighed_is_its_callers_fault_alone(store: Store) -> None:
    def weigh(item: int) -> int:
        if item == 4:
            raise ValueError("no weight")
        return item

    batch: Batcher[int, int] = Batcher(store.flush, weigh=weigh)
    async with asyncio.timeout(5):
        first = batch.submit(2)
        with pytest.raises(ValueError, match="no weight"):
            batch.submit(4)
        assert list(await asyncio.gather(first, batch.submit(6))) == [20, 60]
    assert store.groups == [[2, 6]]


@pytest.mark.parametrize("begun", [True, False], ids=["while it writes", "before its first step"])
async def test_a_writer_that_is_stopped_leaves_nobody_waiting(store: Store, begun: bool) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush, max_group=1)
    answers = [batch.put(n) for n in (2, 4)]
    if begun:
        async with asyncio.timeout(5):
            await store.entered.wait()
    assert batch._writer is not None
    batch._writer.cancel()
    async with asyncio.timeout(5):
        await batch.drain()
        await asyncio.wait(answers)
        assert all(answer.cancelled() for answer in answers)
        store.gate.set()
        assert await batch.submit(6) == 60


async def test_who_gives_up_takes_his_weight_with_him(store: Store) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush, weigh=lambda item: item, max_waiting_weight=10)
    async with asyncio.timeout(5):
        first = batch.submit(2)
        await store.entered.wait()
        gone = batch.submit(10)
        await asyncio.sleep(0)
        gone.cancel()
        store.gate.set()
        assert await first == 20
        await batch.drain()
        assert await batch.submit(4) == 40


async def test_each_waiter_gets_the_answer_of_his_own_item_whatever_it_weighs(store: Store) -> None:
    weights = {2: 5, 4: 1, 6: 9, 8: 3}
    batch: Batcher[int, int] = Batcher(store.flush, weigh=weights.__getitem__)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*(batch.submit(n) for n in weights)) == [20, 40, 60, 80]


async def test_after_a_write_that_timed_out_the_next_groups_are_smaller_and_grow_back(store: Store) -> None:
    batch: Batcher[int, int] = Batcher(store.flush, max_group=4)
    store.faults = [QueryCanceled("too long")]
    async with asyncio.timeout(5):
        for _ in range(2):
            await asyncio.gather(*(batch.submit(n) for n in range(0, 12, 2)), return_exceptions=True)
    assert [len(group) for group in store.groups] == [4, 2, 4, 2]


async def test_who_has_waited_too_long_is_told_so_and_later_ones_in_their_turn(store: Store) -> None:
    store.gate.clear()
    batch: Batcher[int, int] = Batcher(store.flush, max_group=1, patience=0.2)
    async with asyncio.timeout(5):
        taken, queued = batch.submit(2), batch.submit(4)
        await asyncio.sleep(0.1)
        later = batch.submit(6)
        for answer in (taken, queued):
            with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.2 s"):
                await answer
        assert not later.done()
        with pytest.raises(DatabaseUnavailable):
            await later
        store.gate.set()
        assert await batch.submit(8) == 80
    # What had been taken was written, and what still waited was not.
    assert store.groups == [[2], [8]]


async def test_who_is_answered_in_time_is_not_disturbed(store: Store) -> None:
    batch: Batcher[int, int] = Batcher(store.flush, patience=0.05)
    async with asyncio.timeout(5):
        assert await batch.submit(2) == 20
        await asyncio.sleep(0.1)
        assert await batch.submit(4) == 40
