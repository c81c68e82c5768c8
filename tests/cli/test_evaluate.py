"""``mrmodel evaluate`` as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mrmodel.cli.main import main
from mrmodel.files import write_jsonl
from tests.evaluate.rows_for_tests import random_rows


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    truth, guesses = random_rows(20, seed=11)
    write_jsonl(tmp_path / "gt.jsonl", truth)
    write_jsonl(tmp_path / "preds.jsonl", guesses)
    return tmp_path / "gt.jsonl", tmp_path / "preds.jsonl"


def run(monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path], *more: object) -> int:
    arguments = ["evaluate", "--annotations", files[0], "--predictions", files[1], *more]
    monkeypatch.setattr(sys, "argv", ["mrmodel", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


def test_table_metrics_and_per_query_files(
    monkeypatch: pytest.MonkeyPatch,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, per_query = tmp_path / "out" / "metrics.json", tmp_path / "queries.json"
    options = ("--protocol", "qvhighlights", "--output", output, "--per-query", per_query)
    assert run(monkeypatch, files, *options) == 0
    shown = capsys.readouterr().out
    metrics = json.loads(output.read_text())
    assert "qvhighlights, mode official, 20 queries" in shown
    lines = dict(line.split() for line in shown.splitlines()[1:])
    assert lines == {name: f"{value:.2f}" for name, value in metrics["brief"].items()}
    queries = json.loads(per_query.read_text())
    assert len(queries["0"]["ap"]) == 10
    assert len(queries["0"]["hl_ap"]) == 3


def test_null_figures_are_dashes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = tmp_path / "gt.jsonl", tmp_path / "preds.jsonl"
    write_jsonl(paths[0], [{"qid": 1, "relevant_windows": [[0, 20]]}])
    write_jsonl(paths[1], [{"qid": 1, "pred_relevant_windows": [[0, 20, 0.5]]}])
    assert run(monkeypatch, paths, "--protocol", "qvhighlights") == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert (lines["MR-short-mAP"], lines["MR-middle-mAP"]) == ("-", "100.00")


def test_missing_queries_are_refused_or_left_out(
    monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = files[1].read_text().splitlines(keepends=True)
    files[1].write_text("".join(lines[:-2]))
    assert run(monkeypatch, files, "--protocol", "charades") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {files[1]}: qid ")
    assert "2 of 20 queries are missing" in error
    assert run(monkeypatch, files, "--protocol", "charades", "--allow-missing") == 0
    assert "18 queries" in capsys.readouterr().out


def test_errors_name_file_line_and_qid(
    monkeypatch: pytest.MonkeyPatch,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = files[1].read_text().splitlines()
    row = json.loads(lines[4])
    row["pred_relevant_windows"][0] = [1.0, 2.0]
    lines[4] = json.dumps(row)
    files[1].write_text("\n".join(lines))
    output = tmp_path / "metrics.json"
    assert run(monkeypatch, files, "--protocol", "qvhighlights", "--output", output) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {files[1]}:5: qid {row['qid']}: ")
    assert "must be [start, end, score], found [1.0, 2.0]" in error
    assert "\n" not in error
    assert not output.exists()


def test_missing_file(
    monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = files[0].with_name("nowhere.jsonl")
    assert run(monkeypatch, (files[0], nowhere), "--protocol", "tacos") == 2
    assert f"error: {nowhere}: no such file" in capsys.readouterr().err


def test_the_command_starts_without_torch(files: tuple[Path, Path]) -> None:
    code = (
        "import sys; from mrmodel.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'scipy', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    arguments = ["--annotations", str(files[0]), "--predictions", str(files[1])]
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", *arguments, "--protocol", "qvhighlights"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
