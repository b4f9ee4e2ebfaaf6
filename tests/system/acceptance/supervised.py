"""What is seen of a supervisor and its processes: its admin port, and who lives."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ops.waiting import until
from tests.system.acceptance.conftest import Process


async def get(process: Process, path: str, event: str = "supervisor.started") -> tuple[int, str]:
    url = f"http://127.0.0.1:{process.fields(event)['admin_port']}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def samples(page: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of a name, by the values of `labels`."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(page):
        for each in family.samples:
            if each.name == name:
                key = tuple(each.labels.get(label, "") for label in labels)
                found[key] = found.get(key, 0) + each.value
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(*pids: int) -> None:
    async def look() -> bool:
        return not any(map(lives, pids))

    await until(look)
