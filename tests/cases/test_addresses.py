"""Names and folders of any characters, wrong addresses, and servers that do not answer."""

import contextlib
import os
import shutil
import socket
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.config import Config

from mrmodel import presets
from mrmodel.cli.main import main
from mrmodel.errors import ConfigError, MrModelError, RegistryError, StorageError
from mrmodel.features.index import IndexEntry, IndexRow, read_index, write_index
from mrmodel.orchestrate.checkout import REMOTE, _configure
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.registry.pointer_store import registry_store
from mrmodel.storage import list_objects
from mrmodel.tracking import experiment
from mrmodel.tracking.experiment import ADDRESS_VARIABLE, open_experiment, open_for_user
from mrmodel.tune.storage import open_storage
from mrmodel.tune.study import Facts, TrialQueue
from mrmodel.video.decoder import Decoder, VideoLimits
from tests.video.fixtures import write_video

# Folders and files as people and programs name them.
NAMES = ["why? now", "my%20project", "100% C#", "cam1:front", 'it\'s "new"', "a&b=c;d+é"]
VIDEOS = ["-x", "http:x", "concat:a|b", "file:x", "pipe:0", "%03d", "C:\\new\nline"]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "MRMODEL_", "OPTUNA_", "PREFECT_")):
            monkeypatch.delenv(name)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A command that is refused: its only line on stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mrmodel", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "base.mp4", 4)


@pytest.mark.parametrize("name", [*NAMES, *VIDEOS, os.fsdecode(b"caf\xe9")])
def test_a_video_of_any_name_is_read(
    video: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"{name}.mp4")
    shutil.copy(video, path)
    times = [frame.time_s for frame in Decoder(path, VideoLimits()).frames()]
    assert times == [frame.time_s for frame in Decoder(video, VideoLimits()).frames()]
    assert len(times) == 4


@pytest.mark.parametrize("scheme", ["https", "s3", "rtsp", "file"])
def test_an_address_is_no_video(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = run("predict", f"{scheme}://u:pass@h/a.mp4", "--query", "red", capsys=capsys)
    host = "u:pass@h" if scheme == "file" else "h"
    assert line == (
        f"error: {scheme}://{host}/a.mp4: unreadable: addresses are not read, only files and the "
        "pointers that `mrmodel data link` writes"
    )


@pytest.fixture
def record(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, the current one, with an MLflow database."""
    folder = tmp_path / "home" / "project"
    (folder / ".mrmodel").mkdir(parents=True)
    shutil.copy(empty_mlflow, folder / ".mrmodel")
    monkeypatch.chdir(folder)
    return folder


def register() -> Versions:
    """Version 1 of `moments` with one file; needs the project's folder as the current one."""
    client, experiment = open_experiment("main", Path(".mrmodel"))
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "{}", "record.json")
    client.create_registered_model("moments")
    client.create_model_version("moments", f"{run.info.artifact_uri}/model", run.info.run_id)
    return versions()


def versions() -> Versions:
    return Versions(*open_for_user("main", Path(".mrmodel")), "moments")


def read(found: Versions, to: Path) -> str:
    to.mkdir(exist_ok=True)
    return found._download(found.get(1), "record.json", to).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_project_in_a_folder_of_any_name_has_its_record_inside(
    name: str, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record.rename(record.with_name(name))
    monkeypatch.chdir(folder)
    assert read(register(), tmp_path / "to") == "{}"
    assert [path.name for path in record.parent.iterdir()] == [name]
    state = sorted(path.name for path in (folder / ".mrmodel").iterdir())
    assert state == ["mlartifacts", "mlflow.db", "mlflow.lock"]
    assert len(list((folder / ".mrmodel/mlartifacts").rglob("record.json"))) == 1


def test_a_new_record_in_a_folder_of_both_quotation_marks(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record.rename(record.with_name('it\'s "new"'))
    monkeypatch.chdir(folder)
    with contextlib.closing(sqlite3.connect(".mrmodel/mlflow.db")) as database, database:
        database.execute("DELETE FROM experiments")  # As in a new one.
    open_experiment("main", Path(".mrmodel"))
    assert sorted(path.name for path in folder.iterdir()) == [".mrmodel"]
    assert Path.cwd() == folder


def test_a_folder_whose_name_is_not_utf8_is_refused(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = record.rename(record.with_name(os.fsdecode(b"caf\xe9")))
    monkeypatch.chdir(folder)
    with pytest.raises(MrModelError, match="not UTF-8"):
        open_experiment("main", Path(".mrmodel"))


def test_a_project_that_was_moved_is_read_from_its_new_place(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = register()
    source = found.get(1).source
    moved = record.rename(tmp_path / "moved %20#1")
    monkeypatch.chdir(moved)
    found = versions()
    assert read(found, tmp_path / "to") == "{}"
    assert found.get(1).source == source.replace(record.as_uri(), moved.as_uri())
    client, experiment = open_experiment("main", Path(".mrmodel"))
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "new", "a.txt")
    assert not record.exists()
    assert len(list((moved / ".mrmodel/mlartifacts").rglob("a.txt"))) == 1


def test_a_copied_project_writes_nothing_into_the_first_one(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    before = sorted(record.rglob("*"))
    monkeypatch.chdir(shutil.copytree(record, tmp_path / "copy"))
    client, experiment = open_experiment("main", Path(".mrmodel"))
    client.log_text(client.create_run(experiment).info.run_id, "new", "a.txt")
    assert sorted(record.rglob("*")) == before
    shutil.rmtree(record)
    assert read(versions(), tmp_path / "to") == "{}"


def test_files_that_were_left_behind(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    shutil.copytree(record, tmp_path / "new", ignore=shutil.ignore_patterns("mlartifacts"))
    monkeypatch.chdir(tmp_path / "new")
    assert read(versions(), tmp_path / "to") == "{}"
    shutil.rmtree(record)
    with pytest.raises(RegistryError, match=r"version 1: record\.json cannot be read from .*moved"):
        read(versions(), tmp_path / "to")


WRONG = [
    ("nonsense://x", "unsupported URI 'nonsense://x'"),
    ("http:/127.0.0.1:5000", "no ://"),
    ("http//127.0.0.1:5000", "no ://"),
    ("127.0.0.1:5000", "no ://"),
    ("mlflow.example.com", "is no address"),
    ("http://", "names no host"),
    ("http://host:50x0", "50x0"),
    ("'http://host'", "no scheme"),
    ("sqlite:/x.db", "no ://"),
    ("sqlite://x.db", "Invalid SQLite URL"),
    ("sqlite:///none/x.db", "unable to open"),
    ("postgresql:/u:pass-word@host/x", "no ://"),
    ("postgresql+psycopg2://u:pass-word@127.0.0.1:1/x", "refused"),
    ("http://u:pass-word@127.0.0.1:1", "refused"),
]


@pytest.mark.parametrize(("address", "rule"), WRONG)
def test_a_wrong_address_of_mlflow_is_one_line(
    address: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ADDRESS_VARIABLE, address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    began = time.monotonic()
    with pytest.raises(MrModelError, match=f"^{ADDRESS_VARIABLE} = .*{rule}") as caught:
        open_for_user("main", Path(".mrmodel"))
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    assert "pass-word" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_own_database_that_is_none(record: Path) -> None:
    (record / ".mrmodel/mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: cannot be opened: file is not a data"):
        open_for_user("main", Path(".mrmodel"))


def test_the_own_database_may_be_named(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, experiment = open_experiment("main", Path(".mrmodel"))
    monkeypatch.setenv(ADDRESS_VARIABLE, "sqlite:///.mrmodel/mlflow.db")
    assert open_experiment("main", Path(".mrmodel"))[1] == experiment


STORAGES = [
    ("postgresql:/127.0.0.1/db", "looks like an address but has no ://"),
    ("postgresql//host/db", "no ://"),
    ("localhost:5432/db", "no ://"),
    ("u:pass-word@host:5432/db", "no ://"),
    ("postgres://u:pass-word@host/db", "dialects:postgres"),
    ("postgresql+psycopg2://host:54x/db", "54x"),
    ("mysql+pymysql://host/db", "driver is not installed"),
    ("postgresql+psycopg2://u:pass-word@127.0.0.1:1/db", "refused"),
    ("sqlite://x.db", "Invalid SQLite URL"),
]


@pytest.mark.parametrize(("address", "rule"), STORAGES)
@pytest.mark.parametrize("create", [False, True])
def test_a_wrong_address_of_optuna_is_one_line(
    create: bool, address: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MrModelError, match=f"^OPTUNA_STORAGE = .*{rule}") as caught:
        open_storage(address, create)
    assert "\n" not in str(caught.value)
    assert "pass-word" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_accepts_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")  # The least that libpq takes.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql+psycopg2://127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(StorageError, match="timeout expired"):
            open_storage(address)
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
        with pytest.raises(RegistryError, match="timeout expired"):
            open_for_user("main", Path(".mrmodel"))


def test_an_mlflow_server_that_accepts_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(experiment._PATIENCE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ADDRESS_VARIABLE, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RegistryError, match="timed out"):
            open_for_user("main", Path(".mrmodel"))


@pytest.mark.parametrize("storage", ["", "postgresql:/127.0.0.1/db", "sqlite:///x.db", "a/b.log"])
def test_looking_at_a_search_makes_nothing(
    storage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTUNA_STORAGE", storage)
    (tmp_path / "params.yaml").write_text(presets.render("miniature"))
    for command in ("status", "best", "resume"):
        line = run("tune", command, capsys=capsys)
        rule = "there is no study" if "postgresql" not in storage else f"'{storage}': looks like"
        assert rule in line
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_search_of_a_moved_project_goes_on_in_its_new_place(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "tune", tmp_path / "new" / "tune"
    old.mkdir(parents=True)
    facts = Facts("tests:Objective", {"tune": {}}, {}, str(old / "s"), "tune s", 3)
    (old / "s").mkdir()
    TrialQueue.create(open_storage(str(old / "journal.log")), "s", facts, 1, seed=7)
    other = replace(facts, store=str(new / "s"))
    storage = open_storage(str(old / "journal.log"))
    assert TrialQueue.create(storage, "s", other, 1, seed=7).facts == facts  # It is still there.
    old.parent.rename(new.parent)
    storage = open_storage(str(new / "journal.log"))
    assert TrialQueue.create(storage, "s", other, 1, seed=7).facts == other
    assert TrialQueue(open_storage(str(new / "journal.log")), "s").facts == other


STORES = [
    ("s3:/bucket/x", "no ://"),
    ("s3//bucket/x", "no ://"),
    ("bucket:x", "no ://"),
    ("s4://bucket/x", "a store is s3://"),
    ("file:///why?now", "%3F"),
    ("file:///C#", "%23"),
    ("https://u:pass-word@host/x", "a store is s3://"),
]


@pytest.mark.parametrize(("address", "rule"), STORES)
def test_a_wrong_address_of_a_store_names_variable_and_value(
    address: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRMODEL_REGISTRY", address)
    with pytest.raises(StorageError, match=f"^MRMODEL_REGISTRY = '.*{rule}") as caught:
        registry_store(Path(".mrmodel"))
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("name", ["MRMODEL_DVC_REMOTE", "MRMODEL_HANDOVER", "MRMODEL_WORK_DIR"])
@pytest.mark.parametrize("address", ["s3:/u:pass-word@h/x", "s4://u:pass-word@h/x"])
def test_a_wrong_address_of_a_worker_names_variable_and_value(
    name: str, address: str, tmp_path: Path
) -> None:
    given = {"MRMODEL_GIT_URL": str(tmp_path), name: address}
    with pytest.raises(ConfigError, match=f"^{name} = 's[34]:/.*h/x'") as caught:
        RuntimeEnvironment.from_environment(given)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8333", "http:/127.0.0.1:8333", "ftp://h", "h"])
def test_a_wrong_endpoint_names_variable_and_value(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRMODEL_S3_ENDPOINT", endpoint)
    with pytest.raises(StorageError, match=f"MRMODEL_S3_ENDPOINT = '{endpoint}'"):
        list_objects("s3://bucket/x")


@pytest.mark.parametrize("address", ["https://h/x", "s3:/bucket/x", "folder", "gs://bucket/x", ""])
def test_a_wrong_target_of_links_is_one_line(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run("data", "link", address, str(tmp_path / "videos"), capsys=capsys)
    assert line.startswith(f"error: '{address}': ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*NAMES, "a, b", "#1", "[x]", " x "])
def test_dvc_reads_the_cache_of_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".git").mkdir()
    given = {"MRMODEL_GIT_URL": str(tmp_path), "MRMODEL_DVC_REMOTE": f"{tmp_path}/{name}/remote"}
    environment = replace(
        RuntimeEnvironment.from_environment(given), cache=tmp_path / name / "cache"
    )
    _configure(environment, folder)
    found = Config(str(folder / ".dvc"))
    assert found["cache"]["dir"] == str(environment.cache)
    assert found["remote"][REMOTE]["url"] == environment.remote


@pytest.mark.parametrize("name", [*NAMES, "s3:x", "http:x", "vid=1", os.fsdecode(b"caf\xe9")])
def test_a_feature_store_in_a_folder_of_any_name_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    rows = [IndexRow(IndexEntry("k", 3), 0, 0)]
    write_index(Path(name), rows)
    assert read_index(Path(name)) == rows
