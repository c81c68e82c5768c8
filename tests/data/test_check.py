import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrmodel import presets
from mrmodel.cli.data import group
from mrmodel.data.check import check_file, format_report
from mrmodel.errors import ConfigError, DataError
from tests.data.test_annotations import GOOD, write
from tests.video.fixtures import write_video


@pytest.fixture
def rows(tmp_path):
    return write(
        tmp_path / "rows.jsonl",
        GOOD,
        {**GOOD, "qid": 8, "query": "A  blue ball", "relevant_windows": [[0, 10]]},
        {**GOOD, "qid": 9, "vid": "w", "duration": 100, "relevant_windows": [[0, 20], [40, 75]]},
        {**GOOD, "qid": 10, "query": "a red  ball"},
    )


def test_summary(rows):
    report = check_file(rows)
    summary = report.summary
    assert report.errors == []
    assert summary["queries"] == 4
    assert summary["distinct queries"] == 2
    assert summary["videos"] == 2
    assert summary["same query and video again"] == 1
    assert summary["duration in s"] == {"min": 10.0, "median": 10.0, "mean": 32.5, "max": 100.0}
    assert summary["windows per query"] == {1: 3, 2: 1}
    assert summary["window lengths"] == {"short (to 10 s)": 3, "middle (to 30 s)": 1, "long": 1}
    assert summary["share of the video in windows"]["max"] == 1.0
    assert summary["share of the video in windows"]["min"] == pytest.approx(0.4)
    assert summary["ratings"] == {"0": 4, "1": 4, "2": 4, "3": 4, "4": 8}
    assert summary["raters"] == {3: 8}


def test_videos_folder(rows, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(DataError, match="holds no video file"):
        check_file(rows, folder)
    write_video(folder / "v.MP4", 10, fps=1)
    report = check_file(rows, folder)
    assert [(error.line, error.qid) for error in report.errors] == [(3, 9)]
    assert "no video 'w' in videos/" in str(report.errors[0])
    pointer = {"url": "s3://bucket/w.webm", "etag": "1", "bytes": 5}
    (folder / "w.s3").write_text(json.dumps(pointer))
    report = check_file(rows, folder)
    assert report.errors == []
    assert "1 videos in S3 were not opened" in str(report.warnings[-1])
    (folder / "w.s3").write_text("{")
    report = check_file(rows, folder)
    assert "its video w.s3 cannot be read: invalid_pointer" in str(report.errors[0])
    with pytest.raises(DataError, match="no such folder"):
        check_file(rows, tmp_path / "nothing")


def test_a_file_without_ground_truth_or_without_a_good_row(tmp_path):
    bare = {"qid": 1, "query": "x", "vid": "v", "duration": 5}
    report = check_file(write(tmp_path / "bare.jsonl", bare))
    assert "no relevant_windows and no saliency_scores" in str(report.errors[0])
    summary = report.summary
    assert (summary["windows"], summary["relevant clips"]) == (0, 0)
    report = check_file(write(tmp_path / "bad.jsonl", "{"))
    assert report.summary == {"queries": 0}
    assert format_report(report).endswith("queries: 0\n1 errors, 0 warnings")


def test_command_line(rows, tmp_path):
    run = CliRunner().invoke(group, ["check", str(rows)])
    assert run.exit_code == 0
    assert "queries: 4" in run.output
    bad = write(tmp_path / "bad.jsonl", "{", {**GOOD, "query": ""}, {**GOOD, "duration": "x"})
    run = CliRunner().invoke(group, ["check", str(bad)])
    assert run.exit_code == 2
    for line in (1, 2, 3):
        assert f"error: {bad}:{line}: " in run.output
    assert json.dumps("x") in run.output
    run = CliRunner().invoke(group, ["check", str(rows), "--clip-len", "1"])
    assert "differ in clips" in run.output


def test_the_clip_length_is_the_projects(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = presets.overlay(presets.render("own_videos"), {"features": {"clip_len_s": 1.0}})
    Path("params.yaml").write_text(own)
    found = [
        CliRunner().invoke(group, ["check", str(rows), *option]).output
        for option in ([], ["--clip-len", "1"], ["--clip-len", "2"])
    ]
    assert found[0] == found[1] != found[2]
    Path("params.yaml").write_text("features: []\n")
    run = CliRunner().invoke(group, ["check", str(rows)])
    assert isinstance(run.exception, ConfigError)
