"""A command of each group that works and one with a mistake, as processes.

Other tests run commands in their own process (`tests.project.Project.invoke`, click's CliRunner).
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from mrmodel import presets
from mrmodel.cli.main import COMMANDS
from mrmodel.encoders.user_weights import WEIGHTS_VARIABLE
from mrmodel.features.index import IndexEntry
from mrmodel.features.writer import FeatureWriter
from mrmodel.files import write_jsonl
from tests.evaluate.rows_for_tests import random_rows
from tests.export.videos import constant, make_video
from tests.features.test_store import INFO, rows_of
from tests.project import ROOT

MRMODEL = str(Path(sys.executable).with_name("mrmodel"))
SCORE = "evaluate --protocol charades --annotations gt.jsonl --predictions"


@dataclass(frozen=True)
class Pair:
    """Two command lines, each with a part of what it prints."""

    works: str
    prints: str
    refused: str
    error: str


GROUPS = {
    "evaluate": Pair(
        *(f"{SCORE} preds.jsonl", "charades, mode official, 20 queries"),
        *(f"{SCORE} none.jsonl", "error: none.jsonl: no such file"),
    ),
    "data": Pair(
        *("data check good.jsonl", "0 errors, 0 warnings"),
        *("data check bad.jsonl", "error: bad.jsonl:1: qid 1: duration = -1.0"),
    ),
    "features": Pair(
        *("features verify store", "store: sound"),
        *("features info .", "error: .: no manifest.json: not a feature store"),
    ),
    "preset": Pair(
        *("preset list", "--features embedded"),
        *("preset show sampel", "did you mean 'sample'"),
    ),
    "weights": Pair(
        *("weights verify", "imagenet.names: sound"),
        *("weights lock clip_b32", "run `mrmodel weights convert clip_b32"),
    ),
    "tune": Pair(
        *("tune space", "train.run.lr"),
        *("tune status", "error: there is no study 'main'"),
    ),
    "config": Pair(
        *("config check", "params.yaml: good. Corpus miniature"),
        *("config check bad.yaml", "error: train.pretrain.learning_rat = 0.001: unknown key"),
    ),
    "cut": Pair(
        *("cut lake.mp4 --hits hits.jsonl --format csv --output cuts", "cuts/hits.csv"),
        *(
            "cut none.mp4 --hits hits.jsonl --output none",
            'error: hits.jsonl:1: vid = "lake": the row is not about the video none.mp4',
        ),
    ),
    "highlight": Pair(
        *("highlight lake.mp4 --model zero-shot --top 1", "0.0 s to      2.0 s"),
        *("highlight none.mp4 --model zero-shot", "error: none.mp4: not_found"),
    ),
}
# A trained model, a registry, a git repository or a library is needed: tests/smoke/test_predict.py,
# tests/registry, tests/retrain, tests/server and tests/library/test_kill.py run these as processes.
ELSEWHERE = {"predict", "registry", "lineage", "delivery", "index", "serve", "feedback"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    params = presets.render("miniature")
    (folder / "params.yaml").write_text(params)
    (folder / "bad.yaml").write_text(params.replace("    lr:", "    learning_rat:", 1))
    truth, guesses = random_rows(20, seed=11)
    write_jsonl(folder / "gt.jsonl", truth)
    write_jsonl(folder / "preds.jsonl", guesses)
    row = {"qid": 1, "query": "A cat", "vid": "v", "duration": 4.0, "relevant_windows": [[0, 2]]}
    (folder / "good.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "bad.jsonl").write_text(json.dumps(row | {"duration": -1.0}) + "\n")
    with FeatureWriter(folder / "store", INFO) as writer:
        writer.add(IndexEntry("a", 2), rows_of(0, 2))
    make_video(folder / "lake.mp4", constant(100, Fraction(25)), Fraction(1, 25), sound=None)
    hit = {"query": "a cat", "vid": "lake", "pred_relevant_windows": [[0.4, 1.0, 0.9]]}
    write_jsonl(folder / "hits.jsonl", [hit])
    return folder


def run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), WEIGHTS_VARIABLE: str(folder / "weights")}
    command = [MRMODEL, *line.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_group_has_its_processes() -> None:
    assert GROUPS.keys() | ELSEWHERE == set(COMMANDS)


@pytest.mark.parametrize("pair", GROUPS.values(), ids=GROUPS.keys())
def test_a_command_that_works(folder: Path, pair: Pair) -> None:
    done = run(folder, pair.works)
    assert done.returncode == 0, done.stderr
    assert pair.prints in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("pair", GROUPS.values(), ids=GROUPS.keys())
def test_a_mistake(folder: Path, pair: Pair) -> None:
    done = run(folder, pair.refused)
    assert done.returncode == 2
    assert pair.error in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
