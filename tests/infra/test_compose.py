"""infra/compose.yaml, read by Docker Compose itself; no container engine is needed for that."""

import importlib.resources
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.provision import POOLS
from tests.project import ROOT

pytestmark = pytest.mark.infra
COMPOSE = ROOT / "infra/compose.yaml"
EXAMPLE = (ROOT / "infra/.env.example").read_text()
DATABASES = ROOT / "infra/kubernetes/components/postgres/databases.sh"
SECURITY, IDENTITIES = (
    ROOT / "infra/kubernetes/components/s3" / name for name in ("security.py", "identities.json")
)
EMPTY = re.findall(r"^(\w+_SECRET|MRMODEL_GIT_URL|GIT_PASSWORD)=$", EXAMPLE, flags=re.MULTILINE)
PROFILES = ("no-gpu", "gpu", "gpu-1", "serve")
ONE_SHOT = {"provision", "s3-keys"}
GPUS = ("worker-gpu-0", "worker-gpu-1")
WORKERS = {"worker-control", "worker-cpu", "worker-no-gpu", *GPUS}


def planted(name: str) -> str:
    return f"planted-{name.lower().replace('_', '-')}"


def filled(*left_empty: str) -> str:
    """The example as a person fills it in, each value recognisable."""
    text = EXAMPLE
    for name in EMPTY:
        if name not in left_empty:
            text = text.replace(f"{name}=\n", f"{name}={planted(name)}\n")
    return text


def compose(folder: Path, env: str, file: Path = COMPOSE) -> subprocess.CompletedProcess[str]:
    """``docker compose config`` with all profiles."""
    (folder / "env").write_text(env)
    program = importlib.resources.files("compose") / "docker-compose"
    profiles = [word for profile in PROFILES for word in ("--profile", profile)]
    named = [str(program), "--file", str(file), "--env-file", str(folder / "env")]
    command = [*named, "--project-directory", str(ROOT / "infra"), *profiles, "config"]
    # Nothing of the tester's own environment may fill a gap.
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = compose(tmp_path_factory.mktemp("compose"), filled())
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    model: dict[str, Any] = json.loads(done.stdout)
    return model


@pytest.fixture(scope="module")
def services(resolved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = resolved["services"]
    return found


def test_all_services_are_there(services: dict[str, Any]) -> None:
    assert services.keys() == {
        *("postgres", "s3", "prefect", "mlflow", "server"),
        *ONE_SHOT,
        *WORKERS,
    }


@pytest.mark.parametrize("name", sorted(set(EMPTY) - {"GIT_PASSWORD"}))
def test_an_empty_value_is_refused_by_name(tmp_path: Path, name: str) -> None:
    done = compose(tmp_path, filled(name))
    assert done.returncode != 0
    assert name in done.stderr


def test_the_example_names_every_variable_and_no_other() -> None:
    code = "\n".join(line.split(" #")[0] for line in COMPOSE.read_text().splitlines())
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", code)) | {"COMPOSE_PROFILES"}
    assert set(re.findall(r"^(\w+)=", EXAMPLE, flags=re.MULTILINE)) == used


def test_the_example_chooses_profiles_that_exist() -> None:
    text = yaml.safe_load(COMPOSE.read_text())
    known = {p for service in text["services"].values() for p in service.get("profiles", [])}
    assert known == set(PROFILES)
    (chosen,) = re.findall(r"^COMPOSE_PROFILES=(\S+)$", EXAMPLE, flags=re.MULTILINE)
    assert set(chosen.split(",")) <= known


SPOILED = {
    "a field that does not exist": ("    shm_size: 1g\n", "    shm: 1g\n"),
    "a dependency that does not exist": ("prefect: {condition", "nobody: {condition"),
    "a volume that is not declared": ('"work-cpu:/work"', '"work:/work"'),
    "a network that is not declared": ("networks: [services]", "networks: [service]"),
    "a condition that does not exist": ("service_completed_successfully", "service_completed"),
    "a limit that is no size": ("memory: 2g", "memory: much"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SPOILED)
def test_compose_would_refuse(tmp_path: Path, fault: str) -> None:
    old, new = SPOILED[fault]
    text = COMPOSE.read_text()
    assert old in text
    (tmp_path / "compose.yaml").write_text(text.replace(old, new))
    assert compose(tmp_path, filled(), tmp_path / "compose.yaml").returncode != 0


def test_images_are_pinned_or_built_here(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[\w/]+(:\d[\w.-]+|@sha256:[0-9a-f]{64})", service["image"]), name
        if "build" in service:
            build = service["build"]
            assert (Path(build["context"]) / build["dockerfile"]).is_file()


def test_ports_are_open_to_this_machine_only(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["target"] for port in ports} == {4200, 5000, 8333, 8765}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_services_are_watched_limited_and_started_again(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert ("healthcheck" in service) == (name not in ONE_SHOT), name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["read_only"] is True, name
        written = {volume["target"] for volume in service.get("volumes", [])}
        assert "/tmp" in written | set(service.get("tmpfs", [])), name
        assert "max-size" in service["logging"]["options"], name
        if "build" in service:
            assert service["cap_drop"] == ["ALL"], name


SECRETS = {
    "POSTGRES_SECRET": {"postgres"},
    "SERVER_SECRET": {"server"},
    "PREFECT_DATABASE_SECRET": {"postgres", "prefect"},
    "MLFLOW_DATABASE_SECRET": {"postgres", "mlflow"},
    "OPTUNA_DATABASE_SECRET": {"postgres", *WORKERS},
    "S3_REGISTRY_SECRET": {"s3", "mlflow", "worker-control"},
    "S3_WORKER_SECRET": {"s3", *WORKERS - {"worker-control"}},
    "S3_SENDER_SECRET": {"s3"},
    "PREFECT_API_SECRET": {"prefect", "provision", *WORKERS},
    "GIT_PASSWORD": WORKERS,
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_goes_where_it_is_needed(services: dict[str, Any], name: str) -> None:
    holders = {service for service in services if planted(name) in json.dumps(services[service])}
    assert holders == SECRETS[name]
    for holder in holders:
        outside = {key: value for key, value in services[holder].items() if key != "environment"}
        assert planted(name) not in json.dumps(outside), holder


def test_only_servers_and_workers_see_the_database(resolved: dict[str, Any]) -> None:
    near = {n for n, s in resolved["services"].items() if "database" in s.get("networks", {})}
    assert near == {"postgres", "prefect", "mlflow", *WORKERS}
    assert resolved["networks"]["database"]["internal"] is True
    assert list(resolved["services"]["postgres"]["networks"]) == ["database"]


def test_only_workers_and_prefect_reach_other_machines(resolved: dict[str, Any]) -> None:
    """Finding 21: to the git repository and to webhooks."""
    networks = resolved["networks"]
    closed = {name for name, network in networks.items() if network.get("internal")}
    closed |= {
        name
        for name, network in networks.items()
        if (network.get("driver_opts") or {}).get("com.docker.network.bridge.enable_ip_masquerade")
        == "false"
    }
    assert networks.keys() - closed == {"outside"}
    near = {n for n, s in resolved["services"].items() if "outside" in s.get("networks", {})}
    assert near == {"prefect", *WORKERS}


def test_a_gpu_has_one_worker_with_one_slot(services: dict[str, Any]) -> None:
    seen = []
    for name in GPUS:
        service = services[name]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        (number,) = device["device_ids"]
        assert service["environment"]["MRMODEL_GPU_SLOT"] == f"gpu:local:{number}"
        # Of the devices in the container, of which there is one.
        assert service["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
        assert "--limit 1" in " ".join(service["command"])
        assert int(service["shm_size"]) >= 2**30
        seen.append(number)
        made = services["provision"]["command"][-1]
        assert f'--gpu-slot "gpu:$$MRMODEL_HOST:{number}"' in made
    assert len(set(seen)) == len(GPUS)
    work = [v["source"] for n in WORKERS for v in services[n]["volumes"] if v["target"] == "/work"]
    assert len(set(work)) == len(WORKERS)


def test_every_pool_has_a_worker(services: dict[str, Any]) -> None:
    for profile in ("no-gpu", "gpu"):
        up = [services[n] for n in WORKERS if services[n].get("profiles", [profile]) == [profile]]
        commands = [service["command"] for service in up]
        assert sorted(c[c.index("--pool") + 1] for c in commands) == sorted(POOLS)


def test_mounted_files_exist(services: dict[str, Any]) -> None:
    volumes = [v for service in services.values() for v in service.get("volumes", [])]
    binds = [Path(volume["source"]) for volume in volumes if volume["type"] == "bind"]
    assert set(binds) == {DATABASES, SECURITY, IDENTITIES}
    assert all(bind.is_file() for bind in binds)
    assert os.access(DATABASES, os.X_OK)  # The image runs it; otherwise it would read it in.
