"""Importing archives: what is odd in them, and interruptions; tests/conformance has the layouts."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.cli.features import group
from mrmodel.errors import FeatureError
from mrmodel.features.importers.importer import (
    FeatureImportRequest,
    StreamReport,
    format_report,
    import_archive,
)
from mrmodel.features.importers.readers import Place, UnusableFile, read_array
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import MANIFEST_FILE
from mrmodel.features.store import FeatureStore
from mrmodel.files import write_jsonl
from mrmodel.types import Annotation
from tests.features.archives import ARCHIVES, QUERIES, ROWS, VIDEOS, npz, unit, values

CLIP, TEXT = "clip_b32.video512", "clip_b32.text512"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    ARCHIVES["moment_detr"](root)
    return root


def bring(root: Path, *streams: str, rows: Any = ROWS, **changes: Any) -> list[StreamReport]:
    request = FeatureImportRequest("moment_detr", root, root.parent / "out", streams, **changes)
    return import_archive(request, rows)


def damaged(path: Path) -> None:
    """One bit of the rows is wrong."""
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def rows_with(value: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    rows = values("x", 512, dtype=dtype)
    rows[2, 5] = value
    return rows


BAD: dict[str, Any] = {
    "zero_rows": lambda path: npz(path, features=np.zeros((0, 512), np.float32)),
    "not_finite": lambda path: npz(path, features=rows_with(np.nan)),
    "beyond_float16": lambda path: npz(path, features=rows_with(1e6)),
    "dim_mismatch": lambda path: npz(path, features=values("x", 511)),
    "frame_dump": lambda path: npz(path, features=np.zeros((3, 8, 8, 3), np.uint8)),
    "wrong_shape": lambda path: npz(path, features=values("x", 512)[None]),
    "no_array": lambda path: npz(path, other=values("x", 512)),
    "unreadable": damaged,
    "missing_id": Path.unlink,
    "duplicate_id": lambda path: np.save(path.with_suffix(".npy"), values("x", 512)),
}


@pytest.mark.parametrize("code", BAD)
def test_what_gives_no_rows_is_named_and_does_not_stop_the_others(archive: Path, code: str) -> None:
    BAD[code](archive / "clip_features" / f"{VIDEOS[0]}.npz")
    with pytest.raises(FeatureError, match=f"{CLIP}: 1 of 2 items .*{VIDEOS[0]}: {code}: "):
        bring(archive, CLIP)
    store = archive.parent / "out" / CLIP
    assert not (store / MANIFEST_FILE).exists()
    (report,) = bring(archive, CLIP, max_failed_share=0.5)
    assert {name: found for name, (found, _) in report.problems.items()} == {VIDEOS[0]: code}
    opened = FeatureStore(store)
    assert list(opened) == [VIDEOS[1]]
    assert opened.failed[VIDEOS[0]].startswith(code)
    assert json.loads((store / "import.json").read_text())["problems"][VIDEOS[0]]["code"] == code


def test_a_missing_half_of_a_pair(tmp_path: Path) -> None:
    ARCHIVES["tvsum_i3d"](tmp_path / "archive")
    (tmp_path / "archive/video_features" / f"{VIDEOS[0]}_opt.npy").unlink()
    request = FeatureImportRequest(
        "tvsum_i3d", tmp_path / "archive", tmp_path / "out", ("i3d.video2048",)
    )
    with pytest.raises(FeatureError, match="missing_part: there is no file that ends with _opt"):
        import_archive(request, ROWS)


def test_files_of_no_annotated_id(archive: Path) -> None:
    npz(archive / "clip_features/other.npz", features=values("x", 512))
    (report,) = bring(archive, CLIP)
    assert [Path(name).name for name in report.unknown] == ["other.npz"]
    with pytest.raises(FeatureError, match=r"unknown_id: 1 files .*other\.npz"):
        bring(archive, CLIP, strict=True)
    strangers = [Annotation(1, "x", "nobody", 10.0)]
    with pytest.raises(FeatureError, match="unknown_id: none of the 1 ids of the annotations"):
        bring(archive, CLIP, rows=strangers)


def test_a_layout_that_the_archive_is_not(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"no stream 'clip' .it has slowfast"):
        bring(archive, "clip")
    with pytest.raises(FeatureError, match="holds none of the folders of the layout lighthouse"):
        import_archive(FeatureImportRequest("lighthouse", archive, tmp_path / "out"), ROWS)
    packed = tmp_path / "features.tar.gz"
    packed.write_bytes(b"")
    with pytest.raises(FeatureError, match="unpack the archive first"):
        import_archive(FeatureImportRequest("moment_detr", packed, tmp_path / "out"), ROWS)
    ARCHIVES["lighthouse"](tmp_path / "lighthouse")
    with pytest.raises(FeatureError, match=r"give --clip-len"):
        import_archive(
            FeatureImportRequest("lighthouse", tmp_path / "lighthouse", tmp_path / "out"), ROWS
        )


def test_equal_sentences_share_rows(archive: Path) -> None:
    texts = archive / "clip_text_features"
    again = Annotation(70, "A  man walks".lower(), VIDEOS[0], 150.0)
    npz(texts / "qid70.npz", last_hidden_state=values("other", 512))
    (report,) = bring(archive, TEXT, rows=[*ROWS, again])
    assert (report.n_items, report.differing) == (3, ["70"])
    (texts / "qid70.npz").unlink()
    (report,) = bring(archive, TEXT, rows=[*ROWS, again])
    assert (report.n_items, report.differing, report.problems) == (3, [], {})


def test_captions_of_the_pre_training_set(archive: Path) -> None:
    caption = Annotation(f"{VIDEOS[1]}_12", "what was said", VIDEOS[1], 150.0)
    bring(archive, TEXT, rows=[*ROWS, caption])
    block, _ = FeatureStore(archive.parent / "out" / TEXT).gather([text_key("what was said")])
    np.testing.assert_array_equal(block[0], values("sub", 512))


def test_a_sentence_vector_where_there_are_no_tokens(archive: Path) -> None:
    pooled = values("pooled", 512)[0]
    npz(archive / "clip_text_features/qid7.npz", pooler_output=pooled)
    bring(archive, TEXT)
    block, _ = FeatureStore(archive.parent / "out" / TEXT).gather([text_key(QUERIES["7"])])
    np.testing.assert_array_equal(block[0], pooled[None])


@pytest.mark.parametrize("kind", ["stored", "compressed", "fortran", "npy"])
def test_arrays_as_numpy_reads_them(tmp_path: Path, kind: str) -> None:
    array = np.asfortranarray(values("x", 7, dtype=np.float64))
    array = array if kind == "fortran" else np.ascontiguousarray(array)
    path = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    if kind == "npy":
        np.save(path, array)
    else:
        npz(path, compressed=kind == "compressed", first=array[:1], features=array)
    found = read_array(Place(path), ("nothing", "features"))
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
def test_files_that_need_code_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    value = np.array([{"a": print}], dtype=object)
    if suffix == ".pt":
        torch.save({"features": value}, path)
    elif suffix == ".npz":
        np.savez(path, features=value)
    else:
        np.save(path, value, allow_pickle=True)
    with pytest.raises(UnusableFile, match="unreadable"):
        read_array(Place(path), ("features",))


@pytest.mark.parametrize("length", [0, 3, 20, 60, 200, 1000])
def test_cut_files_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.npz"
    npz(path, features=values("x", 512))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UnusableFile, match="unreadable"):
        read_array(Place(path), ("features",))


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 4000), byte=st.integers(0, 255), kind=st.sampled_from(["npy", "npz"]))
def test_a_wrong_byte_is_an_unusable_file_or_none(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed.{kind}"
    array = values("x", 512)
    if kind == "npy":
        np.save(path, array)
    else:
        np.savez(path, features=array)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        found = read_array(Place(path), ("features",))
    except UnusableFile:
        return
    assert isinstance(found, np.ndarray)
    if kind == "npz" and found.shape == array.shape and found.dtype == array.dtype:
        np.testing.assert_array_equal(found, array)  # the checksum covers header and rows


def test_word_vectors_are_checked(tmp_path: Path) -> None:
    ARCHIVES["charades_vgg"](tmp_path / "archive")
    request = FeatureImportRequest(
        "charades_vgg", tmp_path / "archive", tmp_path / "out", ("glove.text300",)
    )
    with pytest.raises(FeatureError, match="--word-vectors FILE"):
        import_archive(request, ROWS)
    short = tmp_path / "short.txt"
    short.write_text("unused 1\nman 1.0 2.0\n")
    request = FeatureImportRequest(
        "charades_vgg", tmp_path / "archive", tmp_path / "out", ("glove.text300",), None, short
    )
    with pytest.raises(FeatureError, match=r"short\.txt:2: 'man' has 2 values, expected 300"):
        import_archive(request, ROWS)


def test_the_command(archive: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus/train.jsonl", [row.as_row() for row in ROWS])
    arguments = ["import", str(archive), "--layout", "moment_detr", "--corpus"]
    arguments += [str(tmp_path / "corpus"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    assert "slowfast.video2304: 8 rows of 2 items (2 float16)" in result.output
    assert "unknown_id: 1 files are of no annotated id" in result.output
    arguments = ["verify", str(tmp_path / "out" / TEXT), "--annotations"]
    result = CliRunner().invoke(group, [*arguments, str(tmp_path / "corpus/train.jsonl")])
    assert "sound" in result.output


KILLED = """
import sys
from pathlib import Path
from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.types import Annotation
rows = [Annotation(n, f"sentence {n}", f"v{n:04d}", 150.0) for n in range(int(sys.argv[2]))]
root = Path(sys.argv[1])
request = FeatureImportRequest("moment_detr", root / "archive", root / "out", shard_bytes=1 << 20)
import_archive(request, rows)
"""


def test_a_killed_import_ends_in_the_same_bytes(tmp_path: Path) -> None:
    count = 400
    for number in range(count):
        npz(tmp_path / f"archive/clip_features/v{number:04d}.npz", features=values("x", 512, 75))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(count)]
    store = tmp_path / "out" / CLIP
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(store.parent.rglob("shard-00003.npy*")) and time.monotonic() < deadline:
        time.sleep(0.0005)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -9
    with pytest.raises(FeatureError, match="did not finish"):
        FeatureStore(store)
    subprocess.run(command, check=True)
    assert list(store.parent.iterdir()) == [store]
    again = {path.name: path.read_bytes() for path in store.iterdir()}
    undisturbed = tmp_path / "whole"
    undisturbed.mkdir()
    (undisturbed / "archive").symlink_to(tmp_path / "archive")
    subprocess.run([*command[:3], str(undisturbed), str(count)], check=True)
    whole = {path.name: path.read_bytes() for path in (undisturbed / "out" / CLIP).iterdir()}
    assert len(whole) > 20
    assert again == whole


SG_VIDEO, SG_TEXT = "internvideo2_1b.video512", "internvideo2_1b.text512"


def bring_sg_detr(root: Path, *streams: str, rows: Any = ROWS, **changes: Any) -> Any:
    request = FeatureImportRequest("sg_detr", root, root.parent / "out", streams, **changes)
    return import_archive(request, rows)


def test_numbers_of_rows_and_rows_of_length_1_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    ARCHIVES["sg_detr"](root)
    texts = root / "custom_features/custom_text"
    rows = unit(values("short", 512, 6, np.float32))
    # Within 1e-3 of length 1, not within it, and of another length though no value is above 1.
    npz(texts / "9.npz", features=rows * np.array([1, 1.0005, 0.998, 1.002, 0.1, 4])[:, None])
    (report,) = bring_sg_detr(root, SG_TEXT)
    assert (report.row_counts, report.n_unit_rows) == ({40: 2, 6: 1}, 82)
    shown = format_report(report)
    assert "86 rows of 3 items (2 float32, 1 float64)" in shown
    assert "6 to 40 rows per item, 40 in 2 items; 82 rows of length 1" in shown
    record = json.loads((report.store / "import.json").read_text())
    assert (record["items_by_rows"], record["unit_rows"]) == ({"6": 1, "40": 2}, 82)
    (report,) = bring_sg_detr(root, SG_VIDEO, clip_len_s=1.0)
    assert "  75 rows in every item; 150 rows of length 1" in format_report(report)
    assert FeatureStore(report.store).clip_len_s == 1.0


def test_the_first_of_several_folders_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "archive"
    ARCHIVES["sg_detr"](root)
    for place in ("custom_features/custom_text_fixed", "custom_text_fixed", "custom_text"):
        for qid in QUERIES:
            npz(root / place / f"{qid}.npz", features=values(place + qid, 512))
        bring_sg_detr(root, SG_TEXT)
        block, _ = FeatureStore(root.parent / "out" / SG_TEXT).gather([text_key(QUERIES["7"])])
        kept = place if place == "custom_text" else "custom_features/custom_text"
        expected = (
            unit(values("7", 512, 40, np.float32)) if kept != place else values(f"{place}7", 512)
        )
        np.testing.assert_array_equal(block[0], expected.astype(np.float16))
    assert f"{SG_TEXT}: read from {root}/custom_text, not from " in caplog.text
    assert str(root / "custom_text_fixed") in caplog.text


@pytest.mark.parametrize(
    ("code", "rows"),
    [
        ("wrong_shape", values("x", 512)[None].repeat(2, axis=0)),
        ("zero_rows", np.zeros((1, 0, 512), np.float32)),
        ("dim_mismatch", values("x", 768)[None]),
        ("not_finite", rows_with(np.inf)[None]),
    ],
)
def test_a_bad_text_of_sg_detr(tmp_path: Path, code: str, rows: Any) -> None:
    ARCHIVES["sg_detr"](tmp_path / "archive")
    npz(tmp_path / "archive/custom_features/custom_text/8.npz", features=rows)
    with pytest.raises(FeatureError, match=f"{SG_TEXT}: 1 of 3 items .*8: {code}: "):
        bring_sg_detr(tmp_path / "archive", SG_TEXT)
    (report,) = bring_sg_detr(tmp_path / "archive", SG_TEXT, max_failed_share=0.5)
    assert (report.n_items, report.problems["8"][0]) == (2, code)


def test_a_text_may_be_named_by_its_video(tmp_path: Path) -> None:
    """But not if the video has several sentences, or another query has that id."""
    root = tmp_path / "archive"
    names = ("a", "b", "c", "7", "q2")
    for name in names:
        npz(root / "custom_text" / f"{name}.npz", features=values(name, 512))
    rows = [
        Annotation("q1", "dog", "a", 10.0),
        Annotation("q2", "dog", "b", 10.0),
        Annotation("q3", "skating", "c", 10.0),
        Annotation("q4", "one of two", "d", 10.0),
        Annotation("q5", "two of two", "d", 10.0),
        Annotation("7", "another", "e", 10.0),
        Annotation("q6", "of the video 7", "7", 10.0),
    ]
    npz(root / "custom_text/d.npz", features=values("d", 512))
    (report,) = bring_sg_detr(root, SG_TEXT, rows=rows, max_failed_share=1.0)
    assert {name: code for name, (code, _) in report.problems.items()} == dict.fromkeys(
        ("q4", "q5", "q6"), "missing_id"
    )
    assert [Path(name).name for name in report.unknown] == ["d.npz"]
    store = FeatureStore(report.store)
    # The file of a query precedes those of videos, of which the first is read.
    for query, name in {"dog": "q2", "skating": "c", "another": "7"}.items():
        block, _ = store.gather([text_key(query)])
        np.testing.assert_array_equal(block[0], values(name, 512))
    assert report.differing == ["a", "b"]
