import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from mrmodel.config import TrackingSettings
from mrmodel.track.mlflow_log import NoRecord, code_tags, flatten, open_run

ON = TrackingSettings(enabled=True, experiment="trial")


def client(state: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{state / 'mlflow.db'}")


def runs(state: Path) -> list:
    found = client(state)
    experiment = found.get_experiment_by_name("trial")
    return found.search_runs([experiment.experiment_id])


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_keeps_parameters_curves_files_and_origin(tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text("{}")
    with open_run(ON, "finetune@m", {"run": {"lr": 0.1}, "seed": 3}, tmp_path) as record:
        record.log({"loss": 2.0, "val/R1@0.5": 10.0}, 5)
        record.log({"loss": 1.0}, 10)
        record.file(tmp_path / "figures.json")
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"run.lr": "0.1", "seed": "3"}
    assert run.data.tags["stage"] == "finetune@m"
    assert len(run.data.tags["git.revision"]) == 40
    history = client(tmp_path).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(5, 2.0), (10, 1.0)]
    assert run.data.metrics["val/R1_at_0.5"] == 10.0
    (artifact,) = client(tmp_path).list_artifacts(run.info.run_id)
    assert artifact.path == "figures.json"


def test_a_run_that_breaks_is_marked_as_failed(tmp_path: Path) -> None:
    def broken() -> None:
        with open_run(ON, "finetune@m", {}, tmp_path):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert runs(tmp_path)[0].info.status == "FAILED"


def test_nothing_is_written_when_it_is_off(tmp_path: Path) -> None:
    off = TrackingSettings(enabled=False, experiment="trial")
    with open_run(off, "finetune@m", {}, tmp_path) as record:
        assert isinstance(record, NoRecord)
        record.log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


def test_sections_become_dotted_names() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_tags_say_whether_the_code_differs_from_its_revision() -> None:
    tags = code_tags()
    assert tags["git.dirty"] in {"true", "false"}


def test_two_stages_may_make_the_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mrmodel.config import TrackingSettings\n"
        "from mrmodel.track.mlflow_log import open_run\n"
        "settings = TrackingSettings(enabled=True, experiment='trial')\n"
        "with open_run(settings, sys.argv[2], {}, Path(sys.argv[1])): pass\n"
    )
    commands = [[sys.executable, "-c", code, str(tmp_path), name] for name in ("first", "second")]
    started = [subprocess.Popen(command) for command in commands]
    assert [process.wait() for process in started] == [0, 0]
    assert {run.data.tags["stage"] for run in runs(tmp_path)} == {"first", "second"}
