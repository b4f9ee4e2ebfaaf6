"""The compose file, and the Prometheus that it starts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from engine.process.admin import PORTS
from ops.grafana.queries import queries
from tests.ops.deploy.dockerfile import FINAL
from tests.ops.deploy.manifests import (
    DEPLOY,
    HTTP_PORT,
    ROLES,
    accepted,
    document,
    interpolated,
    program,
    stop_seconds,
)

GIVEN = {"POSTGRES_PASSWORD": "secret", "OUTRIDER_JWT_SECRET": "0123456789abcdef" * 4}
PUBSUB = GIVEN | {"OUTRIDER_TRANSPORT": "pubsub"}
TEXT = (DEPLOY / "compose.yaml").read_text()
PROMETHEUS = document(DEPLOY / "prometheus.yml")


def services(variables: Mapping[str, str] = GIVEN) -> Any:
    return yaml.safe_load(interpolated(TEXT, variables))["services"]


OURS = {name: each for name, each in services().items() if each["image"] == "outrider"}


def ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("OUTRIDER_")}


@pytest.mark.parametrize("variables", [GIVEN, PUBSUB], ids=["postgres", "pubsub"])
@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_accepted(name: str, variables: Mapping[str, str]) -> None:
    settings = accepted(ours(services(variables)[name]["environment"]))
    assert settings.transport == variables.get("OUTRIDER_TRANSPORT", "postgres")


@pytest.mark.parametrize("missing", GIVEN)
def test_there_is_no_default_for_a_secret(missing: str) -> None:
    with pytest.raises(AssertionError, match=missing):
        services({name: value for name, value in GIVEN.items() if name != missing})


def test_every_role_runs_once_the_schema_is_there() -> None:
    assert [OURS[role]["command"] for role in ROLES] == [[role] for role in ROLES]
    for role in ROLES:
        assert OURS[role]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert OURS["migrate"]["command"] == ["migrate", "up"]
    assert OURS["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_built_here_and_may_write_nothing(name: str) -> None:
    each = OURS[name]
    context = DEPLOY / each["build"]["context"]
    assert (context / each["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert each["read_only"]
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("role", ROLES)
def test_a_container_may_take_as_long_to_end_as_its_process_does(role: str) -> None:
    grace = float(OURS[role]["stop_grace_period"].removesuffix("s"))
    assert grace > stop_seconds(accepted(ours(OURS[role]["environment"])))


def test_only_what_runs_on_is_probed() -> None:
    assert "healthcheck" in FINAL["HEALTHCHECK"].value
    for name, each in OURS.items():
        assert each.get("healthcheck", {}).get("disable", False) is (name not in ROLES), name


def test_what_is_published_stays_on_this_machine() -> None:
    published = {name: each["ports"] for name, each in services().items() if "ports" in each}
    assert published == {"web": [f"127.0.0.1:{HTTP_PORT}:{HTTP_PORT}"], "prometheus": ["127.0.0.1:9090:9090"]}


def test_the_emulator_is_there_only_when_it_is_asked_for_and_is_the_one_that_is_spoken_to() -> None:
    optional = {name for name, each in services().items() if each.get("profiles") == ["pubsub"]}
    assert optional == {"pubsub", "provision"}
    command = services()["pubsub"]["command"]
    settings = services()["web"]["environment"]
    host, port = settings["PUBSUB_EMULATOR_HOST"].split(":")
    assert host == "pubsub"
    assert f"--host-port=0.0.0.0:{port}" in command
    assert f"--project={settings['OUTRIDER_PUBSUB_PROJECT']}" in command
    assert OURS["provision"]["environment"] == settings


def test_prometheus_scrapes_every_replica_of_every_role() -> None:
    scraped = {
        each["job_name"]: [(found["names"], found["type"], found["port"]) for found in each["dns_sd_configs"]]
        for each in PROMETHEUS["scrape_configs"]
    }
    assert scraped == {role: [([role], "A", PORTS[role])] for role in ROLES}


def test_prometheus_finds_its_configuration_and_every_rule() -> None:
    mounts = dict(each.split(":")[:2] for each in services()["prometheus"]["volumes"])
    [rules] = PROMETHEUS["rule_files"]
    folder, _, pattern = rules.rpartition("/")
    sources = {target: DEPLOY / source for source, target in mounts.items()}
    assert sources["/etc/prometheus/prometheus.yml"].is_file()
    files = sorted(sources[folder].glob(pattern))
    assert files
    for path in files:
        assert "groups" in yaml.safe_load(path.read_text()), path


def test_prometheus_keeps_as_much_as_the_longest_query_looks_back() -> None:
    command = " ".join(services()["prometheus"]["command"])
    [kept] = re.findall(r"--storage\.tsdb\.retention\.time=(\d+)d", command)
    asked = [int(days) for query in queries() for days in re.findall(r"\[(\d+)d\]", query.expr)]
    assert int(kept) > max(asked)


def test_promtool_accepts_the_configuration() -> None:
    command = [program("promtool"), "check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
