"""`mrmodel features compare`: an archive's rows against those of an encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mrmodel.cli.features import group
from mrmodel.errors import FeatureError, FeatureMismatch
from mrmodel.features.compare import StoreComparison, compare_stores, format_comparison
from mrmodel.features.importers.importer import FeatureImportRequest, import_archive
from mrmodel.features.index import IndexEntry
from mrmodel.features.keys import text_key
from mrmodel.features.manifest import StreamInfo
from mrmodel.features.writer import FeatureWriter
from tests.features.archives import ARCHIVES, QUERIES, ROWS, unit, values

TEXT = "internvideo2_1b.text512"


def write(folder: Path, rows: dict[str, Any], **changes: Any) -> Path:
    """A store of these rows; an item without rows failed."""
    info = {"dim": 3, "modality": "video", "keyed_by": "vid", "clip_len_s": 2.0} | changes
    with FeatureWriter(folder, StreamInfo(stream="s", fingerprint={}, **info), 128) as writer:
        for key, found in sorted(rows.items()):
            array = np.array(found, np.float16).reshape(-1, info["dim"])
            status: Any = "ok" if len(array) else "failed"
            writer.add(IndexEntry(key, len(array), status=status), array)
    return folder


X, Y, Z = np.eye(3)
ZERO = np.zeros(3)


def test_rows_are_compared_by_key_and_position(tmp_path: Path) -> None:
    a = {"a": [X, Y], "b": [X, Y, Z], "c": [X], "only": [X], "bad": []}
    b = {"a": [X, Y + Z], "b": [2 * X, Y], "c": [-3 * X], "bad": [X], "more": [X]}
    found = compare_stores(write(tmp_path / "a", a), write(tmp_path / "b", b))
    assert found.only == (1, 2)
    assert found.row_counts == {"a": (2, 2), "b": (3, 2), "c": (1, 1)}
    assert (found.n_rows, found.n_zero) == (5, 0)
    assert found.cosine == pytest.approx((1 + 0.5**0.5 + 1 + 1 - 1) / 5)
    assert found.lowest is not None
    assert (found.lowest.value, found.lowest.key, found.lowest.row) == (-1.0, "c", 0)
    assert (found.largest.value, found.largest.key, found.largest.row) == (4.0, "c", 0)


def test_the_row_of_an_extreme_is_that_of_its_key(tmp_path: Path) -> None:
    rows = {f"v{number}": [X] * (number + 1) for number in range(6)}
    other = {key: list(found) for key, found in rows.items()}
    other["v3"][2] = Y
    other["v4"][0] = 9 * X
    found = compare_stores(write(tmp_path / "a", rows), write(tmp_path / "b", other))
    assert found.lowest is not None
    assert (found.lowest.key, found.lowest.row) == ("v3", 2)
    assert (found.largest.value, found.largest.key, found.largest.row) == (8.0, "v4", 0)


def test_zero_rows_have_no_cosine(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"a": [X, ZERO, Y], "b": [ZERO]})
    b = write(tmp_path / "b", {"a": [X, ZERO, X], "b": [X]})
    found = compare_stores(a, b)
    assert (found.n_rows, found.n_zero, found.cosine) == (4, 2, 0.5)
    zero = write(tmp_path / "zero", {"a": [ZERO] * 3})
    found = compare_stores(zero, b)
    assert (found.n_zero, found.cosine, found.lowest) == (3, None, None)
    assert "cosine: " not in format_comparison(found)


def test_stores_that_cannot_be_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"a": [X]})
    with pytest.raises(FeatureMismatch, match=r"a: dim = 3, .*b: dim = 1: "):
        compare_stores(a, write(tmp_path / "b", {"a": [X]}, dim=1))
    with pytest.raises(FeatureMismatch, match=r"clip_len_s = 2\.0, .*c: clip_len_s = 1\.0"):
        compare_stores(a, write(tmp_path / "c", {"a": [X]}, clip_len_s=1.0))
    with pytest.raises(FeatureError, match=r"no key is in both: .*a has e\.g\. 'a', .*d 'd'"):
        compare_stores(a, write(tmp_path / "d", {"d": [X]}))
    with pytest.raises(FeatureError, match="not a feature store"):
        compare_stores(a, tmp_path)


def extracted(folder: Path, lengths: dict[str, int]) -> Path:
    """What an encoder stores of the miniature's texts: no padding tokens."""
    rows = {
        text_key(QUERIES[qid]): unit(values(qid, 512, 40, np.float32))[:count] * 3
        for qid, count in lengths.items()
    }
    kind = {"dim": 512, "modality": "text", "keyed_by": "text", "clip_len_s": None}
    return write(folder, rows, **kind)


def compared(tmp_path: Path) -> StoreComparison:
    ARCHIVES["sg_detr"](tmp_path / "archive")
    request = FeatureImportRequest("sg_detr", tmp_path / "archive", tmp_path / "out", (TEXT,))
    import_archive(request, ROWS)
    own = extracted(tmp_path / "own", {"7": 5, "8": 40, "9": 11})
    return compare_stores(tmp_path / "out" / TEXT, own)


def test_padding_tokens_in_an_archive_are_rows_that_the_encoder_lacks(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert sorted(found.row_counts.values()) == [(40, 5), (40, 11), (40, 40)]
    assert found.n_rows == 56
    assert found.cosine == pytest.approx(1.0, abs=1e-5)


def test_the_command(tmp_path: Path) -> None:
    key = text_key(QUERIES["7"])
    shown = format_comparison(compared(tmp_path)).splitlines()
    arguments = ["compare", str(tmp_path / "out" / TEXT), str(tmp_path / "own")]
    result = CliRunner().invoke(group, arguments)
    assert (result.exit_code, result.output.splitlines()) == (0, shown)
    assert shown[:2] == [f"A: {tmp_path}/out/{TEXT}", f"B: {tmp_path}/own"]
    table = [line.split() for line in shown[2:7]]
    assert table == [
        ["A", "B"],
        ["stream", TEXT, "s"],
        ["keys", "in", "both", "3", "3"],
        ["keys", "in", "this", "only", "0", "0"],
        ["rows", "per", "key", "in", "both", "40", "to", "40", "5", "to", "40"],
    ]
    assert shown[7].startswith("keys with other numbers of rows in A and B: 2; ")
    assert f"{key}: 40 and 5" in shown[7]
    assert shown[8] == "rows compared: 56, of which 0 are zero in A or B"
    assert shown[9].startswith("cosine: mean 1.0000")
    assert shown[10].startswith("largest difference: 0.")
    result = CliRunner().invoke(group, ["compare", str(tmp_path / "out" / TEXT), "none"])
    assert result.exit_code == 2
    assert "Directory 'none' does not exist" in result.output
