"""The presets whose jobs a relay looks for: bounded, whoever names presets, and none is left out for ever."""

from __future__ import annotations

import pytest

from ops.waiting import until
from relay.publishing import known_presets
from relay.publishing.known_presets import KnownPresets
from tests.relay.relay_harness import RelayHarness


def serving(*served: str) -> KnownPresets:
    presets = KnownPresets()
    presets.served(served)
    return presets


def known(presets: KnownPresets) -> set[str]:
    return set(presets.next())


def test_hints_are_bounded_and_must_look_like_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_presets, "MAX_LEARNT", 3)
    presets = serving("own")
    presets.hinted(["own", "a", "a", "B", "-x", "\ud800", "x" * 64, ""])
    assert known(presets) == {"own", "a"}
    presets.hinted(f"other-{n}" for n in range(100))
    assert known(presets) == {"own", "a", "other-0", "other-1"}


def test_a_sweep_forgets_presets_without_ready_jobs_but_never_those_that_workers_run() -> None:
    presets = serving("own")
    presets.hinted(["a", "b"])
    presets.swept(["b", "own"])
    assert known(presets) == {"own", "b"}
    presets.swept([])
    assert known(presets) == {"own"}


def test_presets_that_no_worker_runs_any_more_are_looked_for_no_longer() -> None:
    presets = serving("own", "mine")
    presets.hinted(["a", "b"])
    presets.served(["mine", "a"])
    assert sorted(presets.next()) == ["a", "b", "mine"]


def test_more_presets_than_are_remembered_are_swept_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_presets, "MAX_LEARNT", 2)
    presets = serving("own")
    ready = ["a", "b", "c", "d", "e"]
    seen: list[set[str]] = []
    for _ in range(4):
        presets.swept([each for each in ready if each > presets.after][:2])
        seen.append(known(presets) - {"own"})
    assert seen == [{"a", "b"}, {"c", "d"}, {"e"}, {"a", "b"}]


def test_every_known_preset_is_the_first_one_in_its_turn() -> None:
    presets = serving("own", "mine")
    presets.hinted(["a", "b"])
    assert {presets.next()[0] for _ in range(4)} == {"own", "mine", "a", "b"}


async def test_strangers_hints_do_not_make_the_scans_longer(relay_harness: RelayHarness) -> None:
    """Anyone who can connect to the database may NOTIFY."""
    async with relay_harness.relay() as relay:
        jobs = relay.relay._jobs
        await relay_harness.queue()
        await relay_harness.all_left()
        for n in range(50):
            named = " ".join(f"stranger-{n}-{m}" for m in range(100))
            await relay_harness.conn.execute("SELECT pg_notify('outrider_ready', %s)", [named])
        await relay_harness.conn.execute("SELECT pg_notify('outrider_ready', 'last')")
        await until(lambda: len(jobs._presets.next()) > 1)
        assert len(jobs._presets.next()) <= 1 + known_presets.MAX_LEARNT
        await until(lambda: jobs._presets.next() == ["p"])


async def test_jobs_of_more_presets_than_are_remembered_are_all_published(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_presets, "MAX_LEARNT", 3)
    monkeypatch.setattr("relay.publishing.outbox_sources.MAX_LEARNT", 3)
    ids = [job_id for n in range(20) for job_id in await relay_harness.queue(preset=f"preset-{n}")]
    async with relay_harness.relay():
        await relay_harness.all_left()
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
