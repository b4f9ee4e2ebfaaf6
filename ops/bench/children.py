"""What an attempt in a process of its own costs, beside one on the loop and one in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.settings import load
from ops.bench import pickup, processes
from ops.bench.cpu import spent
from ops.bench.drain import backlog, rate
from ops.bench.figures import Row, ratio, repeated
from ops.bench.plan import Plan
from ops.harness.postgres import Databases
from worker.children.pool import open_children
from worker.children.setting import Setting

TITLE = "Attempts as tasks, in threads and in processes (children)"
PRESETS: Final = {"task": "noop", "thread": "noop-thread", "process": "noop-process"}
HOLD: Final = "hold-process"
CLOCKS: Final = {"thread": "clock-thread", "process": "clock-process"}
SLOTS: Final = 20
FEW: Final = 2
CHILDREN: Final = 8
MIB: Final = 1 << 20


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    with server.migrated() as url, processes.relay(url):
        cpu = repeated(plan.repeat, lambda: _cpu(url, plan.child_rows), "µs")
        rates = repeated(plan.repeat, lambda: {"rate": _rate(url, plan.child_rows)}, "/s")
    for kind in PRESETS:
        yield Row(f"CPU a no-op job as {kind}, worker and children", cpu[kind].samples, "µs")
        yield Row(f"CPU a no-op job as {kind}, server", cpu[f"{kind}, server"].samples, "µs")
    whole = [a + b for a, b in zip(cpu["process"].samples, cpu["process, server"].samples, strict=True)]
    yield Row("CPU a no-op job as process, in all", whole, "µs", at_most=400.0)
    yield ratio("process / thread, worker and children", cpu["process"], cpu["thread"])
    yield Row(f"no-op jobs of one worker with {FEW} children", rates["rate"].samples, "/s", at_least=1000.0)
    late = repeated(plan.repeat, lambda: _latencies(server, plan), "ms")
    yield from late.values()
    more = [
        max(a - b, 0.0)
        for a, b in zip(late["process, p50"].samples, late["thread, p50"].samples, strict=True)
    ]
    yield Row("process, later than thread, p50", more, "ms", at_most=3.0)
    start = repeated(plan.repeat, lambda: asyncio.run(_cold_start()), "s")
    yield Row(f"cold start of {CHILDREN} children", start["seconds"].samples, "s", at_most=2.0)
    yield Row("memory of a child (PSS)", start["pss"].samples, "MB")


def _cpu(url: str, rows: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kind, preset in PRESETS.items():
        with (
            _warm_worker(url, preset, SLOTS) as pid,
            backlog(url, rows, preset) as commit,
            spent(pid, url) as cpu,
        ):
            commit()
            rate(url, rows)
        figures[kind], figures[f"{kind}, server"] = cpu.family / rows, cpu.server / rows
    return figures


def _rate(url: str, rows: int) -> float:
    preset = PRESETS["process"]
    with _warm_worker(url, preset, FEW), backlog(url, rows, preset) as commit:
        commit()
        return rate(url, rows)


@contextmanager
def _warm_worker(url: str, preset: str, slots: int) -> Iterator[int]:
    """The id of a worker that has a child for each slot, if `preset` runs in children. They are not replaced."""
    few = slots * 2
    with (
        backlog(url, few, HOLD if preset == PRESETS["process"] else preset) as commit,
        processes.worker(url, slots, OUTRIDER_CHILD_MAX_JOBS="1000000") as worker,
    ):
        commit()
        rate(url, few)
        yield worker.pid


def _latencies(server: Databases, plan: Plan) -> dict[str, float]:
    return {
        f"{kind}, {share}": late
        for kind, preset in CLOCKS.items()
        for share, late in pickup.measured(server, plan.pickups, preset).items()
        if "flushed" not in share
    }


async def _cold_start() -> dict[str, float]:
    settings = load({"OUTRIDER_PIPELINES": processes.PIPELINES})
    async with open_children(Setting(settings, "worker", [PRESETS["process"]], 1000, 512 * MIB)) as children:
        began = time.monotonic()
        await children.warm(CHILDREN)
        seconds = time.monotonic() - began
        shares = [_pss(pid) for pid in children.pids()]
    return {"seconds": seconds, "pss": sum(shares) / len(shares)}


def _pss(pid: int) -> float:
    """The memory of a process in MB, of what it shares its proportion (proc(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kilobytes) / 1024
