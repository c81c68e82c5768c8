"""Records of processes, from what they say to what MLflow shows; no stage and no DVC."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from infra.local.process import free_ports
from mrmodel.config.schema import TrackingSettings
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.run import TrackedRun, current_run, open_run
from mrmodel.tracking.stage_metrics import learning_curves
from tests.services import Service

ON = TrackingSettings(enabled=True, experiment="trial")
# A process with an open record, which says so and waits.
OPEN = """
import sys, time
from mrmodel.config.schema import TrackingSettings
from mrmodel.tracking.run import open_run
from mrmodel.tracking.event_log import RunSpec
settings = TrackingSettings(enabled=True, experiment="trial")
opening = RunSpec("trial", sys.argv[1], sys.argv[2], sys.argv[1], command=sys.argv[3] or None)
with open_run(settings, opening) as record:
    record.log({"loss": 1.0}, 1)
    print(record.run_id(60), flush=True)
    time.sleep(float(sys.argv[4]))
"""


def spec(state: Path, name: str = "finetune@m", parent: str | None = None) -> RunSpec:
    return RunSpec("trial", str(state), name, str(state), parent=parent)


def client(state: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{state / 'mlflow.db'}")


def runs(state: Path) -> dict[str, Run]:
    """By name; the later one of equal names."""
    found = client(state)
    experiment = found.get_experiment_by_name("trial")
    listed = found.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.info.run_name: run for run in listed}


def artifact(state: Path, run: Run, name: str) -> str:
    return Path(client(state).download_artifacts(run.info.run_id, name)).read_text()


def start(state: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(state), name, "", str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, *arguments], stdout=subprocess.PIPE, text=True
    )


def recorders(state: Path) -> list[psutil.Process]:
    """Recorders of a child of this process, or of one that is gone."""
    here = psutil.Process().children(recursive=True)
    orphans = psutil.Process(1).children()
    found = []
    for process in [*here, *orphans]:
        try:
            if "mrmodel.tracking.mlflow_worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(true: object, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def state(tmp_path: Path, empty_mlflow: Path) -> Path:
    """Folder of a database without runs."""
    shutil.copy(empty_mlflow, tmp_path)
    return tmp_path


def test_a_run_keeps_all_that_is_said(state: Path) -> None:
    (state / "figures.json").write_text('{"best": 1}')
    with open_run(ON, spec(state, parent="0" * 32)) as record:
        assert current_run() is record
        record.params({"run": {"lr": 1e-4, "none": None}, "seed": 3, "streams": ["a", "b"]})
        record.log({"loss": 2.0, "val/R1@0.5": 10.0}, 5)
        record.log({"loss": 1.0}, 10)
        record.tags({"device": "cpu"})
        record.text("curves/loss.svg", "<svg/>")
        record.table("tables/t.json", {"way": ["a", "b"], "mAP": [1.5, None]})
        record.file(state / "figures.json")
        (state / "figures.json").write_text('{"best": 2}')
        told = record.run_id(60)
    assert type(current_run()) is TrackedRun, "inside the block only"
    run = runs(state)["finetune@m"]
    assert run.info.run_id == told
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "run.lr": "0.0001",
        "run.none": "None",
        "seed": "3",
        "streams": "['a', 'b']",
    }
    assert run.data.tags["device"] == "cpu"
    assert run.data.tags["mlflow.parentRunId"] == "0" * 32
    assert run.data.tags["env.python"] == ".".join(map(str, sys.version_info[:3]))
    history = client(state).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(5, 2.0), (10, 1.0)]
    assert run.data.metrics["val/R1_at_0.5"] == 10.0
    assert artifact(state, run, "curves/loss.svg") == "<svg/>"
    assert json.loads(artifact(state, run, "figures.json")) == {"best": 2}, "as it is at the end"
    table = json.loads(artifact(state, run, "tables/t.json"))
    assert table == {"columns": ["way", "mAP"], "data": [["a", 1.5], ["b", None]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"])[0]["type"] == "table"
    assert json.loads(artifact(state, run, "environment.json"))["torch"].startswith("2.")
    assert not recorders(state)


def test_parts_are_runs_below_the_run(state: Path) -> None:
    with open_run(ON, spec(state, "seed_run@m-1")) as record:
        with record.child_run("seed_run@m-1") as whole:
            whole.log({"whole": 1.0}, 0)
        with record.child_run("pretrain@m") as child_run:
            child_run.log({"loss": 3.0}, 1)
        with pytest.raises(RuntimeError), record.child_run("finetune@m"):
            raise RuntimeError("broken")
    found = runs(state)
    above = found["seed_run@m-1"]
    assert above.data.metrics["whole"] == 1.0
    assert found["pretrain@m"].data.metrics == {"loss": 3.0}
    states = {name: run.info.status for name, run in found.items()}
    assert states == {
        "seed_run@m-1": "FINISHED",
        "pretrain@m": "FINISHED",
        "finetune@m": "FAILED",
    }
    for name in ("pretrain@m", "finetune@m"):
        assert found[name].data.tags["mlflow.parentRunId"] == above.info.run_id


def test_nothing_is_written_and_no_process_started_when_it_is_off(tmp_path: Path) -> None:
    off = TrackingSettings(enabled=False, experiment="trial")
    with open_run(off, spec(tmp_path)) as record:
        assert type(record) is TrackedRun
        record.log({"loss": 1.0}, 1)
        assert not recorders(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_stages_may_make_the_database_at_once(tmp_path: Path) -> None:
    started = [start(tmp_path, name, 0) for name in ("first", "second")]
    ended = [process.communicate(timeout=120) and process.returncode for process in started]
    assert ended == [0, 0]
    assert {name: run.info.status for name, run in runs(tmp_path).items()} == {
        "first": "FINISHED",
        "second": "FINISHED",
    }


def test_secrets_of_the_environment_are_not_recorded(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor those in the message of the error that breaks a run."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    monkeypatch.setenv("SOME_URL", "https://me:topsecret@host/x")

    def stage() -> None:
        with open_run(ON, spec(state)) as record:
            record.params({"key": "is hush-hush-hush"})
            record.tags({"from": "https://me:topsecret@host/x"})
            record.text("note.txt", "hush-hush-hush")
            record.table("table.json", {"text": ["topsecret"]})
            raise RuntimeError("cannot read https://me:topsecret@host/x")

    with pytest.raises(RuntimeError, match="topsecret"):
        stage()
    run = runs(state)["finetune@m"]
    assert run.data.params == {"key": "is ***"}
    assert run.data.tags["from"] == "https://me:***@host/x"
    told = run.data.tags["error"]
    assert (run.info.status, told) == ("FAILED", "cannot read https://me:***@host/x")
    assert artifact(state, run, "note.txt") == "***"
    written = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
    assert not [data for data in written if b"hush-hush" in data or b"topsecret" in data]


def test_a_full_disk_costs_the_record_and_not_the_stage(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        + OPEN.replace("record.log", "record.text('long.txt', 'x' * 60_000); record.log").replace(
            "run_id(60)", "run_id(1)"
        )
    )
    command = [sys.executable, "-c", code, str(state), "corpus", "", "0"]
    started = time.monotonic()
    subprocess.run(command, check=True)
    assert time.monotonic() - started < 80
    assert "the record of this run ends here" in capfd.readouterr().err


@pytest.mark.services
def test_a_server_that_is_not_there_costs_seconds_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with open_run(ON, spec(tmp_path)) as record:
        record.log({"loss": 1.0}, 1)
        inside = time.monotonic() - started
    assert inside < 1, "the work itself is not held up"
    assert time.monotonic() - started < 45
    assert "MLflow does not take the run" in capfd.readouterr().err
    assert not recorders(tmp_path)


@pytest.mark.slow
def test_a_server_that_never_answers_is_not_waited_for_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with open_run(ON, spec(tmp_path)) as record:
            record.log({"loss": 1.0}, 1)
        assert time.monotonic() - started < 60
    assert not recorders(tmp_path)


def test_what_is_said_while_the_server_is_away_arrives_when_it_is_back(
    mlflow_server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL and S3 behind a server that is reached through a port that opens late."""
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    (tmp_path / "figures.json").write_text("{}")
    client = MlflowClient(mlflow_server.url)
    with open_run(ON, spec(tmp_path, "late")) as record:
        record.log({"loss": 2.0}, 1)
        assert record.run_id(4) is None
        with forwarded(port, mlflow_server.url):
            run_id = record.run_id(60)
            assert run_id is not None
        record.log({"loss": 1.0}, 2)
        record.text("note.txt", "said while it was away")
        time.sleep(1)
        assert 1.0 not in client.get_run(run_id).data.metrics.values()
        # It stays until the record is closed.
        back = forwarded(port, mlflow_server.url)
        back.__enter__()
    back.__exit__(None, None, None)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)
    assert run.info.artifact_uri.startswith(("s3://", "mlflow-artifacts:"))
    note = Path(client.download_artifacts(run_id, "note.txt"))
    assert note.read_text() == "said while it was away"


@contextmanager
def forwarded(port: int, url: str) -> Iterator[None]:
    """Connections to `port` go to the server at `url`."""
    target = (urlsplit(url).hostname, urlsplit(url).port)
    listening = socket.create_server(("127.0.0.1", port))
    links: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            far = socket.create_connection(target)
            links.extend((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for link in links:
            link.close()


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_the_run_of_a_killed_stage_is_marked_and_nothing_is_left(state: Path) -> None:
    process = start(state, "pretrain@m", 600)
    assert process.stdout is not None
    assert process.stdout.readline().strip() not in ("", "None")
    (recorder,) = recorders(state)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    recorder.wait(7)
    assert runs(state)["pretrain@m"].info.status == "KILLED"


@pytest.mark.slow
def test_a_run_whose_recorder_was_killed_is_closed_by_the_next_one(state: Path) -> None:
    process = start(state, "pretrain@m", 3)
    assert process.stdout is not None
    lost = process.stdout.readline().strip()
    (recorder,) = recorders(state)
    recorder.kill()
    process.communicate()
    assert process.returncode == 0, "the stage goes on"
    assert client(state).get_run(lost).info.status == "RUNNING"
    other = start(state, "scratch@m", 600)
    assert other.stdout is not None
    alive = other.stdout.readline().strip()
    with open_run(ON, spec(state, "pretrain@m")):
        pass
    assert client(state).get_run(lost).info.status == "KILLED"
    with open_run(ON, spec(state, "scratch@m")):
        pass
    assert client(state).get_run(alive).info.status == "RUNNING", "its process lives"
    other.kill()
    other.communicate()


def test_load_is_recorded_at_intervals_and_at_the_end(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that does not import MLflow itself."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    code = OPEN + "\nassert not {'mlflow', 'dvc'} & set(sys.modules)\n"
    command = [sys.executable, "-c", code, str(state), "corpus", "python -m nothing", "4"]
    subprocess.run(command, check=True, capture_output=True)
    run = runs(state)["corpus"]
    assert run.info.status == "FINISHED"
    history = client(state).get_metric_history(run.info.run_id, "system/stage_memory_megabytes")
    # The last two may have one time, and MLflow orders by it.
    assert sorted(point.step for point in history) == list(range(len(history)))
    assert len(history) >= 3
    assert all(20 < point.value < 500 for point in history)
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 100


def test_curves_are_drawn_of_every_loss_and_figure(tmp_path: Path) -> None:
    names = [f"train/part_{number}" for number in range(8)]
    header = ["step", "epoch", "lr", "train/loss", *names, "val/mAP"]
    rows = [[str(step), "1", "0.1", *["2.5"] * 9, "30" if step == 2 else ""] for step in (1, 2)]
    (tmp_path / "h.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    pictures = learning_curves(tmp_path / "h.csv")
    assert list(pictures) == ["loss", "losses", "losses-2", "validation", "learning_rate"]
    for picture in pictures.values():
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert all(name in pictures["losses"] + pictures["losses-2"] for name in names)


def test_a_training_without_an_epoch_has_no_curves(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("step,train/loss\n")
    assert learning_curves(tmp_path / "h.csv") == {}
