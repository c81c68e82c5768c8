"""`mrmodel data check --videos` and the stage `corpus` refuse the same rows for the same reason."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mrmodel.cli.data import group
from mrmodel.config.schema import load_config
from mrmodel.data.check import check_file
from mrmodel.data.ingest.folder import import_folder
from mrmodel.errors import DataError
from mrmodel.progress import NullReporter
from mrmodel.retrain.baseline import Reference
from mrmodel.retrain.deliveries import delivery_in
from mrmodel.retrain.drift import Drift
from mrmodel.retrain.row_checks import CheckedRecords, check_records
from mrmodel.retrain.videos import DeliveredVideos
from mrmodel.stages.corpus import corpus
from mrmodel.stages.profile import profile_of
from mrmodel.types import Annotation
from tests.pretraining.tables import PARAMS
from tests.pretraining.tables import row as caption_row
from tests.video.fixtures import write_audio, write_video

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def row(vid: str, **changes: Any) -> dict[str, Any]:
    window = {"duration": 12.0, "relevant_windows": [[2.0, 4.0]]}
    return {"qid": vid, "query": "a green card", "vid": vid, **window, **changes}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 12 s."""
    return write_video(tmp_path_factory.mktemp("base") / "base.mp4", 12, fps=1, size=(64, 48))


@pytest.fixture
def own(tmp_path: Path, base: Path) -> Path:
    """A folder with one good video and one good row in each table."""
    folder = tmp_path / "own"
    (folder / "videos").mkdir(parents=True)
    shutil.copy(base, folder / "videos")
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row("base")) + "\n")
    return folder


def both(folder: Path, out: Path, *rows: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The rules that rows break, by the check, after it is equal to those of the stage; the rows
    that the stage keeps."""
    path = folder / "train.jsonl"
    texts = [json.dumps(one, ensure_ascii=False) + "\n" for one in (row("base"), *rows)]
    path.write_text("".join(texts).replace("Infinity", "1e999"), encoding="utf-8")
    report = check_file(path, folder / "videos")
    import_folder(folder, 2.0, out, NullReporter())
    refused = json.loads((out / "corpus.json").read_text())["rejected_rows"]
    assert [(error.line, error.rule) for error in report.errors] == [
        (one["line"], one["rule"]) for one in refused
    ]
    kept = (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [error.rule for error in report.errors], [json.loads(text) for text in kept]


def test_every_rule_of_a_row_and_its_video(own: Path, tmp_path: Path) -> None:
    videos = own / "videos"
    (videos / "empty.mp4").touch()
    (videos / "text.mov").write_text("no video")
    write_audio(videos / "sound.mp4")
    for name in ("twice.mp4", "twice.mkv", "old.m2ts", "dir.mp4"):
        shutil.copy(videos / "base.mp4", videos / name)
    (videos / "gone.mp4").symlink_to("nowhere.mp4")
    rules, kept = both(
        own,
        tmp_path / "out",
        row("base", qid="ms", duration=12000, relevant_windows=[[2000, 4000]]),
        row("base", qid="rounded up", duration=14),
        row("base", qid="too long", duration=14.1),
        row("base_4_12", qid="segment", duration=8),
        row("base_8_20", qid="long segment", duration=12),
        row("base", qid="no truth", relevant_windows=[]),
        row("base", qid="rated", relevant_windows=[], relevant_clip_ids=[1], saliency_scores=[[1]]),
        row("base", qid="inf", duration=1e999),
        row("bsae"),
        row("empty"),
        row("text"),
        row("sound"),
        row("twice"),
        row("old"),
        row("gone"),
        {"qid": 1e999, "query": "", "vid": "base", "duration": 12},
    )
    assert [one["qid"] for one in kept] == ["base", "rounded up", "segment", "rated"]
    words = [
        "base.mp4 lasts 12.0 s, less than the row says",
        "base.mp4 lasts 12.0 s",
        "base.mp4 lasts 12.0 s",
        "no relevant_windows and no saliency_scores; training and evaluation need one of them",
        "duration = Infinity: is too large",
        "no video 'bsae' in videos/; did you mean 'base'",
        "empty.mp4 cannot be read",
        "text.mov cannot be read",
        "sound.mp4 cannot be read",
        "several files of one name (twice.mkv, twice.mp4)",
        "no video 'old' in videos/: old.m2ts is of no known kind (avi, flv, m4v,",
        "no video 'gone' in videos/: gone.mp4 is no file",
        "qid = Infinity: expected an integer",
    ]
    for word, rule in zip(words, rules, strict=True):
        assert word in rule


@pytest.mark.parametrize("suffix", [".m4v", ".ts", ".MP4", ".flv", ".mpeg", ".wmv", ".mpg"])
def test_one_list_of_suffixes(own: Path, base: Path, tmp_path: Path, suffix: str) -> None:
    shutil.copy(base, own / "videos" / f"phone{suffix}")
    rules, kept = both(own, tmp_path / "out", row("phone"))
    assert (rules, len(kept)) == ([], 2)


@pytest.mark.parametrize(("file", "said"), [(NFD, NFC), (NFC, NFD), (NFC, NFC), (NFD, NFD)])
def test_accents_in_two_forms(own: Path, base: Path, tmp_path: Path, file: str, said: str) -> None:
    """Later stages look features up by the name of the file, so rows are written with it."""
    shutil.copy(base, own / "videos" / f"{file}.mp4")
    caption = {"YoutubeID": said, "Caption": "a card"}
    (own / "captions.jsonl").write_text(json.dumps(caption) + "\n")
    rules, kept = both(own, tmp_path / "out", row(said), row(f"{said}_2_8", duration=6))
    assert rules == []
    assert [one["vid"] for one in kept] == ["base", file, f"{file}_2_8"]
    assert (tmp_path / "out/videos" / f"{file}.mp4").exists()
    (written,) = (tmp_path / "out/captions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(written) == caption | {"YoutubeID": file}


def test_two_files_that_look_alike(own: Path, base: Path, tmp_path: Path) -> None:
    name = unicodedata.normalize("NFC", "\u1e69")  # has a third form, of two letters
    forms = [unicodedata.normalize("NFD", name), "s\u0307\u0323"]
    for form in forms:
        shutil.copy(base, own / "videos" / f"{form}.mp4")
    rules, kept = both(own, tmp_path / "out", row(name), row(forms[0], qid="exact"))
    assert "several files of one name" in rules[0]
    assert [one["qid"] for one in kept] == ["base", "exact"]


def test_a_file_name_that_is_no_text(own: Path, base: Path, tmp_path: Path) -> None:
    shutil.copy(base, os.fsencode(own / "videos") + b"/caf\xe9.mp4")
    rules, _ = both(own, tmp_path / "out", row(NFC))
    assert rules == [
        f"no video {NFC!r} in videos/: {NFC}.mp4 has a name that is not UTF-8; rename it"
    ]


def test_the_command(own: Path) -> None:
    check = ["check", str(own / "train.jsonl"), "--videos", str(own / "videos")]
    assert CliRunner().invoke(group, check).exit_code == 0
    (own / "train.jsonl").write_text(json.dumps(row("base", duration=12000)) + "\n")
    run = CliRunner().invoke(group, check)
    assert run.exit_code == 2
    assert "train.jsonl:1: qid 'base': its video base.mp4 lasts 12.0 s" in run.output


def test_a_table_of_another_format_stops_the_stage_with_its_reason(
    own: Path, tmp_path: Path
) -> None:
    rows = [row("base", qid=number) for number in range(200)]
    (own / "train.jsonl").write_text(json.dumps(rows, indent=2))
    with pytest.raises(DataError, match=r"train\.jsonl: .*one JSON array of 200 values"):
        import_folder(own, 2.0, tmp_path / "out", NullReporter())


def test_half_an_emoji_costs_its_row_only(own: Path, tmp_path: Path) -> None:
    texts = [json.dumps(row("base", query="a party \ud83d", qid=1)), json.dumps(row("base", qid=2))]
    (own / "train.jsonl").write_text("\n".join(texts))
    caption = {"YoutubeID": "base", "Caption": "\ude00"}
    (own / "captions.jsonl").write_text(json.dumps(caption))
    import_folder(own, 2.0, tmp_path / "out", NullReporter())
    refused = json.loads((tmp_path / "out/corpus.json").read_text())["rejected_rows"]
    assert [(one["file"], one["line"]) for one in refused] == [
        ("captions.jsonl", 1),
        ("train.jsonl", 1),
    ]
    assert json.loads((tmp_path / "out/train.jsonl").read_text())["qid"] == 2


def delivered(folder: Path, *rows: dict[str, Any], reference: Reference | None = None) -> Any:
    """What retraining says about the rows of a folder."""
    texts = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
    if rows:
        (folder / "train.jsonl").write_text("".join(texts), encoding="utf-8")
    reference = reference or Reference(profile_of([], {}))
    videos = DeliveredVideos(folder / "videos", reference, 2.0, delivery_in(folder).ignored)
    return check_records(folder, reference, videos, load_config(PARAMS))


def test_retraining_refuses_the_same_rows(own: Path, base: Path, tmp_path: Path) -> None:
    shutil.copy(base, own / "videos" / "old.m2ts")
    (own / "val.jsonl").unlink()
    rows = [
        row("base", qid=1),
        row("base", qid=2, duration=12000),
        row("base", qid=3, relevant_windows=[]),
        row("base", qid=4, duration=1e9),
        row("old", qid=5),
        row("base", relevant_windows=[], relevant_clip_ids=[1], saliency_scores=[[1]]),
    ]
    found: CheckedRecords = delivered(own, *rows)
    report = check_file(own / "train.jsonl", own / "videos")
    assert [(bad.line, bad.qid) for bad in found.bad] == [(e.line, e.qid) for e in report.errors]
    same = [(bad.rule, error.rule) for bad, error in zip(found.bad, report.errors, strict=True)]
    assert all(rule == expected for rule, expected in same[:3])
    assert "no video 'old', neither delivered nor in the data: videos/old.m2ts is of" in same[3][0]
    assert [one.id for one in found.good] == [1, "base"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_row_that_the_metrics_refuse(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Check and stage took a rated clip of less than two seconds, and each training ended on it."""
    rated = {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]]}
    last = {"duration": 13.0, "relevant_windows": [[12.0, 13.0]], "relevant_clip_ids": [6]}
    rows = [
        row("base", qid=1, saliency_scores=[[1, 2]], relevant_clip_ids=[1]),
        row("base", qid=2, query="b", **rated),
        row("base", qid=3, query="c", **{**rated, **last}),
        row("base", qid=4, query="d", **rated),
    ]
    params = yaml.safe_load(PARAMS.read_text())
    params["corpus"] |= {"source": "folder", "folder": str(own)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("val", split):
        (own / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.chdir(tmp_path)
    checked = CliRunner().invoke(group, ["check", str(own / f"{split}.jsonl")])
    assert checked.exit_code == 2
    corpus(load_config(Path("params.yaml")), NullReporter())
    details = json.loads(Path("data/sample/corpus.json").read_text())
    refused = [one for one in details["rejected_rows"] if one["file"] == f"{split}.jsonl"]
    assert [one["id"] for one in refused] == [2, 3, 4]
    if split == "val":
        (own / "train.jsonl").unlink()
        bad = delivered(own).bad
        assert [one.rule for one in bad] == [one["rule"] for one in refused]
    for one in refused:
        assert f"{split}.jsonl:{one['line']}" in checked.output
        assert one["rule"] in checked.output


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_retraining_reads_tables_as_they_are_written(own: Path, end: bytes) -> None:
    bad = json.dumps(row("base", qid=2, query="\ud83d")).encode()
    good = [json.dumps(row("base", qid=n, query=f"card {n}")).encode() for n in (1, 3)]
    (own / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + end.join([good[0], b"", bad, good[1]]))
    (own / "val.jsonl").unlink()
    captions = [json.dumps(caption_row(video="base")).encode(), b"caf\xe9"]
    (own / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + end.join(captions))
    found: CheckedRecords = delivered(own)
    assert [one.raw for one in found.good if one.table == "train.jsonl"] == good
    assert [(one.file, one.line) for one in found.bad] == [
        ("captions.jsonl", 1),  # its id is too short
        ("captions.jsonl", 2),
        ("train.jsonl", 3),
    ]


def test_a_delivery_in_another_format_is_refused_as_a_whole(own: Path) -> None:
    for name, content in (
        ("train.jsonl", json.dumps([row("base")], indent=2).encode()),
        ("captions.jsonl", json.dumps([caption_row()]).encode()),
        ("captions.jsonl", json.dumps(caption_row()).encode("utf-16")),
    ):
        before = (own / name).read_bytes() if (own / name).exists() else None
        (own / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: the file is"):
            delivered(own)
        (own / name).unlink()
        if before is not None:
            (own / name).write_bytes(before)


def test_a_test_table_in_another_format_does_not_lose_its_protection(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps([row("base")]))
    with pytest.raises(DataError, match=r"test\.jsonl: the file is one JSON array"):
        Reference.read(tmp_path, {}, profile_of([], {}), 2.0)


def test_a_test_video_in_another_form_of_its_name_is_a_leak(own: Path, base: Path) -> None:
    reference = Reference(profile_of([], {}))
    reference.add_video(f"{NFC}.mp4", "0")
    reference.add_annotations("test.jsonl", [Annotation(1, "x", NFC, 12.0, ((2.0, 4.0),))])
    shutil.copy(base, own / "videos" / f"{NFD}.mp4")
    (own / "val.jsonl").unlink()
    rows = [row(NFD, qid=1), row(f"{NFD}_0_8", qid=2, duration=8), row("base", qid=3)]
    found: CheckedRecords = delivered(own, *rows, reference=reference)
    assert [bad.qid for bad in found.bad] == [1, 2]
    assert all("is a video of the test split" in bad.rule for bad in found.bad)


def test_rows_with_ratings_alone_have_no_drift_of_windows() -> None:
    rated = [Annotation(n, "a card", f"v{n}", 12.0 + n, (), (1,), ((1.0,),)) for n in range(9)]
    drift = Drift(profile_of(rated, {}), load_config(PARAMS))
    names = [figure.name for figure in drift.compare(rated, [])]
    assert "seconds of a window" not in names
    assert "seconds of a video" in names
