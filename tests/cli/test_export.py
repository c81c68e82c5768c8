"""``mrmodel cut``: what it prints and how it ends."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrmodel.cli.main import cli
from tests.export.videos import constant, make_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "lake.mp4"
    return make_video(path, constant(50, Fraction(25)), Fraction(1, 25), sound=None)


ROW = {"query": "a cat", "vid": "lake", "pred_relevant_windows": [[0.4, 1.0, 0.9], [1, 2, 0.1]]}


def test_what_predict_prints_is_cut(video: Path, tmp_path: Path) -> None:
    hits, folder = tmp_path / "hits.jsonl", tmp_path / "clips"
    hits.write_text(json.dumps(ROW) + "\n")
    arguments = ["cut", str(video), "--hits", str(hits), "--output", str(folder), "--top", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--exact"])
    assert result.exit_code == 0, result.output
    clip, manifest = result.stdout.splitlines()
    assert clip == f"{folder}/001_lake_a-cat.mp4       0.4 s to      1.0 s   a cat"
    assert manifest == f"{folder}/hits.json"


def test_a_bad_hit_costs_the_others_nothing(video: Path, tmp_path: Path) -> None:
    hits = tmp_path / "hits.jsonl"
    rows = [ROW, {"path": str(tmp_path / "none.mp4"), "query": "b", "start_s": 0, "end_s": 1}]
    hits.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["cut", str(video), "--hits", str(hits), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*arguments, "--format", "csv", "--format", "edl"])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path}/none.mp4: not_found: no such file\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["hits.csv", "hits.edl"]
