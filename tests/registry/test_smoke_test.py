"""Answers of a fresh process, compared with those of the registration."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mrmodel.predict.serving import read_serving
from mrmodel.registry.smoke_test import difference, run_smoke
from mrmodel.tracking.mlflow_model import write_mlflow_model
from tests.project import Project

ROW = {"vid": "a", "pred_relevant_windows": [[0.0, 2.0, 0.5]], "pred_saliency_scores": [0.1]}


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({}, ""),
        ({"pred_saliency_scores": [0.1004]}, ""),
        ({"pred_saliency_scores": [0.102]}, "answers[0].pred_saliency_scores[0] is 0.102, 0.1"),
        ({"pred_relevant_windows": []}, "answers[0].pred_relevant_windows has 0 items, 1"),
        ({"vid": "b"}, "answers[0].vid is 'b', 'a'"),
        ({"more": 1}, "answers[0].more is 1, None"),
        ({"pred_saliency_scores": [float("nan")]}, "answers[0].pred_saliency_scores[0] is nan"),
    ],
)
def test_the_first_difference_is_named(other: dict, where: str) -> None:
    found = difference([ROW | other], [ROW])
    assert found.startswith(where)
    assert bool(found) == bool(where)


SPY = """
import os
try:
    open(f"/proc/{os.getppid()}/environ").close()
    word = "readable"
except PermissionError:
    word = "denied"
raise SystemExit(f"{sorted(os.environ)} environment of the parent: {word}")
"""


@pytest.fixture(scope="module")
def model(reproduced: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("smoke") / "model"
    folder = reproduced.folder / "models/served/moment_detr"
    write_mlflow_model(target, folder, read_serving(folder))
    return target


def test_a_sound_model_repeats_its_answers(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    first, answers = run_smoke(model, None, 300)
    assert first.fault == ""
    assert first.latency_s is not None
    assert 0 < first.latency_s < 60
    # The last value of all is changed; all before it are repeated, or one would be named first.
    assert list(answers[-1])[-1] == "duration"
    other = [*answers[:-1], answers[-1] | {"duration": 21.0}]
    again, _ = run_smoke(model, other, 300)
    assert again.fault == "answers[1].duration is 20.0, 21.0 at registration"


def test_the_models_process_sees_no_credentials(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that looks for them, so that the process itself says what it sees."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    spy = tmp_path / "spy"
    shutil.copytree(model, spy)
    (spy / "pyfunc_model.py").write_text(SPY)
    smoke, answers = run_smoke(spy, None, 300)
    assert smoke.fault.startswith("the process ended with 1: [")
    assert "AWS_SECRET_ACCESS_KEY" in os.environ
    assert "AWS" not in smoke.fault
    assert "'PATH'" in smoke.fault
    assert smoke.fault.endswith("environment of the parent: denied")
    assert answers == []


def test_a_model_that_does_not_load_or_hangs_is_at_fault(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "artifacts/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    smoke, _ = run_smoke(broken, None, 300)
    assert smoke.fault.startswith("the process ended with 1: ")
    assert smoke.latency_s is None
    late, _ = run_smoke(model, None, 0.2)
    assert late.fault == "no prediction within 0.2 s"


def test_answers_of_other_code_do_not_count(model: Path, tmp_path: Path) -> None:
    """A model that lost its code would be answered by the package of this machine."""
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    shutil.rmtree(bare / "code")
    smoke, _ = run_smoke(bare, None, 300)
    assert "code" in smoke.fault
    example = json.loads((model / "serving_input_example.json").read_text())
    assert len(example["inputs"]) == 2
