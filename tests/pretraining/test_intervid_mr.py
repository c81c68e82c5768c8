"""The whole stage on small tables with invented vectors."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mrmodel.cli.main import cli
from mrmodel.config.intervid import IntervidSettings
from mrmodel.data.annotations import read_annotations
from mrmodel.errors import DataError, FeatureMismatch, OutputError
from mrmodel.evaluate.run import score_files
from mrmodel.features.index import IndexEntry
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.store import MemoryStore
from mrmodel.features.writer import FeatureWriter
from mrmodel.files import sha256_of
from mrmodel.pretraining.intervid import selection
from mrmodel.pretraining.intervid.decontaminate import (
    Excluded,
    read_benchmarks,
    read_leak_files,
)
from mrmodel.pretraining.intervid.filtering import FilterJob, filter_captions
from mrmodel.pretraining.intervid.generate import GenerationJob, build, generate
from mrmodel.pretraining.intervid.report import PLOT_COLUMNS
from mrmodel.pretraining.intervid.samples import Features, score_shard
from mrmodel.pretraining.intervid.selection import (
    SHARD_ROWS,
    select_captions,
    selected_texts,
)
from mrmodel.progress import NullReporter, Reporter
from tests.limits import files_of_at_most
from tests.pretraining.tables import (
    CAPTION_VECTOR,
    DIM,
    PARAMS,
    clips_with,
    features,
    read_rows,
    row,
    settings,
    unit,
    write_table,
)
from tests.project import ROOT

FILES = ("train.jsonl", "val.jsonl", "labels.parquet", "rejects.jsonl", "manifest.json")
NAMES = ["dog", "cat", "cow", "hen", "fox", "owl"]


@dataclass(frozen=True)
class Inputs:
    """What the generator reads."""

    captions: Path
    features: Features
    excluded: Excluded = field(default_factory=lambda: Excluded.of({"test": ["other_video"]}))


def corpus(folder: Path, videos: int = 24, clips: int = 90) -> Inputs:
    """Videos whose clips resemble their captions during two stretches of time."""
    generator = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    vectors: dict[str, np.ndarray] = {}
    for number in range(videos):
        video = f"video{number:06d}"
        scores = generator.normal(0.1, 0.02, clips)
        for first in (10, clips // 2):
            scores[first : first + 8] = generator.normal(0.6, 0.05, 8)
        vectors[video] = clips_with(np.clip(scores, -1, 1))
        for index, first in enumerate((10, clips // 2)):
            caption = f"a {NAMES[number % 6]} runs in park number {number} part {index}"
            rows.append(row(video, 2 * first + 0.5, 2 * first + 15.5, caption))
    path = write_table(folder / "captions.jsonl", rows)
    texts = [item["Caption"] for item in rows]
    return Inputs(path, features(vectors, texts))


def run(folder: Path, inputs: Inputs, preset: str = "robust", **changes: Any) -> Any:
    """Build everything in `folder`, and link the samples to where the tests look for them."""
    report = make(folder, inputs, settings(preset, **changes))
    for path in (folder / "samples").iterdir():
        target = folder / path.name
        if target.is_symlink():
            target.unlink()
        target.symlink_to(path)
    return report


def make(
    folder: Path, inputs: Inputs, options: IntervidSettings, reporter: Reporter | None = None
) -> Any:
    return build(
        inputs.captions,
        inputs.excluded,
        inputs.features,
        folder,
        options,
        inputs.features.clip_len_s,
        reporter or NullReporter(),
    )


def one(folder: Path, rows: list[Any], videos: dict[str, Any], **changes: Any) -> Any:
    """Report and rejects of a small table of which all captions have the same vector."""
    captions = [item["Caption"] for item in rows if isinstance(item, dict)]
    path = write_table(folder / "captions.jsonl", rows)
    inputs = Inputs(path, features(videos, captions))
    options = {"labels__max_coverage": 1.0, "val_share": 0.0, **changes}
    report = run(folder / "out", inputs, "paper", **options)
    return report, read_rows(folder / "out" / "rejects.jsonl")


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_every_row_keeps_the_format(tmp_path: Path, preset: str) -> None:
    inputs = corpus(tmp_path)
    report = run(tmp_path / "out", inputs, preset)
    assert report.state == "complete"
    rows = [item for name in ("train", "val") for item in read_rows(tmp_path / f"out/{name}.jsonl")]
    assert len(rows) == report.metrics["samples_train"] + report.metrics["samples_val"] == 48
    for item in rows:
        ids, windows = item["relevant_clip_ids"], item["relevant_windows"]
        assert ids == sorted(set(ids))
        assert sum(end - start for start, end in windows) == 2 * len(ids)
        assert [2 * i for i in ids] == [
            second for start, end in windows for second in range(start, end, 2)
        ]
        assert windows[0][0] >= 0
        assert windows[-1][1] <= item["duration"] <= 150
        assert all(before[1] < after[0] for before, after in pairwise(windows))
        assert len(item["saliency_scores"]) == len(ids)
        assert all(
            len(set(g)) == 1 and len(g) == 3 and 1 <= g[0] <= 4 for g in item["saliency_scores"]
        )
        video, start, end = item["vid"].rsplit("_", 2)
        assert float(end) - float(start) == item["duration"]
        assert item["vid"] in inputs.features.clips
        assert video in inputs.features.clips
    assert all(isinstance(item["duration"], int) for item in rows)


def test_other_stretches_that_match_become_windows(tmp_path: Path) -> None:
    run(tmp_path / "out", corpus(tmp_path, clips=60), val_share=0.0)
    for item in read_rows(tmp_path / "out/train.jsonl"):
        assert item["vid"].endswith("_0.0_120.0")
        spans = np.array(item["relevant_windows"])
        assert ((spans[:, 0] < 36) & (spans[:, 1] > 20)).any()
        assert ((spans[:, 0] < 76) & (spans[:, 1] > 60)).any()


def test_output_reads_as_annotations_and_is_its_own_perfect_prediction(tmp_path: Path) -> None:
    run(tmp_path / "out", corpus(tmp_path), val_share=0.0)
    path = tmp_path / "out/train.jsonl"
    assert len(read_annotations(path)) == 48
    predictions = []
    for item in read_rows(path):
        grades = np.zeros(round(item["duration"] / 2))
        grades[item["relevant_clip_ids"]] = [ratings[0] for ratings in item["saliency_scores"]]
        predictions.append(
            {
                "qid": item["qid"],
                "query": item["query"],
                "vid": item["vid"],
                "pred_relevant_windows": [[*window, 1.0] for window in item["relevant_windows"]],
                "pred_saliency_scores": grades.tolist(),
            }
        )
    write_table(tmp_path / "predictions.jsonl", predictions)
    scores = score_files(path, tmp_path / "predictions.jsonl", "qvhighlights", "official")
    brief = json.loads(json.dumps(scores.metrics))["brief"]
    assert brief["MR-full-mAP"] == 100.0


def test_rows_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    run(tmp_path / "out", corpus(tmp_path), val_share=0.3)
    for name in ("train", "val"):
        ids = [item["qid"] for item in read_rows(tmp_path / f"out/{name}.jsonl")]
        assert ids == sorted(ids)
        assert len(ids) > 4
    table = pq.read_table(tmp_path / "out/labels.parquet").to_pandas()
    assert table["qid"].is_monotonic_increasing
    assert set(table["split"]) == {"train", "val"}


def test_side_table_explains_the_labels(tmp_path: Path) -> None:
    run(tmp_path / "out", corpus(tmp_path), "paper", val_share=0.0)
    table = pq.read_table(tmp_path / "out/labels.parquet").to_pylist()
    samples = read_rows(tmp_path / "out/train.jsonl")
    assert [item["qid"] for item in table] == [item["qid"] for item in samples]
    for side, item in zip(table, samples, strict=True):
        scores = np.array(side["similarity"])
        assert len(scores) == item["duration"] / 2
        positive = np.flatnonzero(scores >= side["threshold"] - 1e-6)
        assert positive.tolist() == item["relevant_clip_ids"]
        assert side["threshold"] == pytest.approx(side["mean"] - 3 * side["sd"])
        assert side["source_end_s"] - side["source_start_s"] == pytest.approx(15.0)
        assert side["vid"].startswith(side["video_id"])
        assert not side["duration_estimated"]


def test_split_is_by_video_and_never_empty(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    for share in (1e-9, 0.2, 0.999):
        run(tmp_path / "out", inputs, val_share=share)
        train, val = (
            {item["vid"].rsplit("_", 2)[0] for item in read_rows(tmp_path / f"out/{name}.jsonl")}
            for name in ("train", "val")
        )
        assert train
        assert val
        assert not train & val
    report = run(tmp_path / "out", inputs, val_share=0.0)
    assert report.metrics["samples_val"] == 0
    assert any("val split is empty" in warning for warning in report.warnings)


def test_split_of_a_video_does_not_change_with_the_share(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    chosen = []
    for share in (0.2, 0.5):
        run(tmp_path / "out", inputs, val_share=share)
        chosen.append({item["vid"] for item in read_rows(tmp_path / "out/val.jsonl")})
    assert chosen[0] < chosen[1]


def test_sizes_are_nested(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    run(tmp_path / "out", inputs)
    full = read_rows(tmp_path / "out/train.jsonl")
    val = (tmp_path / "out/val.jsonl").read_bytes()
    for size in (5, 20):
        report = run(tmp_path / "out", inputs, max_samples=size)
        assert read_rows(tmp_path / "out/train.jsonl") == full[:size]
        assert (tmp_path / "out/val.jsonl").read_bytes() == val
        assert report.counts["samples"]["reserve"] == len(full) - size


def digests(folder: Path) -> dict[str, str]:
    names = [*FILES, "report.json", "metrics.json"]
    names += [f"plots/{name}.csv" for name in PLOT_COLUMNS]
    return {name: sha256_of(folder / name) for name in names}


def test_same_bytes_for_any_chunks_and_workers(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    run(tmp_path / "one", inputs)
    for name, options in {
        "chunks": {"chunk_rows": 3},
        "pool": {"chunk_rows": 9, "workers": 4},
    }.items():
        run(tmp_path / name, inputs, **options)
        assert digests(tmp_path / name / "samples") == digests(tmp_path / "one/samples")


class KilledReporter(NullReporter):
    """Dies at the nth step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, steps: int = 1, **info: object) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt


def test_crash_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = corpus(tmp_path, videos=12)
    monkeypatch.setattr(selection, "SHARD_ROWS", 12)
    options = settings("robust", chunk_rows=12)
    make(tmp_path / "whole", inputs, options)
    expected, steps = digests(tmp_path / "whole/samples"), 0
    while True:
        try:
            make(tmp_path / "cut", inputs, options, KilledReporter(steps))
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "cut/samples/manifest.json").exists()
        make(tmp_path / "cut", inputs, options)
        assert digests(tmp_path / "cut/samples") == expected
        assert not list((tmp_path / "cut").rglob(".*"))
        steps += 2
    assert steps > 8


def test_scored_shards_of_an_interrupted_run_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = corpus(tmp_path, videos=12)
    monkeypatch.setattr(selection, "SHARD_ROWS", 10)
    options = settings("robust")
    make(tmp_path / "out", inputs, options)
    folder, scored = tmp_path / "out", list[int]()
    job = GenerationJob(
        folder / "filter", folder / "select", inputs.features, folder / "again", tmp_path / "work"
    )

    def counted(rows: Any, *given: Any) -> Any:
        scored.append(len(rows))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_shard(rows, *given)

    monkeypatch.setattr("mrmodel.pretraining.intervid.generate.score_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(job, options, NullReporter())
    generate(job, options, NullReporter())
    assert scored == [10, 10, 10, 4]
    assert digests(folder / "again") == digests(folder / "samples")
    assert not (tmp_path / "work").exists()


KILLED = """
import os, signal, sys
from tests.pretraining.test_intervid_mr import KilledReporter, Path, corpus, make, settings

class Killed(KilledReporter):
    def advance(self, steps=1, **info):
        try:
            super().advance(steps)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGKILL)

inputs = corpus(Path(sys.argv[1]), videos=12)
make(Path(sys.argv[1]) / "cut", inputs, settings("robust", chunk_rows=10), Killed(int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 7, 8])
def test_a_killed_build_ends_in_the_same_bytes(tmp_path: Path, steps: int) -> None:
    """The shorter proof: `test_crash_leaves_nothing_that_looks_finished`."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(steps)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    inputs, options = corpus(tmp_path, videos=12), settings("robust", chunk_rows=10)
    make(tmp_path / "cut", inputs, options)
    make(tmp_path / "whole", inputs, options)
    assert digests(tmp_path / "cut/samples") == digests(tmp_path / "whole/samples")


def test_nothing_half_written_is_left_on_a_full_disk(tmp_path: Path) -> None:
    inputs = corpus(tmp_path, videos=12)
    make(tmp_path / "out", inputs, settings("robust"))
    folder = tmp_path / "out"
    job = GenerationJob(
        folder / "filter", folder / "select", inputs.features, folder / "samples", tmp_path / "work"
    )
    expected = digests(folder / "samples")
    with files_of_at_most(3000), pytest.raises(OutputError, match=r"npz"):
        generate(job, settings("robust"), NullReporter())
    assert not (folder / "samples/manifest.json").exists()
    assert not list(tmp_path.rglob(".*.tmp"))
    generate(job, settings("robust"), NullReporter())
    assert digests(folder / "samples") == expected


def test_shards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = corpus(tmp_path)
    run(tmp_path / "one", inputs, max_samples=20)
    monkeypatch.setattr(selection, "SHARD_ROWS", 7)
    run(tmp_path / "many", inputs, max_samples=20)
    for name in ("train.jsonl", "val.jsonl", "rejects.jsonl", "report.json"):
        assert sha256_of(tmp_path / "many" / name) == sha256_of(tmp_path / "one" / name)
    one, many = (pq.read_table(tmp_path / name / "labels.parquet") for name in ("one", "many"))
    assert one.equals(many)


def test_selections_are_nested_and_list_their_features(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    run(tmp_path / "all", inputs, val_share=0.0)
    whole = [item["qid"] for item in read_rows(tmp_path / "all/train.jsonl")]
    for most in (1, 20, 48, 99):
        report = run(tmp_path / "some", inputs, val_share=0.0, max_captions=most)
        found = [item["qid"] for item in read_rows(tmp_path / "some/train.jsonl")]
        assert found == whole[:most]
        assert report.counts["selected"]["captions"] == min(most, 48)
        texts = selected_texts(tmp_path / "some/select")
        assert sorted(texts) == sorted(x["query"] for x in read_rows(tmp_path / "some/train.jsonl"))
    # Cut to the listed segments, the videos give the same samples as whole ones, but for the place.
    listed = list(csv.DictReader((tmp_path / "some/select/segments.csv").open()))
    assert len({item["vid"] for item in listed}) == len(listed)
    cut = {
        item["vid"]: clips_with([0.2] * round((float(item["end_s"]) - float(item["start_s"])) / 2))
        for item in listed
    }
    texts = [item["Caption"] for item in read_rows(inputs.captions)]
    only = replace(inputs, features=features(cut, texts))
    report = run(tmp_path / "cut", only, "paper", val_share=0.0)
    assert report.counts["segments"] == {"chosen": 48, "no_video_features": 0}
    assert SHARD_ROWS > 48


def test_manifest_says_what_went_in_and_out(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    run(tmp_path / "out", inputs)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["preset"] == "robust"
    table = {"name": "captions.jsonl", "bytes": inputs.captions.stat().st_size}
    assert manifest["inputs"]["table"] == table | {"sha256": sha256_of(inputs.captions)}
    assert manifest["inputs"]["excluded"]["lists"] == {"test": 1}
    assert manifest["inputs"]["selected"] == sha256_of(tmp_path / "out/select/selected.parquet")
    assert manifest["outputs"]["train.jsonl"] == sha256_of(tmp_path / "out/train.jsonl")
    assert manifest["counts"]["rules"]["length"] == 0
    assert manifest["sd_floor"] > 0
    assert "workers" not in manifest["settings"]
    assert str(tmp_path) not in json.dumps(manifest)


def test_data_card(tmp_path: Path) -> None:
    source = {"name": "InternVid", "licence": "CC BY-NC-SA 4.0"}
    report = run(tmp_path / "out", corpus(tmp_path, videos=4), source=source)
    card = json.loads((tmp_path / "out/card.json").read_text())
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (card["source"], card["licence"]) == ("InternVid", "CC BY-NC-SA 4.0")
    assert card["excluded"] == {"test": 1}
    assert card["counts"] == report.counts
    assert (card["inputs"], card["outputs"]) == (manifest["inputs"], manifest["outputs"])
    text = (tmp_path / "out/card.md").read_text()
    digest = sha256_of(tmp_path / "out/train.jsonl")
    for shown in ("CC BY-NC-SA 4.0", digest, "word lists version 1", "test (1 ids)", "| grade |"):
        assert shown in text
    for name, count in report.counts["rules"].items():
        assert f"| rules: {name} | {count} |" in text
    run(tmp_path / "out", corpus(tmp_path, videos=2), captions__rules__leak=False)
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert (card["source"], card["excluded"]) == ("captions.jsonl", None)
    assert card["licence"] == "not stated (intervid.source.licence)"


def test_the_command_lists_features_and_makes_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS.read_text())
    inputs, command = corpus(tmp_path, videos=4), ["data", "intervid-mr", "captions.jsonl"]
    write_table(tmp_path / "ids.txt", ["other_video"])
    command += ["--exclude", "ids.txt", "--output", "built"]
    listed = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert listed.exit_code == 0
    assert "features are needed of: built/select" in listed.output
    assert len(selected_texts(Path("built/select"))) == 8
    shared = {"dim": DIM, "fingerprint": {}}
    infos = {
        "clips": StreamInfo(
            stream="a.clips", modality="video", keyed_by="vid", clip_len_s=2.0, **shared
        ),
        "texts": StreamInfo(
            stream="a.texts", modality="text", keyed_by="text", clip_len_s=None, **shared
        ),
    }
    for name, info in infos.items():
        rows = getattr(inputs.features, name)
        with FeatureWriter(Path(name), info) as writer:
            for key in sorted(rows):
                found, _ = rows.gather([key])
                writer.add(IndexEntry(key, found.shape[1]), found[0])
    stores = ["--clips", "clips", "--texts", "texts"]
    made = CliRunner().invoke(cli, [*command, *stores], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    assert read_rows(Path("built/samples/train.jsonl"))
    assert CliRunner().invoke(cli, [*command, *stores[:2]]).exit_code == 2


def test_report_adds_up(tmp_path: Path) -> None:
    report = run(tmp_path / "out", corpus(tmp_path))
    counts = report.counts
    assert counts["rows"]["read"] == 48
    left = counts["rows"]["read"] - sum(counts["rules"].values())
    assert counts["kept"]["captions"] == counts["selected"]["captions"] == left
    rules = {f"rule_{name}": count for name, count in counts["rules"].items()}
    assert report.metrics.items() >= (rules | {"rows": 48, "rows_malformed": 0}).items()
    assert sum(counts["segments"].values()) == left
    assert sum(counts["labels"].values()) + sum(counts["samples"].values()) == left
    shares = [report.metrics[f"grade_{grade}"] for grade in (1, 2, 3, 4)]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert json.loads((tmp_path / "out/report.json").read_text())["counts"] == counts
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == report.metrics
    for name, columns in PLOT_COLUMNS.items():
        lines = (tmp_path / f"out/plots/{name}.csv").read_text().splitlines()
        assert lines[0] == ",".join(columns)
        assert len(lines) == 1 + len(report.distributions[name])
    queries = sum(table["queries"] for table in report.distributions["windows_per_query"])
    assert queries == left
    assert sum(table["queries"] for table in report.distributions["coverage"]) == left
    assert sum(table["intervals"] for table in report.distributions["interval_length"]) == left


def test_paper_preset_warns_about_its_grades(tmp_path: Path) -> None:
    # Many clips just above mean - 3 sd get grade 1, as the design measured.
    scores = [0.2] * 40 + [0.5, 0.7] * 4 + [0.2] * 12
    report, _ = one(tmp_path, [row(start=80, end=96)], {"abcdefghijk": clips_with(scores)})
    assert report.metrics["grade_1"] == 0
    low = [0.35] * 40 + [0.5, 0.7] * 4 + [0.35] * 12
    report, _ = one(tmp_path, [row(start=80, end=96)], {"abcdefghijk": clips_with(low)})
    assert report.metrics["grade_1"] > 0.8
    assert any("grade 1 has" in warning for warning in report.warnings)
    assert any("grade 4 has" in warning for warning in report.warnings)


# --- the leak list ---------------------------------------------------------------------------


def test_leaked_videos_give_no_sample(tmp_path: Path) -> None:
    inputs = corpus(tmp_path)
    leaked = {f"video{number:06d}" for number in range(6)}
    write_table(tmp_path / "ids.txt", ["video000000", "", "video000001"])
    rows = [{"vid": "video000002_60.0_210.0", "qid": 1}, {"vid": "video000003", "qid": 2}]
    write_table(tmp_path / "val.jsonl", rows)
    lists = {
        "corpus": {"video000004", "video000005_0.0_150.0"},
        "files": read_leak_files([tmp_path / "ids.txt", tmp_path / "val.jsonl"]),
    }
    report = run(tmp_path / "out", replace(inputs, excluded=Excluded.of(lists)))
    assert report.counts["rules"]["leak"] == 12
    found = {
        item["vid"].rsplit("_", 2)[0]
        for name in ("train", "val")
        for item in read_rows(tmp_path / f"out/{name}.jsonl")
    }
    assert found
    assert not found & leaked


def test_missing_leak_list_is_an_error(tmp_path: Path) -> None:
    inputs = replace(corpus(tmp_path, videos=2), excluded=Excluded.of({}))
    with pytest.raises(DataError, match="no list of evaluation videos"):
        run(tmp_path / "out", inputs)
    assert run(tmp_path / "out", inputs, captions__rules__leak=False).state == "complete"
    with pytest.raises(DataError, match=r"ids\.txt: no such leak list"):
        read_leak_files([tmp_path / "ids.txt"])
    write_table(tmp_path / "ids.txt", [""])
    with pytest.raises(DataError, match="holds no video id"):
        read_leak_files([tmp_path / "ids.txt"])
    write_table(tmp_path / "val.jsonl", ['{"vid": "a"}', '{"qid": 1}'])
    with pytest.raises(DataError, match=r"val\.jsonl:2: expected an object with the text field"):
        read_leak_files([tmp_path / "val.jsonl"])


def test_video_ids_of_registered_data_sets(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    for name in ("qvhighlights", "charades"):
        (folder / name).mkdir(parents=True)
    for split in ("train_release", "val_release", "test_with_gt"):
        rows = [{"vid": f"{split[:11]}_0.0_150.0"}]  # nothing else of a row is asked for
        write_table(folder / f"qvhighlights/highlight_{split}.jsonl", rows)
    for split in ("train", "test"):
        line = f"{split.upper()} 1.0 5.0##a person sits down."
        write_table(folder / f"charades/charades_sta_{split}.txt", [line])
    found = read_benchmarks(folder, ["qvhighlights", "charades"])
    assert {"train_relea", "val_release", "test_with_g"} <= found["qvhighlights"]
    assert found["charades"] == {"TRAIN", "TEST"}
    (folder / "qvhighlights/highlight_val_release.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"qvhighlights: lacks highlight_val_release\.jsonl or .*val"
    ):
        read_benchmarks(folder, ["qvhighlights"])


# --- nothing to do ---------------------------------------------------------------------------


def empty_runs(folder: Path) -> Iterator[tuple[str, Inputs]]:
    inputs = corpus(folder, videos=2)
    yield "has no rows", replace(inputs, captions=write_table(folder / "empty.jsonl", []))
    short = write_table(folder / "short.jsonl", [row(caption="short")])
    yield "no caption passes", replace(inputs, captions=short)
    unknown = write_table(folder / "unknown.jsonl", [row("unknown_vid")])
    yield "segment with features", replace(inputs, captions=unknown)
    same = features({"video000000": np.stack([CAPTION_VECTOR] * 30)}, [row()["Caption"]])
    path = write_table(folder / "same.jsonl", [row("video000000")])
    yield "checks of its labels", replace(inputs, captions=path, features=same)


def test_empty_results_are_reported_states(tmp_path: Path) -> None:
    for reason, inputs in empty_runs(tmp_path):
        report = run(tmp_path / "out", inputs)
        assert report.state == "empty"
        assert reason in report.reason
        assert report.metrics["samples_train"] == 0
        assert (tmp_path / "out/train.jsonl").read_text() == ""
        assert json.loads((tmp_path / "out/manifest.json").read_text())["state"] == "empty"
        assert pq.read_table(tmp_path / "out/labels.parquet").num_rows == 0
        assert len(pq.read_table(tmp_path / "out/labels.parquet").column_names) == 14


def test_a_corpus_without_captions_gives_an_empty_set(tmp_path: Path) -> None:
    options = settings("robust")
    job = FilterJob(None, Excluded.of({"test": []}), tmp_path / "filter", tmp_path / "work")
    filter_captions(job, options, NullReporter())
    select_captions(tmp_path / "filter", options, 2.0, tmp_path / "select")
    samples = GenerationJob(
        tmp_path / "filter", tmp_path / "select", None, tmp_path / "out", tmp_path / "work"
    )
    report = generate(samples, options, NullReporter())
    assert (report.state, report.reason) == ("empty", "the corpus has no caption table")
    assert (tmp_path / "out/val.jsonl").read_text() == ""


# --- single rows -----------------------------------------------------------------------------

GOOD_CLIPS = clips_with([0.2] * 5 + [0.6, 0.62, 0.64, 0.6, 0.63] + [0.2] * 20)


def test_bad_rows_are_listed_and_the_others_go_on(tmp_path: Path) -> None:
    rows = [row(), "garbage", row(start=9, end=9)]
    options = {"captions__max_bad_row_share": 0.7}
    report, rejects = one(tmp_path, rows, {"abcdefghijk": GOOD_CLIPS}, **options)
    assert report.metrics["samples_train"] == 1
    assert report.counts["rows"] == {
        "read": 3,
        "bad": {"empty_interval": 1, "not_json": 1},
        "normalised": 0,
    }
    assert [(item["line"], item["reason"]) for item in rejects] == [
        (2, "not_json"),
        (3, "empty_interval"),
    ]


def test_too_many_bad_rows_stop_the_stage_after_all_were_read(tmp_path: Path) -> None:
    rows = [row(), "garbage", "null"]
    with pytest.raises(DataError, match=r"captions\.jsonl:2: 2 of 3 rows are bad, more than 5.0%"):
        one(tmp_path, rows, {"abcdefghijk": GOOD_CLIPS})
    rejects = pq.read_table(tmp_path / "out/filter/rejects.parquet").to_pylist()
    assert [item["line"] for item in rejects] == [2, 3]
    assert not (tmp_path / "out/filter/filter.json").exists()


def test_two_captions_of_one_video_get_their_own_segments(tmp_path: Path) -> None:
    scores = np.full(400, 0.2)
    scores[50:55] = scores[350:355] = 0.6, 0.62, 0.64, 0.6, 0.63
    rows = [
        row(start=100, end=110),
        row(start=700, end=710, caption="the same brown dog runs back"),
    ]
    one(tmp_path, rows, {"abcdefghijk": clips_with(scores)})
    found = read_rows(tmp_path / "out/train.jsonl")
    assert len({item["vid"] for item in found}) == 2
    assert all(item["duration"] == 150 for item in found)
    for item in found:
        start = float(item["vid"].split("_")[1])
        moments = [window[0] + start for window in item["relevant_windows"]]
        assert moments == [100.0] or moments == [700.0]


def test_interval_of_exactly_150_s_can_be_positive_throughout(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(0.6, 0.01, 100)
    one(tmp_path, [row(start=10, end=160)], {"abcdefghijk": clips_with(scores)})
    (sample,) = read_rows(tmp_path / "out/train.jsonl")
    assert sample["vid"] == "abcdefghijk_10.0_160.0"
    assert sample["relevant_windows"] == [[0, 150]]


def test_segments_without_enough_clips_are_refused(tmp_path: Path) -> None:
    report, rejects = one(tmp_path, [row(start=2, end=8)], {"abcdefghijk": GOOD_CLIPS[:9]})
    assert report.counts["segments"] == {"chosen": 0, "no_video_features": 0, "short_segment": 1}
    assert rejects[0]["reason"] == "short_segment"


def test_interval_beyond_the_video_is_refused(tmp_path: Path) -> None:
    rows = [row(start=50, end=70)]
    _, rejects = one(tmp_path, rows, {"abcdefghijk": GOOD_CLIPS})
    assert [item["reason"] for item in rejects] == ["interval_outside_video"]


def test_caption_without_features_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "captions.jsonl", [row()])
    inputs = Inputs(path, features({"abcdefghijk": GOOD_CLIPS}, ["other"]))
    run(tmp_path / "out", inputs, "paper")
    assert read_rows(tmp_path / "out/rejects.jsonl")[0]["reason"] == "no_caption_features"


def test_zero_caption_vector_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "captions.jsonl", [row()])
    usual = features({"abcdefghijk": GOOD_CLIPS}, [row()["Caption"]])
    key = next(iter(usual.texts))
    zero = MemoryStore("texts", {key: np.zeros((3, 8))})
    inputs = Inputs(path, replace(usual, texts=zero))
    report = run(tmp_path / "out", inputs, "paper")
    assert report.counts["labels"]["bad_caption"] == 1
    assert read_rows(tmp_path / "out/rejects.jsonl")[0]["vid"] == "abcdefghijk_0.0_60.0"


def test_zero_clips_are_left_out(tmp_path: Path) -> None:
    clips = GOOD_CLIPS.copy()
    clips[6] = 0
    one(tmp_path, [row(start=10, end=20)], {"abcdefghijk": clips})
    (sample,) = read_rows(tmp_path / "out/train.jsonl")
    assert 6 not in sample["relevant_clip_ids"]
    (side,) = pq.read_table(tmp_path / "out/labels.parquet").to_pylist()
    assert np.isnan(side["similarity"][6])
    clips[5:10] = 0
    report, _ = one(tmp_path, [row(start=10, end=20)], {"abcdefghijk": clips})
    assert report.counts["labels"]["no_annotated_clip"] == 1
    clips[:10] = 0
    report, _ = one(tmp_path, [row(start=10, end=20)], {"abcdefghijk": clips})
    assert report.counts["labels"]["invalid_clips"] == 1


def test_unicode_captions(tmp_path: Path) -> None:
    caption = " “a dog\u00a0runs past a small café by the old sea wall”"
    one(tmp_path, [row(caption=caption)], {"abcdefghijk": GOOD_CLIPS})
    (sample,) = read_rows(tmp_path / "out/train.jsonl")
    assert sample["query"] == "a dog runs past a small café by the old sea wall"


def test_features_of_segments_alone_use_the_estimated_duration(tmp_path: Path) -> None:
    rows = [row(start=10, end=20), row(start=40, end=61.5, caption="the dog sleeps on the sand")]
    _, _ = one(tmp_path, rows, {"abcdefghijk_0.0_60.0": GOOD_CLIPS})
    side = pq.read_table(tmp_path / "out/labels.parquet").to_pylist()
    assert [item["vid"] for item in side] == ["abcdefghijk_0.0_60.0"] * 2
    assert all(item["duration_estimated"] for item in side)
    assert sorted(item["interval_cut"] for item in side) == [False, True]


def test_one_annotator(tmp_path: Path) -> None:
    one(tmp_path, [row()], {"abcdefghijk": GOOD_CLIPS}, labels__annotators=1)
    (sample,) = read_rows(tmp_path / "out/train.jsonl")
    assert all(len(ratings) == 1 for ratings in sample["saliency_scores"])


def test_clips_and_captions_of_different_spaces_are_refused(tmp_path: Path) -> None:
    inputs = corpus(tmp_path, videos=2)
    other = MemoryStore("texts", {"t-0": unit(0.0)[None, :4]})
    with pytest.raises(FeatureMismatch, match="8 channels, captions 4"):
        run(tmp_path / "out", replace(inputs, features=replace(inputs.features, texts=other)))


def test_half_second_clips(tmp_path: Path) -> None:
    usual = features({"abcdefghijk": GOOD_CLIPS}, [row()["Caption"]])
    clips = MemoryStore("clips", {"abcdefghijk": GOOD_CLIPS}, 0.5)
    path = write_table(tmp_path / "captions.jsonl", [row(start=2.5, end=5.0)])
    inputs = Inputs(path, Features(clips, usual.texts, 0.5))
    run(tmp_path / "out", inputs, "paper", captions__min_interval_s=1.0, val_share=0.0)
    (sample,) = read_rows(tmp_path / "out/train.jsonl")
    assert sample["vid"] == "abcdefghijk_0.0_15.0"
    assert sample["relevant_windows"] == [[2.5, 5]]
