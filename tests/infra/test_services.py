"""`make services` as a person uses it: all four servers, from the first start to the stop."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import psycopg2
import pytest
from click.testing import CliRunner

from infra.local.__main__ import main
from infra.local.postgres import Postgres
from infra.local.process import free_ports, is_free
from infra.local.seaweedfs import IDENTITIES, INNER_PORTS
from infra.local.services import PORTS, Services
from mrmodel.storage import open_store
from mrmodel.tune.storage import open_storage
from tests.project import ROOT

pytestmark = pytest.mark.services


@dataclass(frozen=True)
class Installation:
    """The servers of a folder, through make."""

    folder: Path

    def make(self, target: str, *options: str, code: int = 0) -> str:
        """Output of a target."""
        return self.shell(f"make {target}", *options, code=code)

    def shell(self, script: str, *options: str, code: int = 0) -> str:
        """Output of shell commands, in which `make` takes installations as done."""
        # The servers must not outlive the test session, even if that is killed.
        up = shlex.join(["--owner", str(os.getpid()), *options])
        stamps = [f"--old-file={sys.prefix}/.installed{of}" for of in ("", "-services")]
        make = ["make", "-s", f"VENV={sys.prefix}", *stamps]
        function = f'make() {{ command {shlex.join([*make, f"UP={up}"])} "$@"; }}'
        script = script.replace(".mrmodel/services/", shlex.quote(f"{self.folder}/"))
        done = subprocess.run(
            ["sh", "-e", "-c", f"{function}\n{script}"],
            cwd=ROOT,
            env={**os.environ, "MRMODEL_SERVICES": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def settings(self) -> Any:
        return json.loads((self.folder / "installation.json").read_text())

    def pids(self) -> dict[str, int]:
        """Processes of the servers as recorded, by name."""
        rows = json.loads((self.folder / "running.json").read_text())
        return {row["name"]: row["pid"] for row in rows}

    def processes(self) -> list[psutil.Process]:
        """All processes of the servers."""
        found = []
        for pid in self.pids().values():
            found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return found

    def exports(self, name: str = "env") -> dict[str, str]:
        """What a shell has after it read the file of that name."""
        script = f". {shlex.quote(str(self.folder / name))}; env -0"
        plain = {"PATH": os.environ["PATH"]}
        command = ["sh", "-c", script]
        done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
        return dict(row.split("=", 1) for row in done.stdout.split("\0") if row)

    def query(self, database: str, sql: str) -> Any:
        """First value of the answer to a query."""
        settings = self.settings()
        connection = psycopg2.connect(
            host="127.0.0.1",
            port=settings["ports"]["postgres"],
            user="mrmodel",
            password=settings["password"],
            dbname=database,
        )
        try:
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchone()[0]
        finally:
            connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("services") / "with space")
    yield installation
    installation.make("services-stop")
    # It may lie outside of pytest's folder.
    shutil.rmtree(Postgres(installation.folder, 0, "").home(), ignore_errors=True)


@pytest.fixture
def installation(folder: Installation) -> Installation:
    """The installation, with all servers up."""
    if not (folder.folder / "installation.json").exists():
        folder.make("services", "--free-ports")
    elif {state.word for state in Services(folder.folder).states()} != {"runs"}:
        folder.make("services")
    return folder


@pytest.fixture
def client(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """The installation, and its address and credentials in the environment."""
    for name, value in installation.exports().items():
        if name.startswith(("AWS_", "MLFLOW_", "MRMODEL_", "OPTUNA_", "PREFECT_")):
            monkeypatch.setenv(name, value)
    return installation


def _ask(url: str, body: Any, login: str = "", origin: str = "") -> urllib.request.Request:
    """A POST with JSON, of a page at `origin`; `login` is user:password."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    if origin:
        headers["Origin"] = origin
    return urllib.request.Request(url, json.dumps(body).encode(), headers)


def _post(url: str, body: Any) -> Any:
    request = _ask(url, body, os.environ["PREFECT_API_AUTH_STRING"])
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_the_database_answers(installation: Installation) -> None:
    assert installation.query("postgres", "SELECT 6 * 7") == 42
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(
            host="127.0.0.1",
            port=installation.settings()["ports"]["postgres"],
            user="mrmodel",
            password="wrong",
            dbname="postgres",
        )


def test_s3_answers_to_the_printed_credentials(client: Installation) -> None:
    for name in ("HANDOVER", "DVC_REMOTE", "REGISTRY", "INCOMING"):
        store = open_store(os.environ[f"MRMODEL_{name}"])
        tag = store.put("a/b", b"content", if_absent=True)
        found = store.get("a/b")
        assert found is not None
        assert (found.content, found.tag) == (b"content", tag)
        store.delete("a/b")


def test_each_file_has_the_key_of_its_reader(installation: Installation) -> None:
    """Finding 6: senders get nothing but their key and its place."""
    files = {name: installation.exports(name) for name in ("env", "env-worker", "env-sender")}
    secrets = installation.settings()["s3_secrets"]
    keys = {name: file["AWS_ACCESS_KEY_ID"] for name, file in files.items()}
    assert keys == {"env": "registry", "env-worker": "worker", "env-sender": "sender"}
    assert all(file["AWS_SECRET_ACCESS_KEY"] == secrets[keys[name]] for name, file in files.items())
    assert len(set(secrets.values())) == 3
    ours = {name for name in files["env-sender"] if name.startswith(("MRMODEL", "OPTUNA", "PREF"))}
    assert ours == {"MRMODEL_INCOMING", "MRMODEL_S3_ENDPOINT"}
    own = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "_")
    same = [
        {k: v for k, v in files[name].items() if k not in own} for name in ("env", "env-worker")
    ]
    assert same[0] == same[1]


def test_mlflow_keeps_runs_in_the_database_and_artifacts_in_s3(client: Installation) -> None:
    tracking = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = tracking.create_experiment("from the test")
    run = tracking.create_run(experiment)
    tracking.log_metric(run.info.run_id, "mAP", 0.5)
    tracking.log_text(run.info.run_id, "an artifact", "note.txt")
    assert tracking.get_run(run.info.run_id).data.metrics == {"mAP": 0.5}
    sql = f"SELECT count(*) FROM metrics WHERE run_uuid = '{run.info.run_id}'"
    assert client.query("mlflow", sql) == 1
    # A client needs no credentials: the server fetches artifacts for it.
    store = open_store("s3://mrmodel/mlflow")
    kept = [key for key in store.keys("") if key.endswith("note.txt")]
    assert len(kept) == 1
    found = store.get(kept[0])
    assert found is not None
    assert found.content == b"an artifact"


def test_prefect_keeps_flows_in_the_database(client: Installation) -> None:
    api = os.environ["PREFECT_API_URL"]
    flow = _post(f"{api}/flows/", {"name": "from the test"})
    assert [row["id"] for row in _post(f"{api}/flows/filter", {"limit": None})] == [flow["id"]]
    assert client.query("prefect", "SELECT count(*) FROM flow") == 1


@pytest.mark.parametrize("login", ["", "mrmodel:", "mrmodel:another"])
def test_prefect_does_nothing_without_its_password(client: Installation, login: str) -> None:
    """Finding 10: anybody on the machine, and any web page, could make work pools."""
    pool = {"name": "of-somebody", "type": "process"}
    api = os.environ["PREFECT_API_URL"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(_ask(f"{api}/work_pools/", pool, login), timeout=30)
    assert client.query("prefect", "SELECT count(*) FROM work_pool WHERE name = 'of-somebody'") == 0


def test_only_prefects_own_pages_may_call_it(client: Installation) -> None:
    """Finding 10: browsers ask before another page's script may send a password or read answers."""
    api = os.environ["PREFECT_API_URL"]
    own = [api.removesuffix("/api"), f"http://localhost:{client.settings()['ports']['prefect']}"]
    allowed = {}
    for origin in (*own, "http://evil.example", "http://127.0.0.1:1"):
        request = _ask(f"{api}/work_pools/filter", {}, origin=origin)
        request.method, request.data = "OPTIONS", None
        request.add_header("Access-Control-Request-Method", "POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                allowed[origin] = answer.headers["Access-Control-Allow-Origin"]
        except urllib.error.HTTPError as error:
            allowed[origin] = error.headers["Access-Control-Allow-Origin"]
    assert allowed == {origin: origin if origin in own else None for origin in allowed}


def test_studies_are_kept_in_the_database(client: Installation) -> None:
    optuna.create_study(storage=open_storage(os.environ["OPTUNA_STORAGE"]), study_name="main")
    assert client.query("optuna", "SELECT count(*) FROM studies") == 1


def test_only_this_machine_reaches_them(installation: Installation) -> None:
    addresses = [
        (connection.laddr.ip, connection.laddr.port)
        for process in installation.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {port for _, port in addresses} > set(installation.settings()["ports"].values())
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}


def test_secrets_are_in_private_files_only(installation: Installation) -> None:
    settings = installation.settings()
    hidden = [settings["password"], settings["prefect_password"], *settings["s3_secrets"].values()]
    commands = " ".join(word for one in psutil.process_iter() for word in _command(one))
    assert f"--port {settings['ports']['mlflow']}" in commands
    assert not any(secret in commands for secret in hidden)
    holders = set()
    for path in installation.folder.rglob("*"):
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in hidden):
            holders.add(path.name)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert holders == {"installation.json", "env", "env-worker", "env-sender"}
    # Finding 11: others read neither data nor logs; root's folder lets PostgreSQL's account pass.
    private = stat.S_IMODE(installation.folder.stat().st_mode)
    assert private == (0o711 if os.geteuid() == 0 else 0o700)
    assert {path.name for path in installation.folder.iterdir()} >= {"seaweedfs", "mlflow.log"}
    for path in installation.folder.iterdir():
        assert not path.stat().st_mode & 0o077, path


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_second_start_changes_nothing(installation: Installation) -> None:
    """Finding 21: it says where the passwords are, and prints none."""
    before, env = installation.pids(), (installation.folder / "env").read_text()
    output = installation.make("services")
    assert "All of them were running already." in output
    assert f"{installation.folder}/env" in output
    assert not [value for value in re.findall(r"[0-9a-f]{32}", env) if value in output]
    assert (installation.folder / "env").read_text() == env
    assert installation.pids() == before
    assert "stop them first" in installation.make("services", "--free-ports", code=2)
    assert installation.pids() == before


def test_a_server_that_died_is_reported_and_started_again(installation: Installation) -> None:
    before = installation.pids()
    children = psutil.Process(before["mlflow"]).children(recursive=True)
    os.kill(before["mlflow"], signal.SIGKILL)
    status = installation.make("services-status", code=2)
    assert re.search(r"^mlflow +died", status, re.MULTILINE)
    assert re.search(r"^prefect +runs", status, re.MULTILINE)
    assert f"mlflow: The end of {installation.folder}/mlflow.log:\n  " in status
    output = installation.make("services")
    assert f"mlflow (process {before['mlflow']}) had died; started again." in output
    after = installation.pids()
    assert after.pop("mlflow") != before.pop("mlflow")
    assert after == before
    assert not any(child.is_running() for child in children)
    assert "died" not in installation.make("services-status")


def test_a_server_that_hangs_is_reported(installation: Installation) -> None:
    hung = [
        process
        for process in installation.processes()
        if "prefect" in " ".join(_command(process)) and process.name() != "guard.py"
    ]
    for process in hung:
        process.suspend()
    try:
        status = installation.make("services-status", code=2)
    finally:
        for process in hung:
            process.resume()
    assert re.search(r"^prefect +gives no answer", status, re.MULTILINE)


def test_the_page_ends_without_a_process_or_a_port(client: Installation) -> None:
    store = open_store(os.environ["MRMODEL_HANDOVER"])
    store.put("kept", b"over the stop")
    settings, processes = client.settings(), client.processes()
    assert len(processes) > 8
    page = (ROOT / "docs/howto/start_the_services.md").read_text()
    # What moves data of an older release needs the PostgreSQL that wrote them.
    page = page[: page.index("## From Debian's PostgreSQL")]
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    assert commands.count("make ") == 3
    output = client.shell(commands + 'test "$MRMODEL_DVC_REMOTE" = s3://mrmodel/dvc')
    assert "Stopped: postgres, seaweedfs, mlflow, prefect." in output
    assert not [process for process in processes if process.is_running()]
    ports = [*settings["ports"].values(), *settings["inner_ports"]]
    assert [port for port in ports if not is_free(port)] == []
    assert not (client.folder / "env").exists()
    assert len(re.findall(r" stopped ", client.make("services-status"))) == len(PORTS)
    assert "None was running." in client.make("services-stop")
    client.make("services")
    assert client.settings() == settings
    found = store.get("kept")
    assert found is not None
    assert client.query("mlflow", "SELECT count(*) FROM experiments") >= 1


def test_an_installation_of_an_earlier_release_gets_new_secrets(tmp_path: Path) -> None:
    """Its S3 key was also that of senders; PostgreSQL keeps its password and its data."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    inner = free_ports(len(INNER_PORTS))
    old = {"ports": ports, "inner_ports": inner, "password": "as-before"}
    file = tmp_path / "installation.json"
    file.write_text(json.dumps(old | {"access_key": "mrmodel", "secret_key": "of-everybody"}))
    services = Services(tmp_path)
    assert {state.word for state in services.states()} == {"stopped"}
    settings = services._settle({}, False, [])
    assert asdict(settings).items() >= old.items()
    assert settings.s3_secrets.keys() == set(IDENTITIES)
    assert "of-everybody" not in str(settings)


def test_a_taken_port_is_named_before_anything_is_started(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "services")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output = installation.make("services", "--free-ports", "--port", f"mlflow={port}", code=2)
    assert f"error: mlflow: port {port} of 127.0.0.1 is taken" in output
    assert sorted(path.name for path in installation.folder.iterdir()) == ["lock"]


@pytest.mark.parametrize("port", ["mlflow", "mlflow=x", "mysql=1", "mlflow=0", "mlflow=65536"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    done = CliRunner().invoke(main, ["--folder", str(tmp_path), "up", "--port", port])
    assert (done.exit_code, "NAME=NUMBER" in done.output) == (2, True)
    assert not list(tmp_path.iterdir())


def test_make_says_what_is_no_port(tmp_path: Path) -> None:
    assert "NAME=NUMBER" in Installation(tmp_path).make("services", "--port", "mysql=1", code=2)
