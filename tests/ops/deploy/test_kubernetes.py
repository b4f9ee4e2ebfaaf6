"""The Kubernetes manifests: valid by Kubernetes' own schemas, and true of the processes that they start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml

from engine.process.admin import CHECK_SECONDS, PORTS, admin_server
from engine.settings import Settings
from ops.harness.process import ROOT
from tests.ops.deploy.manifests import (
    DEPLOY,
    HTTP_PORT,
    KUBERNETES,
    ROLES,
    accepted,
    document,
    documents,
    program,
    stop_seconds,
    version,
)

SCHEMAS = "1.33"
CONNECTIONS = 25
"""Of each pod, at the most."""
MAX_CONNECTIONS = 400
SURGE = 0.25
"""Kubernetes' own `maxSurge`."""
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")

KUSTOMIZATION = document(KUBERNETES / "kustomization.yaml")
SECRET = document(KUBERNETES / "secret.example.yaml")
OBJECTS = [each for name in KUSTOMIZATION["resources"] for each in documents(KUBERNETES / name)]
EXTRAS = {each["kind"]: each for path in (KUBERNETES / "extras").glob("*.yaml") for each in documents(path)}


def one(kind: str, name: str) -> Any:
    [found] = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> Iterator[tuple[str, Any]]:
    """Each workload's name and its pods' template."""
    for each in OBJECTS:
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]


def containers() -> Iterator[tuple[str, Any]]:
    for name, template in pods():
        [container] = template["spec"]["containers"]
        yield name, container


def config() -> dict[str, str]:
    [generated] = KUSTOMIZATION["configMapGenerator"]
    return dict(literal.split("=", 1) for literal in generated["literals"])


def settings() -> Settings:
    return accepted(config() | SECRET["stringData"])


@pytest.mark.parametrize(
    "each", [*OBJECTS, SECRET], ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_each_object_fits_its_schema(each: Any) -> None:
    kubernetes_validate.validate(each, SCHEMAS, strict=True)


def test_kustomize_puts_all_into_one_namespace_with_one_image() -> None:
    rendered = subprocess.run(
        [program("kubectl"), "kustomize", KUBERNETES], capture_output=True, text=True, check=True
    )
    made = list(yaml.safe_load_all(rendered.stdout))
    assert len(made) == len(OBJECTS) + len(KUSTOMIZATION["configMapGenerator"])
    assert {each["metadata"].get("namespace", "outrider") for each in made} == {"outrider"}
    images = {
        container["image"]
        for each in made
        if each["kind"] in ("Deployment", "Job")
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert images == {f"registry.example.com/outrider:{version()}"}
    [generated] = [each["metadata"]["name"] for each in made if each["kind"] == "ConfigMap"]
    assert rendered.stdout.count(f"name: {generated}\n") == len(list(pods())) + 1


def test_the_settings_are_accepted() -> None:
    settings()


def test_each_container_reads_the_configuration_and_the_secret() -> None:
    [generated] = KUSTOMIZATION["configMapGenerator"]
    for _, container in containers():
        assert container["envFrom"] == [
            {"configMapRef": {"name": generated["name"]}},
            {"secretRef": {"name": SECRET["metadata"]["name"]}},
        ]
        assert "env" not in container


def test_no_variables_of_other_services_reach_a_process_that_refuses_unknown_ones() -> None:
    assert all(template["spec"]["enableServiceLinks"] is False for _, template in pods())


@pytest.mark.parametrize("role", ROLES)
def test_each_role_is_started_by_its_name_and_listens_where_it_says(role: str) -> None:
    container = dict(containers())[role]
    assert container["args"] == [role]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"admin": PORTS[role]} | ({"http": HTTP_PORT} if role == "web" else {})


@pytest.mark.parametrize("role", ROLES)
async def test_probes_ask_for_pages_that_there_are_and_wait_for_the_answer(role: str) -> None:
    container = dict(containers())[role]
    asked = {container[probe]["httpGet"]["path"] for probe in PROBES}
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a restart fixes no database"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert all(container[probe]["httpGet"]["port"] == "admin" for probe in PROBES)
    assert all(container[probe]["timeoutSeconds"] > CHECK_SECONDS for probe in PROBES)
    async with admin_server(Settings(admin_port=0), role, {}) as port, aiohttp.ClientSession() as session:
        for path in asked:
            async with session.get(f"http://127.0.0.1:{port}{path}") as answer:
                assert answer.status == 200


@pytest.mark.parametrize("role", ROLES)
def test_a_pod_may_take_as_long_to_end_as_its_process_does(role: str) -> None:
    spec = one("Deployment", role)["spec"]["template"]["spec"]
    hook = spec["containers"][0].get("lifecycle", {}).get("preStop", {"exec": {"command": ["sleep", "0"]}})
    [program, seconds] = hook["exec"]["command"]
    assert program == "sleep"
    assert spec["terminationGracePeriodSeconds"] > stop_seconds(settings(), before=float(seconds))


@pytest.mark.parametrize("role", ROLES)
def test_selectors_find_the_pods_of_their_role_and_no_others(role: str) -> None:
    labels = {name: template["metadata"]["labels"] for name, template in pods()}

    def found(selector: Mapping[str, str]) -> list[str]:
        return [name for name, has in labels.items() if selector.items() <= has.items()]

    deployment = one("Deployment", role)["spec"]
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        deployment["selector"]["matchLabels"],
        one("PodDisruptionBudget", role)["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in spread),
        *(
            each["spec"]["selector"]
            for each in OBJECTS
            if each["kind"] == "Service" and each["metadata"]["name"] == role
        ),
    ]
    assert [found(selector) for selector in selectors] == [[role]] * len(selectors)


def test_services_lead_to_ports_that_containers_name() -> None:
    named = {name: {port["name"] for port in each.get("ports", [])} for name, each in containers()}
    for each in OBJECTS:
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= named[each["metadata"]["name"]]


def test_pods_keep_to_the_restricted_standard_that_the_namespace_enforces() -> None:
    [namespace] = [each for each in OBJECTS if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pods():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["runAsUser"] > 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["spec"]["automountServiceAccountToken"] is False
        for container in template["spec"]["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}


def test_keda_makes_as_many_workers_as_the_relay_asks_for() -> None:
    scaled = EXTRAS["ScaledObject"]
    assert scaled["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    target = one("Deployment", scaled["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"], "the next apply would take back what KEDA has set"
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher", (
        "an outage takes no workers away"
    )
    [trigger] = scaled["spec"]["triggers"]
    [port] = one("Service", "relay")["spec"]["ports"]
    url = f"http://relay.{KUSTOMIZATION['namespace']}.svc.cluster.local:{port['port']}/autoscale"
    # Only as an average of 1 is the value itself the number of replicas.
    assert (trigger["type"], trigger["metricType"]) == ("metrics-api", "AverageValue")
    assert trigger["metadata"] == {
        "url": url,
        "format": "json",
        "valueLocation": "desired_workers",
        "targetValue": "1",
    }


def test_the_operator_is_given_the_rules_as_they_are_with_links_to_the_runbooks() -> None:
    command = [str(KUBERNETES / "extras" / "prometheusrule.sh"), "https://git.example.com/"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rules = yaml.safe_load(made.replace("https://git.example.com/ops/", "ops/"))
    assert (rules["kind"], rules["metadata"]["namespace"]) == ("PrometheusRule", KUSTOMIZATION["namespace"])
    files = [ROOT / "ops" / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
    names = [group["name"] for group in rules["spec"]["groups"]]
    assert len(names) == len(set(names)), "the operator refuses a name that comes twice"
    assert rules["spec"]["groups"] == [group for file in files for group in document(file)["groups"]]
    assert made.count("runbook_url: https://git.example.com/ops/runbooks.md#") == made.count("runbook_url: ")


def test_as_many_workers_as_there_may_be_find_a_connection() -> None:
    replicas = [one("Deployment", role)["spec"]["replicas"] for role in ("web", "relay")]
    replicas.append(EXTRAS["ScaledObject"]["spec"]["maxReplicaCount"])
    at_an_upgrade = [ceil(each * (1 + SURGE)) for each in replicas]
    assert sum(at_an_upgrade) * CONNECTIONS <= MAX_CONNECTIONS
    assert f"max_connections={MAX_CONNECTIONS}" in (DEPLOY / "README.md").read_text()


def test_the_pod_monitor_scrapes_every_process() -> None:
    spec = EXTRAS["PodMonitor"]["spec"]
    matched = [
        name
        for name, each in pods()
        if spec["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert set(ROLES) <= set(matched)
    assert [each["port"] for each in spec["podMetricsEndpoints"]] == ["admin"]
