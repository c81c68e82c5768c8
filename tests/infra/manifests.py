"""Kubernetes manifests: built as `kubectl apply -k` does, and what must hold of them."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.project import ROOT

Manifest = dict[str, Any]
VERSION = "1.37"
SETTINGS = "mrmodel-settings"
# A setting of Prefect's worker names a secret and its key.
_SECRET = re.compile(
    r"(?:PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL|AUTH_STRING)(?!_SECRET)(?!_NAME|_KEY$)"
)
_PINNED = re.compile(r".+(:(?!latest$)[\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})$")


def build(overlay: str) -> list[Manifest]:
    """All manifests of an overlay."""
    kubectl = Path(sys.executable).with_name("kubectl")
    folder = ROOT / "infra/kubernetes/overlays" / overlay
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def misfit(manifest: Manifest) -> str | None:
    """What Kubernetes' own schema says against a manifest, unknown fields included."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod template of a workload."""
    template = manifest.get("spec", {}).get("template")
    return template if isinstance(template, dict) else None


def containers_of(pod: Manifest) -> list[Manifest]:
    """All containers of a pod, those that run first included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def faults(manifests: Sequence[Manifest]) -> list[str]:
    """Everything that is against the rules of this house, a sentence each."""
    found = []
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata'].get('name')}"
        if manifest["kind"] == "Secret":
            found.append(f"{name}: secrets are made by hand")
        pod = pod_of(manifest)
        if pod is not None:
            said = [*_pod_faults(pod["spec"], manifest["kind"]), *_dangling(pod["spec"], manifests)]
            found += [f"{name}: {fault}" for fault in said]
    return found + list(_lost_selectors(manifests))


def _pod_faults(pod: Manifest, kind: str) -> Iterator[str]:
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "may run as root"
    if pod.get("automountServiceAccountToken") is not False and "serviceAccountName" not in pod:
        yield "gets a token of the cluster that it does not need"
    for container in containers_of(pod):
        if not _PINNED.match(container["image"]):
            yield f"image {container['image']} is not pinned"
        for bound in ("requests", "limits"):
            missing = {"cpu", "memory"} - container.get("resources", {}).get(bound, {}).keys()
            yield from (f"no {bound} of {resource}" for resource in sorted(missing))
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False:
            yield "may gain privileges"
        if security.get("readOnlyRootFilesystem") is not True:
            yield "may change its own files"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield "keeps capabilities"
        once = kind == "Job" or container in pod.get("initContainers", [])
        if not once and not {"readinessProbe", "livenessProbe"} & container.keys():
            yield "has no probe"
        for variable in container.get("env", []):
            if _SECRET.search(variable["name"]) and variable.get("value"):
                yield f"{variable['name']} is written down"


def _dangling(pod: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    """References to settings, claims, volumes and accounts that do not exist."""
    settings = named(manifests, "ConfigMap", SETTINGS).get("data", {})
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    accounts = {m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"}
    if pod.get("serviceAccountName", "default") not in accounts | {"default"}:
        yield f"there is no account {pod['serviceAccountName']}"
    for volume in pod.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"there is no claim {claim}"
    for variable in (one for c in containers_of(pod) for one in c.get("env", [])):
        source = variable.get("valueFrom", {}).get("configMapKeyRef")
        if source and not source.get("optional") and source["key"] not in settings:
            yield f"{variable['name']}: there is no setting {source['key']}"


def _lost_selectors(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Services, policies and budgets that mean no pod; stages' pods are made later."""
    stage = {"app.kubernetes.io/component": "stage"}
    pods = [p["metadata"]["labels"] for m in manifests if (p := pod_of(m))] + [stage]
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata'].get('name')}"
        selectors = []
        if manifest["kind"] == "Service":
            selectors = [{"matchLabels": manifest["spec"]["selector"]}]
        elif manifest["kind"] == "PodDisruptionBudget":
            selectors = [manifest["spec"]["selector"]]
        elif manifest["kind"] == "NetworkPolicy":
            spec = manifest["spec"]
            peers = [p for rule in spec.get("ingress", []) for p in rule["from"]]
            peers += [p for rule in spec.get("egress", []) for p in rule["to"]]
            callers = (p["podSelector"] for p in peers if "podSelector" in p)
            selectors = [spec["podSelector"], *callers]
        for selector in selectors:
            if not any(_selects(selector, labels) for labels in pods):
                yield f"{name}: selects nothing with {selector}"


def _selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    equal = selector.get("matchLabels", {}).items() <= labels.items()
    among = (labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))
    return equal and all(among)


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of that kind and name."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"].get("name") == name]
    return found


def secret_keys(manifests: Sequence[Manifest]) -> set[str]:
    """Keys of the secret that the pods ask for."""
    pods = [pod["spec"] for m in manifests if (pod := pod_of(m))]
    variables = [v for pod in pods for c in containers_of(pod) for v in c.get("env", [])]
    asked = [
        v["valueFrom"]["secretKeyRef"]
        for v in variables
        if "secretKeyRef" in v.get("valueFrom", {})
    ]
    assert {one["name"] for one in asked} <= {"mrmodel-secrets"}
    return {one["key"] for one in asked}
