"""The Cloud Run example."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.process.admin import CHECK_SECONDS, PORTS
from tests.ops.deploy.manifests import CLOUD_RUN, HTTP_PORT, ROLES, SECRETS, accepted, document, version
from web.__main__ import NOTICE_SECONDS

KILLED_AFTER_SECONDS = 10.0
"""From SIGTERM, by Cloud Run's container contract."""
KINDS = {"web": "Service", "relay": "WorkerPool", "worker": "WorkerPool", "migrate": "Job"}
RESOURCES = {path.stem: document(path) for path in CLOUD_RUN.iterdir()}


def container(name: str) -> Any:
    spec = RESOURCES[name]["spec"]["template"]["spec"]
    [only] = spec["template"]["spec"]["containers"] if name == "migrate" else spec["containers"]
    return only


def environment(name: str) -> dict[str, str]:
    """With the values of the secrets that it names."""

    def value(entry: Any) -> str:
        if "value" in entry:
            return str(entry["value"]).replace("PROJECT", "my-project")
        assert (
            entry["name"].removeprefix("OUTRIDER_").lower().replace("_", "-")
            in entry["valueFrom"]["secretKeyRef"]["name"]
        )
        return SECRETS[entry["name"]]

    return {entry["name"]: value(entry) for entry in container(name)["env"]}


def test_each_resource_is_of_the_kind_that_fits_what_it_does() -> None:
    assert {name: each["kind"] for name, each in RESOURCES.items()} == KINDS
    assert container("migrate")["args"] == ["migrate", "up"]
    assert [container(role)["args"] for role in ROLES] == [[role] for role in ROLES]


@pytest.mark.parametrize("name", KINDS)
def test_the_settings_are_accepted(name: str) -> None:
    accepted(environment(name))


def test_all_run_the_same_image_and_transport() -> None:
    assert {container(name)["image"].rpartition(":")[2] for name in KINDS} == {version()}
    assert len({container(name)["image"] for name in KINDS}) == 1
    assert {accepted(environment(role)).transport for role in ROLES} == {"pubsub"}


@pytest.mark.parametrize("role", ROLES)
def test_a_process_has_ended_before_it_is_killed(role: str) -> None:
    assert NOTICE_SECONDS + accepted(environment(role)).drain_seconds < KILLED_AFTER_SECONDS - 2


@pytest.mark.parametrize("role", ROLES)
def test_probes_ask_where_the_process_listens(role: str) -> None:
    for probe in (container(role)["startupProbe"], container(role)["livenessProbe"]):
        assert probe["httpGet"]["port"] == (HTTP_PORT if role == "web" else PORTS[role])
        assert re.fullmatch("/healthz|/readyz", probe["httpGet"]["path"])
        assert CHECK_SECONDS < probe["timeoutSeconds"] <= probe["periodSeconds"]


def test_web_is_told_its_port_and_works_between_requests() -> None:
    assert [port["containerPort"] for port in container("web")["ports"]] == [HTTP_PORT]
    assert not {"OUTRIDER_HTTP_PORT", "PORT"} & environment("web").keys(), "Cloud Run sets PORT"
    annotations = RESOURCES["web"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert int(annotations["autoscaling.knative.dev/minScale"]) >= 1


@pytest.mark.parametrize("role", ["relay", "worker"])
def test_a_pool_has_an_instance_at_all_times(role: str) -> None:
    annotations = RESOURCES[role]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/scalingMode"] == "manual"
    assert int(annotations["run.googleapis.com/manualInstanceCount"]) >= 1
