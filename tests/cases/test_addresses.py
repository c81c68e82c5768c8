"""Names and folders of any characters, wrong addresses, and servers that do not answer."""

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from mrmodel.cli.main import main
from mrmodel.errors import MrModelError, RegistryError
from mrmodel.registry.mlflow_versions import Versions
from mrmodel.tracking.experiment import ADDRESS_VARIABLE, open_experiment, open_for_user
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
