"""infra/kubernetes: built by kubectl, checked against Kubernetes' schemas and our own rules."""

import copy
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from flows.provision import POOLS
from tests.infra.manifests import (
    SETTINGS,
    Manifest,
    build,
    faults,
    misfit,
    named,
    pod_of,
    secret_keys,
)
from tests.project import ROOT

pytestmark = pytest.mark.infra
OVERLAYS = ("local", "production")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param)


@pytest.fixture(scope="module")
def production() -> list[Manifest]:
    return build("production")


@pytest.fixture(scope="module")
def local() -> list[Manifest]:
    return build("local")


def test_kubernetes_takes_every_manifest(manifests: list[Manifest]) -> None:
    assert [said for said in map(misfit, manifests) if said] == []


def test_every_manifest_keeps_our_rules(manifests: list[Manifest]) -> None:
    assert faults(manifests) == []


def test_all_is_in_one_namespace_that_allows_no_root(manifests: list[Manifest]) -> None:
    namespace = named(manifests, "Namespace", "mrmodel")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [m for m in manifests if m["kind"] != "Namespace"]
    assert {m["metadata"]["namespace"] for m in others} == {"mrmodel"}


def container_of(manifests: list[Manifest], kind: str, name: str) -> dict[str, Any]:
    pod = pod_of(named(manifests, kind, name))
    assert pod is not None
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def misspell(manifests: list[Manifest]) -> None:
    container = container_of(manifests, "Deployment", "mlflow")
    container["resource"] = container.pop("resources")


def misplace(manifests: list[Manifest]) -> None:
    named(manifests, "Deployment", "prefect")["spec"]["containers"] = []


def number_for_text(manifests: list[Manifest]) -> None:
    container_of(manifests, "Deployment", "worker-gpu")["env"].append({"name": "A", "value": 1})


@pytest.mark.parametrize("spoil", [misspell, misplace, number_for_text])
def test_the_schema_sees(production: list[Manifest], spoil: Callable[..., None]) -> None:
    spoiled = copy.deepcopy(production)
    spoil(spoiled)
    assert any(misfit(manifest) for manifest in spoiled)


def no_memory_limit(manifests: list[Manifest]) -> None:
    del container_of(manifests, "Deployment", "worker-gpu")["resources"]["limits"]["memory"]


def plain_password(manifests: list[Manifest]) -> None:
    variables = container_of(manifests, "Deployment", "mlflow")["env"]
    (password,) = [v for v in variables if v["name"] == "PGPASSWORD"]
    del password["valueFrom"]
    password["value"] = "in everybody's sight"


def a_secret_in_git(manifests: list[Manifest]) -> None:
    manifests.append({"kind": "Secret", "metadata": {"name": "mrmodel-secrets"}})


def latest_image(manifests: list[Manifest]) -> None:
    container_of(manifests, "Deployment", "prefect")["image"] = "mrmodel:latest"


def root(manifests: list[Manifest]) -> None:
    pod = pod_of(named(manifests, "Deployment", "prefect"))
    assert pod is not None
    pod["spec"]["securityContext"]["runAsNonRoot"] = False


def writable_root(manifests: list[Manifest]) -> None:
    security = container_of(manifests, "Deployment", "mlflow")["securityContext"]
    del security["readOnlyRootFilesystem"]


def no_probe(manifests: list[Manifest]) -> None:
    container = container_of(manifests, "Deployment", "mlflow")
    del container["readinessProbe"], container["livenessProbe"]


def lost_setting(manifests: list[Manifest]) -> None:
    del named(manifests, "ConfigMap", SETTINGS)["data"]["DATABASE_HOST"]


def renamed_component(manifests: list[Manifest]) -> None:
    named(manifests, "Service", "mlflow")["spec"]["selector"] = {"app": "mlflow"}


def lost_account(manifests: list[Manifest]) -> None:
    manifests.remove(named(manifests, "ServiceAccount", "mrmodel-worker"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_memory_limit, "no limits of memory"),
        (plain_password, "PGPASSWORD is written down"),
        (a_secret_in_git, "secrets are made by hand"),
        (latest_image, "not pinned"),
        (root, "may run as root"),
        (writable_root, "may change its own files"),
        (no_probe, "has no probe"),
        (lost_setting, "no setting DATABASE_HOST"),
        (renamed_component, "selects nothing"),
        (lost_account, "no account mrmodel-worker"),
    ],
)
def test_our_rules_see(production: list[Manifest], spoil: Callable[..., None], said: str) -> None:
    spoiled = copy.deepcopy(production)
    spoil(spoiled)
    assert any(said in fault for fault in faults(spoiled)), faults(spoiled)


def test_only_ours_reach_the_servers(manifests: list[Manifest]) -> None:
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    default = named(policies, "NetworkPolicy", "nobody-by-default")["spec"]
    assert default == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    served = {m["metadata"]["name"] for m in manifests if m["kind"] == "Service"} - {"workers"}
    allow = {m["metadata"]["name"]: m["spec"] for m in policies if m["metadata"]["name"] in served}
    assert allow.keys() == served
    assert all(spec["policyTypes"] == ["Ingress"] for spec in allow.values())


def test_who_may_talk_to_the_outside(manifests: list[Manifest]) -> None:
    """Finding 21: databases and S3 call nobody, and nobody calls the metadata server of a cloud."""
    egress = [m for m in manifests if m["kind"] == "NetworkPolicy" and "egress" in m["spec"]]
    assert {m["metadata"]["name"] for m in egress} == {"to-names", "to-servers", "to-outside"}
    blocks = [
        (m["metadata"]["name"], peer["ipBlock"])
        for m in egress
        for rule in m["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    metadata = ip_address("169.254.169.254")
    for name, block in blocks:
        network = ip_network(block["cidr"])
        reached = metadata.version == network.version and metadata in network
        spared = any(metadata in ip_network(part) for part in block.get("except", []))
        assert not reached or spared, name
    outside = named(manifests, "NetworkPolicy", "to-outside")["spec"]["podSelector"]
    (who,) = outside["matchExpressions"]
    assert not {"postgres", "s3", "provision"} & set(who["values"])


def test_every_pool_has_a_worker(manifests: list[Manifest]) -> None:
    names = {m["metadata"]["name"] for m in manifests if m["kind"] in ("Deployment", "StatefulSet")}
    assert {f"worker-{pool}" for pool in POOLS} <= names
    for pool in POOLS:
        pods = [
            p for m in manifests if m["metadata"]["name"] == f"worker-{pool}" and (p := pod_of(m))
        ]
        assert f"--pool={pool}" in pods[0]["spec"]["containers"][0]["args"]


def test_the_worker_may_make_jobs_and_nothing_else(production: list[Manifest]) -> None:
    rules = named(production, "Role", "mrmodel-worker")["rules"]
    writes = {"create", "update", "patch", "delete"}
    assert {r for rule in rules if writes & set(rule["verbs"]) for r in rule["resources"]} == {
        "jobs"
    }
    assert not [m for m in production if m["kind"].startswith("ClusterRole")]
    assert not any("secrets" in rule["resources"] or "*" in str(rule) for rule in rules)


def test_images_come_from_the_registry_of_the_overlay(production: list[Manifest]) -> None:
    settings = named(production, "ConfigMap", SETTINGS)["data"]
    for manifest in production:
        pod = pod_of(manifest)
        if pod is not None:
            assert [c["image"] for c in pod["spec"]["containers"]] == [
                settings["MRMODEL_IMAGE_CPU"]
            ]
    assert settings["MRMODEL_IMAGE_GPU"].endswith("-cuda")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_guide_makes_the_secret_whole(overlay: str) -> None:
    """docs/howto/deploy_on_kubernetes.md names each key that a pod cannot start without."""
    guide = (ROOT / "docs/howto/deploy_on_kubernetes.md").read_text()
    part = guide.split(f"<!-- secret of {overlay} -->")[1].split("```\n")[0]
    made = set(re.findall(r"--from-literal=([a-z-]+)=", part))
    assert secret_keys(build(overlay)) <= made


def test_settings_hold_no_secret(manifests: list[Manifest]) -> None:
    for name in named(manifests, "ConfigMap", SETTINGS)["data"]:
        assert not re.search("PASSWORD|SECRET|TOKEN|KEY", name)


def test_a_machine_without_gpu_asks_for_none(local: list[Manifest]) -> None:
    assert "nvidia" not in str(local)
    assert named(local, "ConfigMap", SETTINGS)["data"]["MRMODEL_POOL_TYPE"] == "process"
