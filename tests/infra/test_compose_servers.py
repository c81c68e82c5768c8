"""The servers of compose.yaml with its commands and variables, as processes of this machine."""

import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import optuna
import psycopg2
import pytest
from botocore.exceptions import ClientError

from flows.provision import POOLS
from infra.local.postgres import Postgres
from infra.local.postgres_programs import programs_for
from infra.local.process import Program, free_ports
from infra.local.seaweedfs import INNER_PORTS
from mrmodel.tune.storage import open_storage
from tests.infra.test_compose import DATABASES, IDENTITIES, SECURITY, compose, filled, planted
from tests.project import ROOT
from tests.services import postgres_server

pytestmark = [pytest.mark.services, pytest.mark.infra]
FOLDER = ROOT / "infra/work_pools"
INSIDE = {"s3": 8333, "prefect": 4200, "postgres": 5432}
# Characters that a shell, SQL and a URL would each read, were they not kept from it.
PASSWORD = "planted-it's\\ a $mix@/"


class Site:
    """The services of the file, each on a free port of this machine."""

    def __init__(self, folder: Path, services: dict[str, Any], postgres: Postgres) -> None:
        self.folder, self.services, self.postgres = folder, services, postgres
        s3, prefect, *self.inner = free_ports(2 + len(INNER_PORTS))
        self.ports = {"s3": s3, "prefect": prefect, "postgres": postgres.port}
        # Where the volume of the keys is, SeaweedFS looks for security.toml: its working directory.
        self.mounts = {
            "/data": folder,
            "/work": folder,
            "/etc/seaweedfs": folder,
            "/opt/mrmodel/security.py": SECURITY,
            "/etc/mrmodel/identities.json": IDENTITIES,
        }

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def here(self, text: str) -> str:
        """A word of a command, or a variable, with the addresses of this machine."""
        for name, port in INSIDE.items():
            text = re.sub(rf"\b{name}:{port}\b", f"127.0.0.1:{self.ports[name]}", text)
            text = re.sub(rf"^(-s3\.port=)?{port}$", rf"\g<1>{self.ports[name]}", text)
        for inside, here in self.mounts.items():
            text = re.sub(rf"(^|=){inside}$", rf"\g<1>{here}", text)
        return re.sub("^postgres$", "127.0.0.1", text)

    def program(self, name: str) -> Program:
        service = self.services[name]
        words = [*(service.get("entrypoint") or []), *service["command"]]
        words[1:] = [self.here(word) for word in words[1:]]
        words[0] = str(Path(sys.executable).with_name(Path(words[0]).name))
        if name == "s3":
            words += [f"-{n}={p}" for n, p in zip(INNER_PORTS, self.inner, strict=True)]
            words.append(f"-s3.localSocket={self.folder}/s3.sock")
        variables = {key: self.here(value) for key, value in service["environment"].items()}
        home = {"PREFECT_HOME": str(self.folder / "prefect")}
        (path,) = re.findall(r"http://127\.0\.0\.1:\d+([\w/]+)", str(service["healthcheck"]))
        return Program(
            name,
            words,
            self.folder,
            (self.ports[name],),
            lambda: answer_of(self.url(name) + path) == 200,
            {**variables, **home},
        )

    def draw_keys(self) -> None:
        """Run the service that draws the keys of SeaweedFS's parts."""
        program, *words = self.services["s3-keys"]["command"]
        assert program == "python"
        subprocess.run([sys.executable, *map(self.here, words)], check=True)


def answer_of(url: str, login: str | None = None) -> int:
    """The status that an address answers with; 0: it does not."""
    request = urllib.request.Request(url, headers=basic(login) if login else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def basic(login: str) -> dict[str, str]:
    """The header that has `user:password`."""
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def make_databases(server: Postgres, secrets: dict[str, str]) -> None:
    """Run the script as PostgreSQL's image does, with the psql of the server's version."""
    programs = programs_for(server.home() / "data", None)
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGDATABASE": "postgres",
        "PGPASSWORD": server.password,
        "POSTGRES_USER": "mrmodel",
        "PREFECT_DATABASE_SECRET": secrets["PREFECT_DATABASE_SECRET"],
        "MLFLOW_DATABASE_SECRET": secrets["MLFLOW_DATABASE_SECRET"],
        "OPTUNA_DATABASE_SECRET": secrets["OPTUNA_DATABASE_SECRET"],
    }
    subprocess.run([DATABASES], check=True, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    services = json.loads(compose(folder, filled()).stdout)["services"]
    services["postgres"]["environment"]["PREFECT_DATABASE_SECRET"] = PASSWORD
    services["prefect"]["environment"]["PREFECT_SERVER_DATABASE_PASSWORD"] = PASSWORD
    with ExitStack() as stack:
        postgres = postgres_server(folder / "postgres")
        stack.callback(postgres.stop)
        postgres.start()
        make_databases(postgres.server, services["postgres"]["environment"])
        here = Site(folder, services, postgres.server)
        here.draw_keys()
        programs = [here.program(name) for name in ("s3", "prefect")]
        running = []
        for program in programs:
            running.append(program.start(owner=os.getpid()))
            stack.callback(running[-1].stop)
        for program, process in zip(programs, running, strict=True):
            program.wait(process)
        yield here


def test_each_server_has_a_database_of_its_own(site: Site) -> None:
    door = {"host": "127.0.0.1", "port": site.postgres.port}
    with psycopg2.connect(user="prefect", password=PASSWORD, dbname="prefect", **door) as own:
        own.cursor().execute("SELECT 1 FROM work_pool")  # Of Prefect's migrations.
    secret = planted("MLFLOW_DATABASE_SECRET")
    psycopg2.connect(user="mlflow", password=secret, dbname="mlflow", **door).close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        psycopg2.connect(user="mlflow", password=secret, dbname="prefect", **door)
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(user="mlflow", password=PASSWORD, dbname="mlflow", **door)


def test_a_worker_keeps_studies_in_a_database_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = site.services["worker-gpu-0"]["environment"]
    monkeypatch.setenv("PGPASSWORD", user["PGPASSWORD"])
    storage = open_storage(site.here(user["OPTUNA_STORAGE"]))
    optuna.create_study(storage=storage, study_name="main")
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        psycopg2.connect(user="optuna", dbname="mlflow", host="127.0.0.1", port=site.postgres.port)


def client_of(site: Site, service: str, secret: str | None = None) -> Any:
    """An S3 client with the key of a service."""
    user = site.services[service]["environment"]
    return boto3.client(
        "s3",
        endpoint_url=site.url("s3"),
        region_name=user["AWS_DEFAULT_REGION"],
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or user["AWS_SECRET_ACCESS_KEY"],
    )


def test_s3_has_its_buckets_and_a_key_for_each_part(site: Site) -> None:
    """Finding 6; tests/security/test_s3_identities.py has what each key may do."""
    worker = client_of(site, "worker-cpu")
    worker.put_object(Bucket="mrmodel", Key="dvc/a", Body=b"data")
    with pytest.raises(ClientError, match="AccessDenied"):
        worker.put_object(Bucket="mrmodel", Key="registry/a", Body=b"data")
    for service in ("mlflow", "worker-control"):
        registry = client_of(site, service)
        registry.put_object(Bucket="mrmodel", Key="registry/a", Body=b"data")
        registry.list_objects_v2(Bucket="mrmodel-incoming")
    sender = boto3.client(
        "s3",
        endpoint_url=site.url("s3"),
        region_name="us-east-1",
        aws_access_key_id="sender",
        aws_secret_access_key=planted("S3_SENDER_SECRET"),
    )
    sender.put_object(Bucket="mrmodel-incoming", Key="next/COMPLETE", Body=b"")
    with pytest.raises(ClientError, match="AccessDenied"):
        sender.put_object(Bucket="mrmodel", Key="dvc/a", Body=b"")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client_of(site, "worker-cpu", "another").get_object(Bucket="mrmodel", Key="dvc/a")


def test_the_parts_of_s3_answer_each_other_only(site: Site) -> None:
    """Finding 11: also with compose's flags; every container of its networks reaches its ports."""
    ports = dict(zip(INNER_PORTS, site.inner, strict=True))
    for port in (ports["filer.port"], ports["volume.port"], ports["master.port"]):
        url = f"http://127.0.0.1:{port}/buckets/mrmodel/registry/b"
        request = urllib.request.Request(url, b"x", method="PUT")
        with pytest.raises(urllib.error.HTTPError, match=r"400|401|404"):
            urllib.request.urlopen(request, timeout=10)


def login_of(site: Site) -> str:
    """What workers and provision tell Prefect."""
    logins = {
        service["environment"]["PREFECT_API_AUTH_STRING"]
        for service in site.services.values()
        if "PREFECT_API_AUTH_STRING" in service.get("environment", {})
    }
    (login,) = logins
    return str(login)


def prefect(site: Site, *command: str) -> None:
    environment = {
        **os.environ,
        "PREFECT_API_URL": f"{site.url('prefect')}/api",
        "PREFECT_API_AUTH_STRING": login_of(site),
    }
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_password_is_one_line(site: Site) -> None:
    environment = {**os.environ, "PREFECT_API_URL": f"{site.url('prefect')}/api"}
    command = [sys.executable, "-m", "flows.provision"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "PREFECT_API_URL = " in done.stderr
    assert "not the one in PREFECT_API_AUTH_STRING" in done.stderr
    assert "Traceback" not in done.stderr


def pool(site: Site, name: str) -> dict[str, Any]:
    address = f"{site.url('prefect')}/api/work_pools/{name}"
    request = urllib.request.Request(address, headers=basic(login_of(site)))
    with urllib.request.urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_prefect_asks_for_a_password(site: Site) -> None:
    """Finding 10: its health needs none."""
    address = f"{site.url('prefect')}/api"
    assert [answer_of(f"{address}/{path}") for path in ("health", "ready")] == [200, 200]
    for login in (None, "mrmodel:", "mrmodel:another"):
        assert answer_of(f"{address}/admin/version", login) == 401
    assert answer_of(f"{address}/admin/version", login_of(site)) == 200


def test_prefect_takes_a_template(site: Site) -> None:
    template = FOLDER / "gpu-kubernetes.json"
    options = ("--type", "kubernetes", "--base-job-template", str(template))
    prefect(site, "prefect", "--no-prompt", "work-pool", "create", "mine", *options)
    assert pool(site, "mine")["base_job_template"] == json.loads(template.read_text())


def test_provision_makes_the_pools_of_containers(site: Site) -> None:
    prefect(site, "flows.provision", "--type", "docker")
    for name, template in POOLS.items():
        made = pool(site, name)
        assert made["type"] == "docker"
        file = FOLDER / f"{template}-docker.json"
        assert made["base_job_template"] == json.loads(file.read_text())


def test_no_server_logs_a_secret(site: Site) -> None:
    logs = {path.name: path.read_text() for path in site.folder.glob("*.log")}
    assert logs.keys() == {"s3.log", "prefect.log"}
    assert [name for name, text in logs.items() if "planted-" in text] == []
