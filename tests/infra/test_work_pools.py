"""infra/work_pools: base job templates, as Prefect's own workers render them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.infra.manifests import Manifest, build, faults, misfit, secret_keys
from tests.project import ROOT

pytestmark = pytest.mark.infra
FOLDER = ROOT / "infra/work_pools"
POOLS, KINDS = ("cpu", "gpu"), ("process", "docker", "kubernetes")
GPU = "nvidia.com/gpu"
# Of the worker that renders.
WORKER = {
    "PREFECT_API_URL": "http://prefect.example.com:4200/api",
    "MRMODEL_GIT_URL": "https://git.example.com/team/mrmodel.git",
    "MRMODEL_NAMESPACE": "mrmodel",
    "MRMODEL_JOB_IDENTITY": "worker",
    "MRMODEL_JOB_ACCOUNT": "mrmodel-stage",
    "MRMODEL_JOB_IMAGE": "registry.example.com/team/mrmodel:0.1.0-cuda",
    "AWS_SECRET_ACCESS_KEY": "planted-secret",
    "OPTUNA_STORAGE": "postgresql+psycopg2://optuna@postgres.example.com/optuna",
    "PGPASSWORD": "planted-password",
    "CUDA_VISIBLE_DEVICES": "1",
    "MRMODEL_GPU_SLOT": "gpu:host:1",
}
VARIED = {"gpus": "2", "memory_limit": "64Gi", "env": {"NCCL_DEBUG": "INFO"}}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], Any]:
    """(pool, kind, varied) -> what the worker starts."""
    asked = [(pool, kind, False) for pool in POOLS for kind in KINDS]
    asked.append(("gpu", "kubernetes", True))
    orders = [(pool, kind, VARIED if varied else {}) for pool, kind, varied in asked]
    packages = Path(sys.prefix) / "worker-types"
    assert packages.is_dir(), "make test-services puts the packages of Prefect's workers there"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)]),
        **WORKER,
    }
    command = [sys.executable, "-m", "tests.infra.render", json.dumps(orders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(zip(asked, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def cluster() -> list[Manifest]:
    """Where the Jobs will run."""
    return build("production")


def as_kubernetes_reads_it(job: Manifest) -> Manifest:
    """Prefect insists on two fields of a Job in its pod, where Kubernetes drops them."""
    text = json.loads(json.dumps(job))
    for field in ("parallelism", "completions"):
        del text["spec"]["template"]["spec"][field]
    return text  # type: ignore[no-any-return]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_template_holds_a_secret(pool: str, kind: str) -> None:
    text = (FOLDER / f"{pool}-{kind}.json").read_text()
    variables = json.loads(text)["variables"]["properties"]
    defaults = variables["env"].get("default", {})
    assert all(v == "/work" or v == f"{{{{ ${n} }}}}" for n, v in defaults.items())
    assert all(variable["description"] for variable in variables.values())


@pytest.mark.parametrize("pool", POOLS)
def test_kubernetes_takes_the_job(
    rendered: dict[Any, Any], cluster: list[Manifest], pool: str
) -> None:
    job = as_kubernetes_reads_it(rendered[pool, "kubernetes", False])
    assert misfit(job) is None
    assert faults([*cluster, job]) == []
    assert secret_keys([job]) == {
        "worker-access-key-id",
        "worker-secret-access-key",
        "git-username",
        "git-password",
        "optuna-database",
    }
    assert job["metadata"]["namespace"] == "mrmodel"
    assert "planted-secret" not in json.dumps(job)


def test_a_gpu_job_takes_a_gpu_on_a_node_that_has_one(rendered: dict[Any, Any]) -> None:
    pod = rendered["gpu", "kubernetes", False]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"][GPU] == "1"
    assert container["resources"]["requests"][GPU] == "1"
    assert container["image"] == WORKER["MRMODEL_JOB_IMAGE"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    assert GPU not in json.dumps(rendered["cpu", "kubernetes", False])


def test_a_deployment_may_ask_for_more(rendered: dict[Any, Any]) -> None:
    job = rendered["gpu", "kubernetes", True]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", GPU: "2"}
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["NCCL_DEBUG"]["value"] == "INFO"
    # Beside the references, not in their place.
    assert "secretKeyRef" in variables["GIT_PASSWORD"]["valueFrom"]
    assert variables["PREFECT_API_URL"]["value"] == WORKER["PREFECT_API_URL"]
    assert misfit(as_kubernetes_reads_it(job)) is None


def test_a_job_is_not_tried_again_by_kubernetes(rendered: dict[Any, Any]) -> None:
    """The orchestrator does that; it counts."""
    spec = rendered["gpu", "kubernetes", False]["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    kept = spec["template"]["metadata"]["annotations"]
    assert kept["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@pytest.mark.parametrize("pool", POOLS)
def test_docker_is_asked_for_a_bounded_container(rendered: dict[Any, Any], pool: str) -> None:
    made = rendered[pool, "docker", False]
    host = made["host_config"]
    assert host["Memory"] > 2**30
    assert host["ShmSize"] >= 2**30
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"] is True
    assert host["Tmpfs"].keys() == {"/tmp"}
    assert host["AutoRemove"] is True
    assert not host.get("Privileged")
    assert host["Binds"] == [f"mrmodel-work-{pool}:/work"]
    assert ("DeviceRequests" in host) == (pool == "gpu")


def test_a_gpu_container_sees_the_gpu_of_its_worker(rendered: dict[Any, Any]) -> None:
    made = rendered["gpu", "docker", False]
    (request,) = made["host_config"]["DeviceRequests"]
    assert request["Driver"] == "nvidia"
    assert request["Capabilities"] == [["gpu"]]
    for name in ("CUDA_VISIBLE_DEVICES", "MRMODEL_GPU_SLOT", "MRMODEL_GIT_URL"):
        assert made["environment"][name] == WORKER[name]


def test_a_container_gets_secrets_from_its_worker(rendered: dict[Any, Any]) -> None:
    made = rendered["cpu", "docker", False]
    assert made["environment"]["AWS_SECRET_ACCESS_KEY"] == "planted-secret"
    assert made["environment"]["PGPASSWORD"] == "planted-password"
    assert made["environment"]["OPTUNA_STORAGE"] == WORKER["OPTUNA_STORAGE"]
    assert "planted-" not in json.dumps({**made, "environment": {}})


def test_a_process_has_its_workers_environment(rendered: dict[Any, Any]) -> None:
    made = rendered["gpu", "process", False]
    assert made["env"]["MRMODEL_GPU_SLOT"] == WORKER["MRMODEL_GPU_SLOT"]
