"""A real Prometheus that scrapes what a test runs, and what it says over its API."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
import yaml

from ops.harness.ports import free_port
from ops.harness.process import ROOT
from ops.waiting import until
from tests.system.observability.shorten import seconds

DEPLOYED: Final = ROOT / "ops" / "deploy" / "prometheus.yml"
SCRAPE_SECONDS: Final = 1
START_SECONDS: Final = 30.0

Rules = Mapping[str, Mapping[str, Any]]
"""Rule files by name, as data."""


class Series(NamedTuple):
    labels: Mapping[str, str]
    points: list[tuple[float, float]]
    """Time and value; what is not a number is left out, as a panel leaves it out."""


def program() -> str:
    """Where it is not installed the test is skipped, or fails if TEST_PROMTOOL=require."""
    found = shutil.which("prometheus")
    if found is None and os.environ.get("TEST_PROMTOOL") != "require":
        pytest.skip("prometheus is not installed")
    assert found, "prometheus is not installed (Debian has a package of that name)"
    return found


class Prometheus:
    """Runs with the deployed configuration, but scrapes `targets`, by job, each second."""

    def __init__(self, folder: Path, targets: Mapping[str, str]) -> None:
        self._folder = folder
        self._targets = targets
        self._url = f"http://127.0.0.1:{free_port()}"
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, rules: Rules) -> None:
        self._configure(rules)
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                program(),
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'tsdb'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
                "--log.level=warn",
                stdout=log,
                stderr=log,
            )
        await self._loaded(rules)

    async def use(self, rules: Rules) -> None:
        """These rules from now on; what was recorded stays."""
        self._configure(rules)
        assert self._process
        self._process.send_signal(signal.SIGHUP)
        await self._loaded(rules)

    async def aclose(self) -> None:
        await self._http.close()
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule that is loaded, with its `health` and `lastError`."""
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def targets_up(self) -> bool:
        found = (await self._get("targets"))["activeTargets"]
        return len(found) == len(self._targets) and all(each["health"] == "up" for each in found)

    async def alerts(self) -> dict[str, str]:
        """`pending` or `firing`, by the alert's name; the worst of its instances."""
        found: dict[str, str] = {}
        for alert in (await self._get("alerts"))["alerts"]:
            name = alert["labels"]["alertname"]
            found[name] = min(found.get(name, alert["state"]), alert["state"])
        return found

    async def range(self, query: str, since: float, step: float = SCRAPE_SECONDS) -> list[Series]:
        """As a panel asks: from `since` until now; series without a number are not there."""
        asked = {"query": query, "start": since, "end": time.time(), "step": step}
        found = (await self._get("query_range", **asked))["result"]
        series = [Series(each["metric"], _numbers(each["values"])) for each in found]
        return [each for each in series if each.points]

    async def _get(self, path: str, **parameters: Any) -> Any:
        async with self._http.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            assert response.status in (200, 503), await response.text()
            response.raise_for_status()
            return (await response.json())["data"]

    def _configure(self, rules: Rules) -> None:
        config = yaml.safe_load(DEPLOYED.read_text())
        config["global"] |= dict.fromkeys(config["global"], f"{SCRAPE_SECONDS}s")
        config["rule_files"] = [f"{self._folder}/{name}" for name in rules]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [self._targets[job["job_name"]]]}]
        for name, document in rules.items():
            (self._folder / name).write_text(yaml.safe_dump(document))
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    async def _loaded(self, rules: Rules) -> None:
        """Returns when it evaluates just these."""
        wanted = sum(len(group["rules"]) for document in rules.values() for group in document["groups"])

        async def look() -> bool:
            assert self._process
            assert self._process.returncode is None, (self._folder / "prometheus.log").read_text()
            try:
                found = await self.rules()
            except aiohttp.ClientError:
                return False  # it does not listen yet, or has still to read what is stored
            waits = sorted(rule["duration"] for rule in found if rule["type"] == "alerting")
            return (
                len(found) == wanted
                and waits == _waits(rules)
                and all(rule["health"] == "ok" for rule in found)
            )

        await until(look, START_SECONDS)


def _waits(rules: Rules) -> list[int]:
    """The seconds that alerts wait before they fire."""
    return sorted(
        seconds(rule.get("for", "0s"))
        for document in rules.values()
        for group in document["groups"]
        for rule in group["rules"]
        if "alert" in rule
    )


def _numbers(values: Iterable[tuple[float, str]]) -> list[tuple[float, float]]:
    return [(float(at), float(value)) for at, value in values if math.isfinite(float(value))]


@asynccontextmanager
async def open_prometheus(
    folder: Path, targets: Mapping[str, str], rules: Rules
) -> AsyncIterator[Prometheus]:
    """Returns once every target is scraped and every rule evaluated without a fault."""
    prometheus = Prometheus(folder, targets)
    try:
        await prometheus.start(rules)
        await until(prometheus.targets_up, START_SECONDS)
        yield prometheus
    finally:
        await prometheus.aclose()


def deployed(change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> Rules:
    """The rule files of ops/prometheus, each changed."""
    folder = ROOT / "ops" / "prometheus"
    return {file.name: change(yaml.safe_load(file.read_text())) for file in sorted(folder.glob("*.yml"))}
